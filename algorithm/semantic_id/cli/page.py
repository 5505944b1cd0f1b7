"""结果怎样打印：文字取所选语言，表格用 rich；来自用户的每个值都经过 `printable`，绝不当作标记解释。"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Dict, Iterable, Sequence, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..files.printable import printable
from .text import TEXTS

__all__ = ["Page", "json_line"]


def json_line(result: Dict[str, Any]) -> str:
    r"""`--json` 的一行：看不见而会动作的字符写成 \uXXXX，读回来还是原来的值。

    Raises:
        ValueError: 有 NaN 或 Inf；那是我们的缺陷。
    """
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)  # U+0020 以下已经转义
    return re.sub(r"[^\x20-\x7e]", _as_json, text)


def _as_json(found: re.Match[str]) -> str:
    """字符串里的一个字符，看不见的转义。"""
    return found[0] if printable(found[0]) == found[0] else json.dumps(found[0])[1:-1]


class Page:
    """一个命令的结果页。

    Args:
        lang: zh 或 en。
    """

    def __init__(self, lang: str) -> None:
        self._texts = TEXTS[lang]
        self._lang = lang
        # 每次新建：测试与管道会换掉 sys.stdout。标记与表情符号都不解释：标题里的 [red] 与 :smile: 就是它们自己
        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)

    @property
    def lang(self) -> str:
        """所选的语言；结果里两种语言都带着的（体检结论）按它挑。"""
        return self._lang

    def text(self, key: str, /, **values: Any) -> str:
        """取一段文字并填上值。

        Raises:
            KeyError: 没有这段文字，那是我们的缺陷。
        """
        safe = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
        return self._texts[key].format(**safe)

    def say(self, key: str, /, *, style: str = "", **values: Any) -> None:
        """打印一段文字，不折行：路径与命令要能整行复制。"""
        self._print(self.text(key, **values), style)

    def show(self, line: str = "", style: str = "") -> None:
        """打印一行不必翻译的内容。"""
        self._print(printable(line), style)

    def facts(self, rows: Iterable[Tuple[str, str]]) -> None:
        """两列：名称（键）、值。"""
        self.fields((self.text(key), value) for key, value in rows)

    def fields(self, rows: Iterable[Tuple[str, str]]) -> None:
        """两列：原样的名称、值。"""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(printable(name), printable(value))
        self._console.print(table)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 0) -> None:
        """带表头的表格。

        Args:
            heads: 表头，已经是文字。
            rows: 每行与表头一样长。
            left: 前几列靠左，其余靠右。
        """
        table = Table(box=None, pad_edge=False)
        for i, head in enumerate(heads):
            table.add_column(printable(head), justify="left" if i < left else "right")
        for row in rows:
            table.add_row(*map(printable, row))
        self._console.print(table)

    def pairs(self, rows: Iterable[Tuple[str, str, str]]) -> None:
        """两列没有表头：(第一列, 第二列, 第一列的颜色)。"""
        table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")  # 中文没有空格，默认的省略号会吃掉字
        for first, second, style in rows:
            table.add_row(Text(printable(first), style=style), printable(second))
        self._console.print(table)

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)
