"""物品表的命令：lookup、update、migrate、drift、import、export；由 `cli.py` 登记，动作在 `commands_catalog.py`。"""

from __future__ import annotations

from typing import List

__all__ = ["fill_unique"]


def fill_unique(arguments: List[str]) -> List[str]:
    """`--unique` 后面没有值就是 suffix；typer 的选项不能省略值，所以在解析之前补上。"""
    out: List[str] = []
    for i, argument in enumerate(arguments):
        out.append(argument)
        if argument == "--unique" and (i + 1 == len(arguments) or arguments[i + 1].startswith("-")):
            out.append("suffix")
    return out
