"""码字使用的指标：码字都用上了吗。"""

from __future__ import annotations

import math
from typing import Iterator, List, Tuple

from ..codes import gini, perplexity, utilization
from .base import Known, Metric, Sentence, Tile, Verdict, share, steps

__all__ = ["METRICS"]

QUESTION = ("码字都用上了吗？", "Is every codeword in use?")

# 用到的码字不到「随机均匀使用时的期望」的一半，说明不是样本少，而是码字死了
USED_SHARE = 0.5
# 有效码字不到够得着的码字的 15%：健康的残差 k-means 在真实数据上为 0.28 以上；不到 5%：几乎塌缩成一个小码本
EVEN_SHARE, EVEN_COLLAPSED = 0.15, 0.05

CONSTANT = Sentence(
    "level_constant",
    "L{level} 上全部 {rows} 个物品都是同一个编号：这一层什么也没说。去掉它，或用 --init kmeans 重新训练。",
    "on L{level} all {rows} items have the same code: the level tells nothing. Drop it, or train again with --init "
    "kmeans.",
)
UNUSED = Sentence(
    "utilization_low",
    "L{level} 只用到 {used} 的码字，其余是死码字，常见于均匀初始化后训练太短。用 --init kmeans 重新训练，"
    "或减小这一层。",
    "L{level} uses only {used} of its codewords; the rest are dead, as after uniform init and little training. "
    "Train again with --init kmeans, or shrink this level.",
    "utilization",
)
HUBS = Sentence(
    "perplexity_low",
    "L{level} 的困惑度是 {effective:.0f}，而 {rows} 个物品够得着 {reach:.0f} 个码字：少数码字吃掉了大多数物品。"
    "用 --init kmeans 重新训练，或减小这一层。",
    "L{level} has perplexity {effective:.0f}, but {rows} items can reach {reach:.0f} codewords: a few hub codewords "
    "take most items. Train again with --init kmeans, or shrink this level.",
)
FEW_ITEMS = Sentence(
    "fewer_items_than_codewords",
    "L{level} 有 {size} 个码字，却只有 {rows} 个物品，利用率与困惑度不说明问题。用更小的码本，或在更多物品上评估。",
    "L{level} has {size} codewords but there are only {rows} items, so its utilization says little. Use a smaller "
    "codebook or evaluate on more items.",
    "utilization",
)
INFERRED = Sentence(
    "codebook_sizes_inferred",
    "没有判断码字用得怎样：各层大小 {sizes} 是由编码的最大值推出来的，真正的码本可能大得多。用 --codebook-sizes 给出。",
    "not judged whether the codewords are in use: the sizes {sizes} were inferred from the largest code of each "
    "level, and the real codebooks may be far larger. Give them with --codebook-sizes.",
    "utilization",
)
USED = Sentence(
    "perplexity_ok",
    "没有塌缩的层：用得最少的一层用到 {least} 的码字；各层困惑度占码字的 {even}。",
    "no level has collapsed: the least used one uses {least} of its codewords; perplexity as a share of them is "
    "{even}.",
)


def judge_usage(f: Known) -> Iterator[Verdict]:
    """逐层：先看是不是只有一个编号，再看死码字，再看是否扎堆；大小是推出来的就只认坏消息。"""
    found: List[Verdict] = []
    for level, (size, used, effective) in enumerate(
        zip(f["codebook_sizes"], f["utilization"], f["perplexity"], strict=True), 1
    ):
        found += _one_level(level, size, f["num_items"], used, effective)
    if f.get("codebook_sizes_inferred"):  # 推出来的大小只会偏小，所以坏结论站得住，好结论站不住
        found.append(INFERRED.says("unknown", sizes=",".join(map(str, f["codebook_sizes"]))))
    if not found:
        even = [value / size for value, size in zip(f["perplexity"], f["codebook_sizes"], strict=True)]
        found.append(USED.says("ok", least=share(min(f["utilization"])), even=steps(even)))
    yield from found


def _one_level(level: int, size: int, rows: int, used: float, effective: float) -> Tuple[Verdict, ...]:
    """一层的坏消息，没有为空。"""
    reach = size * (1.0 - math.exp(-rows / size))  # rows 个球随机投进 size 个桶，非空桶的期望个数
    if rows > 1 and effective < 1.0 + 1e-9:
        return (CONSTANT.says("bad", level=level, rows=rows),)
    if used * size < USED_SHARE * reach:
        return (UNUSED.says("bad", level=level, used=share(used)),)
    if effective < EVEN_SHARE * reach:
        severity = "bad" if effective < EVEN_COLLAPSED * reach else "watch"
        return (HUBS.says(severity, level=level, effective=effective, reach=reach, rows=rows),)
    if rows < size:
        return (FEW_ITEMS.says("watch", level=level, size=size, rows=rows),)
    return ()


def _tile(f: Known) -> Tile:
    even = steps([value / size for value, size in zip(f["perplexity"], f["codebook_sizes"], strict=True)])
    return Tile(
        f"{min(f['utilization']):.0%}",
        (f"利用率最低的一层；困惑度 / K：{even}", f"least used level; perplexity / K: {even}"),
    )


METRICS = (
    Metric(
        key="perplexity",
        name=("困惑度", "perplexity"),
        formula=(
            "exp(−Σ p ln p)：相当于有多少个码字在均匀地用",
            "exp(−Σ p ln p): how many equally used codewords the usage amounts to",
        ),
        range="[1, K]",
        question=QUESTION,
        better="higher",
        unit=("码字", "codewords"),
        per="level",
        source="van den Oord et al., 2017, arXiv:1711.00937",
        measure=lambda m: [perplexity(count) for count in m.counts],
        judge=judge_usage,
        tile=_tile,
    ),
    Metric(
        key="utilization",
        name=("利用率", "utilization"),
        formula=("至少用过一次的码字 / K", "codewords used at least once / K"),
        range="[0, 1]",
        question=QUESTION,
        better="higher",
        per="level",
        style="share",
        source="Zeghidour et al., 2021, arXiv:2107.03312",
        measure=lambda m: [utilization(count) for count in m.counts],
    ),
    Metric(
        key="gini",
        name=("码字的基尼系数", "Gini of codewords"),
        formula=(
            "使用次数的基尼系数，没用过的码字也算；0 为均匀",
            "Gini coefficient of usage counts, unused codewords included; 0 is uniform",
        ),
        range="[0, 1)",
        question=QUESTION,
        better="lower",
        per="level",
        source="Gini, 1912",
        measure=lambda m: [gini(count) for count in m.counts],
    ),
    Metric(
        key="dead_codes",
        name=("死码字", "dead codes"),
        formula=("在这批物品里一次也没用到的码字数", "codewords that none of these items uses"),
        range="[0, K]",
        question=QUESTION,
        better="lower",
        unit=("码字", "codewords"),
        per="level",
        in_table=False,
        measure=lambda m: [int((count == 0).sum()) for count in m.counts],
    ),
)
