"""报告里的数字怎样说成人话：每个问题一块，一个值、一句结论；对比表的每一行与谁最好。

只认 evaluation.json 的内容，纯函数；名字取它自带的图例，写法与问题取 `metrics/records/`，结论的句子是评估时写下的，
这里不再判断一遍。
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..evaluation.verdicts import SEVERITIES
from ..metrics import records
from ..metrics.records.base import CannotTell, Known, Metric, Pair, Tile

__all__ = ["QuestionTile", "compare_rows", "figure_tiles", "format_metric", "overall"]


class QuestionTile(NamedTuple):
    """一个问题。

    Attributes:
        metric: 关键数字的键。
        question: 产品经理会问的问题。
        value: 标题数字。
        detail: 数字下面的一行。
        severity: bad、watch、unknown、ok；没有结论为 none。
        verdicts: 评估写下的结论，最严重的在前。
    """

    metric: str
    question: Pair
    value: str
    detail: Pair
    severity: str
    verdicts: List[Pair]


def figure_tiles(evaluation: Mapping[str, Any]) -> List[QuestionTile]:
    """量到的每个问题一块；没有归处的结论各自成块，不会丢。

    Args:
        evaluation: evaluation.json 的内容。

    Returns:
        次序同 `records.METRICS`。
    """
    figures = {**evaluation["metrics"], **{key: evaluation[key] for key in ("num_items", "codebook_sizes")}}
    left = list(evaluation["verdicts"])
    tiles: List[QuestionTile] = []
    for family in records.questions():
        keys = {metric.key for metric in family}
        mine = [verdict for verdict in left if verdict.get("metric") in keys]
        left = [verdict for verdict in left if verdict.get("metric") not in keys]
        head = family[0]
        if figures.get(head.key) is not None and (head.judge or head.in_table):
            value, detail = _headline(head, figures)
            tiles.append(QuestionTile(head.key, head.question, value, detail, *_judged(mine)))
        elif mine:
            tiles.append(QuestionTile(head.key, head.question, "–", ("", ""), *_judged(mine)))
    for verdict in left:
        key = str(verdict.get("metric", ""))
        name = next(((e["zh"], e["en"]) for e in evaluation["legend"] if e.get("key") == key), (key, key))
        value = "" if isinstance(figures.get(key), list) else format_metric(key, figures.get(key))
        tiles.append(QuestionTile(key, name, value, ("", ""), *_judged([verdict])))
    return tiles


def overall(tiles: Sequence[QuestionTile]) -> Tuple[str, Pair]:
    """(最严重的一档, 一句总评)。"""
    bad, watch, unknown = (sum(tile.severity == kind for tile in tiles) for kind in ("bad", "watch", "unknown"))
    if bad:
        return "bad", (f"先修这 {bad} 处，再拿去训练推荐模型", f"fix {bad} of these before training a recommender")
    if watch:
        return "watch", (f"可以用，有 {watch} 处值得看一眼", f"usable; {watch} worth a look")
    if unknown:
        return "unknown", (
            f"没有发现问题，但有 {unknown} 处没法判断",
            f"nothing to worry about found, but {unknown} could not be judged",
        )
    return "ok", ("没有发现问题", "nothing to worry about")


def format_metric(key: str, value: Any) -> str:
    """一个数字的写法；没有记录的键（别的版本写的）按一般的数写。"""
    return _metric(key).show(value)


def compare_rows(evaluations: Sequence[Mapping[str, Any] | None]) -> List[Dict[str, Any]]:
    """对比表：每个指标一行（逐层、逐前缀的各一行），每个运行一格。

    Args:
        evaluations: 各运行的 evaluation.json；None 为没有评估过。

    Returns:
        每行 {key, name (中, 英), cells: [文字], best: [是否最好], main: 是否关键数字}。
    """
    entries: Dict[str, Mapping[str, Any]] = {}
    for evaluation in evaluations:
        for entry in (evaluation or {}).get("legend", []):
            entries.setdefault(entry["key"], entry)
    heads = {family[0].key for family in records.questions()}
    rows = []
    for key, entry in entries.items():
        values = [None if e is None else e["metrics"].get(key) for e in evaluations]
        width = max((len(v) for v in values if isinstance(v, list)), default=0)
        better = entry.get("direction", _metric(key).better)
        for part in range(width) if width else [None]:
            cells = [_part(value, part) for value in values]
            tail = "" if part is None else f" L1–L{part + 1}" if "prefix" in entry["unit"] and part else f" L{part + 1}"
            rows.append(
                {
                    "key": key,
                    "name": (entry["zh"] + tail, entry["en"] + tail),
                    "cells": [format_metric(key, cell) for cell in cells],
                    "best": _best(better, cells),
                    "main": key in heads and part in (None, 0),
                }
            )
    return rows


def _metric(key: str) -> Metric:
    """键 → 记录；没有的给一条只会写数字的。"""
    found = records.by_key().get(key)
    return found or Metric(key, (key, key), ("", ""), "", ("", ""), lambda measured: None)


def _headline(metric: Metric, figures: Mapping[str, Any]) -> Tile:
    """一块的大字与说明；没有专门写法的就是数字与名字。"""
    if metric.tile is not None:
        with suppress(CannotTell):  # 别的版本写的评估可能缺一半
            return metric.tile(Known(figures))
    value = figures[metric.key]
    return Tile(metric.show(value[0] if isinstance(value, list) and value else value), metric.name)


def _judged(verdicts: List[Mapping[str, Any]]) -> Tuple[str, List[Pair]]:
    """(最严重的一档, 句子)，严重的在前；认不出的档当作 watch，宁可多看一眼。"""
    ranked = sorted(verdicts, key=lambda verdict: SEVERITIES.index(_severity(verdict)))
    return (_severity(ranked[0]) if ranked else "none"), [(v["zh"], v["en"]) for v in ranked]


def _severity(verdict: Mapping[str, Any]) -> str:
    found = verdict.get("severity")
    return found if found in SEVERITIES else "watch"


def _part(value: Any, part: int | None) -> Any:
    """列表取一项，短了就是 None；标量原样。"""
    if part is None or not isinstance(value, list):
        return value if part is None else None
    return value[part] if part < len(value) else None


def _best(better: str, cells: Sequence[Any]) -> List[bool]:
    """哪一格最好；不到两个数字、全都一样或不评好坏的指标，都没有最好。"""
    known = [cell for cell in cells if isinstance(cell, (int, float))]
    if len(known) < 2 or min(known) == max(known) or better not in ("lower", "higher"):
        return [False] * len(cells)
    target = min(known) if better == "lower" else max(known)
    return [cell == target for cell in cells]
