"""泛化的指标：没见过的物品也编得好吗。"""

from __future__ import annotations

from typing import Iterator, List

import numpy as np

from ..codes import collision_rate
from ..meaning import prefix_groups
from .base import Known, Metric, Sentence, Tile, Verdict
from .measured import Measured

__all__ = ["METRICS"]

QUESTION = ("没见过的物品也编得好吗？", "Do unseen items encode well?")
UNSEEN = ("--unseen 的全部物品", "all items of --unseen")

# 没见过的物品误差是见过的多少倍；两者只差这么一点时，倍数没有意义
GENERALISATION, LEAST_GAP = (1.25, 2.0), 0.01
# 比见过的还容易：不是泛化好，而是这批物品简单，或根本就见过
EASIER = 0.8
LEAST_ITEMS = 50

WELL = Sentence(
    "generalisation_ratio_ok",
    "没见过的物品误差是见过的 {ratio:.2f} 倍：泛化正常。",
    "unseen items have {ratio:.2f} times the error of seen ones: it generalises.",
)
GAP = Sentence(
    "generalisation_gap",
    "没见过的物品相对误差 {unseen:.2f}，见过的 {seen:.2f}，{ratio:.2f} 倍：码本记住了训练行。"
    "用更多的行训练，或减小 L2、L3。",
    "relative error {unseen:.2f} on unseen items against {seen:.2f} on seen ones, {ratio:.2f} times: the codebooks "
    "memorise training rows. Train on more rows, or shrink L2 and L3.",
)
TOO_EASY = Sentence(
    "generalisation_easier",
    "没有判断泛化：没见过的物品误差只有见过的 {ratio:.2f} 倍，这批物品要么简单，要么训练时见过。换一批真正没见过的。",
    "not judged whether it generalises: unseen items have only {ratio:.2f} times the error of seen ones, so they are "
    "easy or were seen in training. Give items that training never saw.",
)
FEW = Sentence(
    "generalisation_few_items",
    "没有判断泛化：没见过的物品只有 {rows} 个。给更多。",
    "not judged whether it generalises: there are only {rows} unseen items. Give more.",
)


def judge_generalisation(f: Known) -> Iterator[Verdict]:
    """两头都要看：差得多是没泛化，好得出奇是量错了东西。"""
    ratio, seen, unseen = f["generalisation_ratio"], f["relative_mse"], f["unseen_relative_mse"]
    rows = f.get("unseen_num_items", LEAST_ITEMS)
    if rows < LEAST_ITEMS:
        yield FEW.says("unknown", rows=rows)
    elif abs(unseen - seen) <= LEAST_GAP:
        yield WELL.says("ok", ratio=ratio)
    elif ratio < EASIER:
        yield TOO_EASY.says("unknown", ratio=ratio)
    elif ratio > GENERALISATION[0]:
        severity = "bad" if ratio > GENERALISATION[1] else "watch"
        yield GAP.says(severity, ratio=ratio, seen=seen, unseen=unseen)
    else:
        yield WELL.says("ok", ratio=ratio)


def _ratio(m: Measured) -> float | None:
    """没见过的物品的相对误差 / 见过的；哪个没有定义，或见过的恰为 0，都没有定义。"""
    assert m.unseen is not None
    seen, unseen = m.relative_mse, m.unseen.relative_mse
    return None if unseen is None or not seen else unseen / seen


def _known_prefixes(m: Measured) -> List[float]:
    """逐个前缀长度：没见过的物品里，前缀出现过的比例。"""
    assert m.unseen is not None
    out = []
    for length in m.lengths:
        groups = prefix_groups(np.concatenate([m.codes, m.unseen.codes]), length)
        out.append(float(np.isin(groups[m.num_items :], groups[: m.num_items]).mean()))
    return out


def _tile(f: Known) -> Tile:
    rows = f.get("unseen_num_items") or 0
    zh, en = f"{rows:,} 个没见过的物品的误差，比见过的", f"error of {rows:,} unseen items, against seen ones"
    return Tile(f"{f['generalisation_ratio']:.2f}×", (zh, en))


METRICS = (
    Metric(
        key="generalisation_ratio",
        name=("泛化比", "generalisation ratio"),
        formula=("没见过的物品的相对误差 / 见过的", "relative MSE of unseen items / of seen ones"),
        range="[0, ∞)",
        question=QUESTION,
        better="lower",
        population=("FEATURES 与 --unseen 的全部物品", "all items of FEATURES and of --unseen"),
        needs=("unseen",),
        measure=_ratio,
        judge=judge_generalisation,
        tile=_tile,
    ),
    Metric(
        key="unseen_relative_mse",
        name=("没见过的物品的相对误差", "relative MSE, unseen"),
        formula=("定义同相对误差", "defined as relative MSE"),
        range="[0, ∞)",
        question=QUESTION,
        better="lower",
        population=UNSEEN,
        needs=("unseen",),
        measure=lambda m: m.unseen.relative_mse,
    ),
    Metric(
        key="unseen_collision_rate",
        name=("没见过的物品的冲突率", "collision rate, unseen"),
        formula=("定义同冲突率，只在没见过的物品之间", "defined as collision rate, among unseen items only"),
        range="[0, 1)",
        question=QUESTION,
        better="lower",
        population=UNSEEN,
        style="share",
        in_table=False,
        needs=("unseen",),
        measure=lambda m: collision_rate(m.unseen.codes),
    ),
    Metric(
        key="unseen_known_prefix_rate",
        name=("没见过的物品落在已有前缀", "unseen items on known prefixes"),
        formula=(
            "前 l 个编号在 FEATURES 里出现过的没见过的物品所占比例",
            "share of unseen items whose first l codes occur in FEATURES",
        ),
        range="[0, 1]",
        question=QUESTION,
        population=UNSEEN,
        per="prefix",
        style="share",
        in_table=False,
        needs=("unseen",),
        measure=_known_prefixes,
    ),
)
