"""一个指标是一条 `Metric` 加一个函数；评估、图例、体检、命令行的表与报告都从这一条里读。

加指标的做法见 CONTRIBUTING.md。两种语言的文字是数据，写在 (中文, 英文) 里，不散在代码中。
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Tuple

__all__ = [
    "ALL_ITEMS",
    "CannotTell",
    "Figures",
    "Known",
    "Metric",
    "Pair",
    "Sentence",
    "Tile",
    "Verdict",
    "share",
    "steps",
]

Pair = Tuple[str, str]  # (中文, 英文)
Figures = Mapping[str, Any]  # 指标的键 → 数字、逐项的列表或 None；另有 num_items、codebook_sizes 等说明

ALL_ITEMS: Pair = ("全部物品", "all items")
_UNITS: Dict[str, Pair] = {
    "level": ("每层一个", "one per level"),
    "prefix": ("每个前缀长度一个", "one per prefix length"),
}


class Verdict(NamedTuple):
    """一条结论。

    Attributes:
        code: 稳定的英文代号，写进 JSON。
        severity: ok、watch（值得看一眼）、bad（先修它）或 unknown（没法判断，句子里说原因）。
        zh: 中文一句话：现象、原因、办法。
        en: 英文一句话。
        metric: 根据哪个指标。
    """

    code: str
    severity: str
    zh: str
    en: str
    metric: str


class Sentence(NamedTuple):
    """体检的一句话，数字留空。

    Attributes:
        code: 代号。
        zh: 中文模板：现象、原因、办法。
        en: 英文模板。
        metric: 根据哪个指标；空为判它的那一个。
    """

    code: str
    zh: str
    en: str
    metric: str = ""

    def says(self, severity: str, **values: Any) -> Verdict:
        """填好两种语言的句子。"""
        return Verdict(self.code, severity, self.zh.format(**values), self.en.format(**values), self.metric)


class Tile(NamedTuple):
    """报告里的一个关键数字：大字与下面的一行。"""

    value: str
    detail: Pair


class CannotTell(Exception):
    """判断要用的数字没有，或没有定义；`args[0]` 是它的键。"""


class Known:
    """体检看到的数字：取一个没有的、没有定义的（None、NaN、无穷），就是没法判断，而不是当作没有问题。"""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def __getitem__(self, key: str) -> Any:
        """一个数或逐项的列表。

        Raises:
            CannotTell: 没有，或其中有没有定义的。
        """
        value = self._figures.get(key)
        if _undefined(value):
            raise CannotTell(key)
        return value

    def first(self, key: str) -> float:
        """一个数，或逐项的第一项（L1）。

        Raises:
            CannotTell: 没有，或没有定义。
        """
        value = self._figures.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if _undefined(value):
            raise CannotTell(key)
        return float(value)  # type: ignore[arg-type]

    def get(self, key: str, otherwise: Any = None) -> Any:
        """不是非有不可的数；没有定义的当作没有。"""
        value = self._figures.get(key)
        return otherwise if _undefined(value) else value


@dataclass(frozen=True)
class Metric:
    """一个指标。

    Attributes:
        key: 英文键，写进 JSON。
        name: 名字。
        formula: 公式与口径。
        range: 取值范围。
        question: 它回答哪个问题；同一问题的第一个指标在报告里占一块，问题的结论都归到那里。
        measure: 量它的函数，参数是 `Measured`；没有定义时返回 None。
        needs: 量它要先有什么，`Measured` 的字段名；缺一样就不量，结果里没有这个键。
        better: higher、lower，或空（不评好坏）。
        population: 在哪些物品上算。
        source: 出处。
        unit: 单位；逐层、逐前缀的写在 `per`。
        per: level（每层一个）、prefix（每个前缀长度一个）或空（一个数）。
        style: share（写成百分数）或空（四位有效数字）。
        chance: 随机水平的键，写在括号里。
        in_table: 命令行的表里有没有它。
        judge: 由全部数字得出结论，至少一条；要用的数没有定义就成为「没法判断」；None 为不判。
        tile: 报告里怎样写；None 为数字本身。
    """

    key: str
    name: Pair
    formula: Pair
    range: str
    question: Pair
    measure: Callable[[Any], Any]
    needs: Tuple[str, ...] = ()
    better: str = ""
    population: Pair = ALL_ITEMS
    source: str = ""
    unit: Pair = ("", "")
    per: str = ""
    style: str = ""
    chance: str = ""
    in_table: bool = True
    judge: Callable[[Known], Iterable[Verdict]] | None = None
    tile: Callable[[Known], Tile] | None = None

    def show(self, value: Any) -> str:
        """一个数字的写法；逐项的一项一项写，没有的写短横。"""
        if isinstance(value, list):
            return " · ".join(map(self.show, value)) or "–"
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "–"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return str(value)
        if self.style == "share":
            return share(value)
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

    def legend(self) -> Dict[str, str]:
        """图例的一项，原样写进评估目录。"""
        units = zip(("，", ", "), self.unit, _UNITS.get(self.per, ("", "")), strict=True)
        unit = [glue.join(filter(None, parts)) for glue, *parts in units]
        return {
            "key": self.key,
            "zh": self.name[0],
            "en": self.name[1],
            "definition_zh": self.formula[0],
            "definition_en": self.formula[1],
            "unit": " / ".join(unit) if any(unit) else "",
            "range": self.range,
            "population": " / ".join(self.population),
            "source": self.source,
            "direction": self.better or "none",
            "question_zh": self.question[0],
            "question_en": self.question[1],
        }


def share(value: float) -> str:
    """占比写成百分数；很小而不是零的不写成 0.00%。"""
    if 0 < value < 0.00005:
        return "<0.01%"
    return f"{value:.2%}" if abs(value) < 0.1 else f"{value:.1%}"


def _undefined(value: Any) -> bool:
    """这个值里有没有定义不了的。"""
    if isinstance(value, list):
        return not value or any(map(_undefined, value))
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def steps(values: List[float]) -> str:
    """逐层的比值写成一行：L1 0.97 · L2 0.93。"""
    return " · ".join(f"L{level} {value:.2f}" for level, value in enumerate(values, 1))
