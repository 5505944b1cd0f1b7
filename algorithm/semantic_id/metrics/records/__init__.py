"""全部指标，次序即图例、体检与表格的次序；行为的结论最能预示推荐的好坏，所以排在最前面。"""

from __future__ import annotations

from typing import Dict, List, Tuple

from . import behaviour, collisions, error, meaning, unseen, usage
from .base import Metric, Verdict

__all__ = ["METRICS", "Metric", "Verdict", "by_key", "questions"]

METRICS: Tuple[Metric, ...] = (
    *behaviour.METRICS,
    *error.METRICS,
    *collisions.METRICS,
    *usage.METRICS,
    *meaning.METRICS,
    *unseen.METRICS,
)


def by_key() -> Dict[str, Metric]:
    """键 → 指标。"""
    return {metric.key: metric for metric in METRICS}


def questions() -> List[List[Metric]]:
    """同一个问题的指标在一起，各组的第一个是它的关键数字；次序同 `METRICS`。"""
    groups: Dict[Tuple[str, str], List[Metric]] = {}
    for metric in METRICS:
        groups.setdefault(metric.question, []).append(metric)
    return list(groups.values())
