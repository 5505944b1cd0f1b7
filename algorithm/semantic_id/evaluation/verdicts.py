"""体检：由评估的数字得出结论，每条说清现象、原因、办法。规则与句子写在各指标的记录里，这里只管问一遍。

纯函数，不读文件，不 import 模型。没有量的不判；量了而没有定义的、分辨不了的说「没有判断」，绝不当作没有问题。
"""

from __future__ import annotations

from typing import Any, List, Mapping

from ..metrics import records
from ..metrics.records.base import CannotTell, Known, Metric, Sentence, Verdict

__all__ = ["SEVERITIES", "judge_health"]

# 由重到轻；没法判断的不算有问题，也不算没有问题
SEVERITIES = ("bad", "watch", "unknown", "ok")

UNDEFINED = Sentence(
    "not_judged",
    "没有判断「{zh}」：{key} 没有定义{why}。",
    "not judged, {en}: {key} has no value{why}.",
)


def judge_health(figures: Mapping[str, Any]) -> List[Verdict]:
    """每个会判的指标至少一条结论：有问题的说原因与办法，没问题的也说一声，没法判断的说为什么。

    Args:
        figures: 评估的返回值：指标与说明（num_items、codebook_sizes……）。

    Returns:
        次序同 `records.METRICS`。
    """
    known = Known(figures)
    out: List[Verdict] = []
    for metric in records.METRICS:
        if metric.judge is not None and metric.key in figures:
            found = _judge(metric, known, figures)
            out += [verdict._replace(metric=verdict.metric or metric.key) for verdict in found]
    return out


def _judge(metric: Metric, known: Known, figures: Mapping[str, Any]) -> List[Verdict]:
    """一个指标的结论；要用的数没有定义时只有一条 unknown，带上原因。"""
    assert metric.judge is not None
    try:
        found = list(metric.judge(known))
    except CannotTell as problem:
        key = str(problem.args[0])
        why = figures.get(f"{key}_reason")
        zh, en = metric.name
        return [UNDEFINED.says("unknown", zh=zh, en=en, key=key, why=f" ({why})" if why else "")]
    assert found, f"{metric.key} has a judge that says nothing"
    return found
