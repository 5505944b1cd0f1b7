"""图例：评估的每个数字叫什么、怎么算、单位、范围、在哪些物品上算、出自哪里；报告原样印出。"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from ..metrics import records

__all__ = ["legend_of"]


def legend_of(figures: Mapping[str, Any]) -> List[Dict[str, str]]:
    """这次评估给出的指标的图例。

    Args:
        figures: 指标的键值；没有记录的键（计数、说明）不管。

    Returns:
        每个指标一项，字段见 `Metric.legend`，次序固定。
    """
    return [metric.legend() for metric in records.METRICS if figures.get(metric.key) is not None]
