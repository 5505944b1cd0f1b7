"""评估的数字排成行与列：命令行的表与报告的表都从这里取，名字与写法来自各指标的记录。

纯函数；文字是 (中文, 英文)，挑哪一种由看的人决定。
"""

from __future__ import annotations

from typing import Any, List, Mapping, NamedTuple

from ..metrics import records
from ..metrics.records.base import Metric, Pair

__all__ = ["Row", "Table", "notes", "scalar_rows", "split_table"]


class Row(NamedTuple):
    """一个数：指标的键、名字、写好的值（随机水平在括号里）。"""

    key: str
    name: Pair
    value: str


class Table(NamedTuple):
    """逐层或逐前缀的一张表：每列一个指标；`cells[i][j]` 是第 j 列第 i 层。"""

    heads: List[Pair]
    cells: List[List[str]]


def scalar_rows(figures: Mapping[str, Any], everything: bool = False) -> List[Row]:
    """量到的单个数字，一行一个。

    Args:
        figures: 评估的返回值。
        everything: 连 `in_table` 为假的也要。
    """
    rows = []
    for metric in records.METRICS:
        if not metric.per and metric.key in figures and (everything or metric.in_table):
            why = figures.get(f"{metric.key}_reason") if figures[metric.key] is None else None
            value = f"– ({why})" if why else _beside(metric, figures, figures[metric.key], figures.get(metric.chance))
            rows.append(Row(metric.key, metric.name, value))
    return rows


def split_table(figures: Mapping[str, Any], per: str, everything: bool = False) -> Table:
    """逐层（per="level"）或逐前缀（per="prefix"）的数字，一层一行；没有量到的指标没有列。"""
    chances = {metric.chance for metric in records.METRICS}
    shown = [
        metric
        for metric in records.METRICS
        if metric.per == per
        and metric.key not in chances
        and isinstance(figures.get(metric.key), list)
        and (everything or metric.in_table)
    ]
    cells = []
    for level in range(len(figures["codebook_sizes"])):
        cells.append(
            [_beside(m, figures, _part(figures[m.key], level), _part(figures.get(m.chance), level)) for m in shown]
        )
    heads = [m.name if not m.chance else (f"{m.name[0]}（随机）", f"{m.name[1]} (chance)") for m in shown]
    return Table(heads, cells)


def notes(figures: Mapping[str, Any]) -> List[Pair]:
    """读数字之前该知道的：没有解码器、大小是推出来的、按行序对齐的。"""
    out: List[Pair] = []
    if figures.get("reconstruction") == "additive_means":
        out.append(
            (
                "没有解码器：误差用每层编号的平均相加来量。",
                "no decoder: errors are those of adding up the mean of each code.",
            )
        )
    if figures.get("codebook_sizes_inferred"):
        out.append(
            (
                "各层大小由编码的最大值推出：用 --codebook-sizes 给出真正的大小。",
                "codebook sizes were inferred from the largest codes: give the real ones with --codebook-sizes.",
            )
        )
    for key, zh, en in (("codes_matched_by", "编码", "codes"), ("items_matched_by", "物品信息", "item facts")):
        if figures.get(key) == "row":
            out.append(
                (
                    f"{zh}与特征按行序对齐：没有物品编号可对，次序要由你保证。",
                    f"{en} were matched to the features by row, for want of item ids: the order is yours to guarantee.",
                )
            )
    return out


def _beside(metric: Metric, figures: Mapping[str, Any], value: Any, chance: Any) -> str:
    """「数字（随机水平）」。"""
    text = metric.show(value)
    return text if not metric.chance or chance is None or value is None else f"{text} ({metric.show(chance)})"


def _part(values: Any, level: int) -> Any:
    """列表的一项，短了或不是列表就是 None。"""
    return values[level] if isinstance(values, list) and level < len(values) else None
