"""`semid advise` 的排版；只依赖 rich。"""

from __future__ import annotations

from typing import Any, Dict

from rich.table import Table

from .language import both, pick
from .text import facts, new_console, show_evaluation

__all__ = ["show_advice", "show_evaluation"]

_DECISIONS = {
    "keep": both("用起点", "keep the rule"),
    "shrink": both("减半：加倍几乎不再消误差", "shrink: doubling hardly helps"),
    "grow": both("加倍：还能消不少误差", "grow: doubling still helps"),
}


def show_advice(result: Dict[str, Any], lang: str) -> None:
    """建议、每层的依据、可以直接复制的选项。"""
    console = new_console()
    sizes = ",".join(map(str, result["codebook_sizes"]))
    rows = [
        (both("物品数", "items"), f"{result['num_items']:,}"),
        (both("抽样 / 留出", "sample / held back"), f"{result['num_sample_rows']:,} / {result['num_holdout_rows']:,}"),
        (both("ID 的容量是物品数的", "IDs per item"), f"{result['capacity_ratio']:.3g} ×"),
    ]
    console.print(facts(rows, lang))
    table = Table(box=None, pad_edge=False)
    heads = (both("层", "level"), both("起点", "rule"), both("建议", "size"), both("抽样上的 K", "K on sample"))
    tail = (both("加倍消掉", "doubling removes"), both("这层消掉", "level removes"), both("依据", "why"))
    for head in (*heads, *tail):
        table.add_column(pick(head, lang), justify="right")
    for level in result["levels"]:
        why = pick(_DECISIONS[level["decision"]], lang)
        row = (str(level["rule"]), str(level["size"]), str(level["measured_at"]))
        table.add_row(f"L{level['level']}", *row, f"{level['gain']:.1%}", f"{level['removed']:.1%}", why)
    console.print(table)
    console.print(f"semid train … --codebook-sizes {sizes}")
