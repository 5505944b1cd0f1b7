"""行为的指标：前缀懂得用户行为吗，近邻里有用户会一起消费的物品吗。

下游对照（`benchmarks/bench_downstream.py`）里，说得准推荐好坏的只有共同消费提升（L1）；误差、困惑度、邻居占比、冲突率
各管别的事：塌没塌、够不够用、能不能认回物品。所以有数据时这里的结论排在最前面。
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, Tuple

import numpy as np

from ..behaviour import embedding_hit_rate
from .base import Known, Metric, Sentence, Tile, Verdict, share
from .measured import Measured

__all__ = ["HIT_KS", "METRICS"]

PREFIX = ("前缀懂得用户行为吗？", "Do prefixes know behaviour?")
NEAR = ("近邻里有用户会一起消费的物品吗？", "Do neighbours hold what users consume together?")
PAIRS = (
    "行为里的全部物品对，两个都在特征里",
    "all item pairs of the interactions that the features know",
)
QUERIES = (
    "有行为的物品（种子 0，至多 1000），候选为全部物品",
    "items with interactions, a seeded sample of up to 1000, against all items",
)
HIT_KS = (10, 100)

# 一起消费的物品共享 L1 的提升度：1 是没有关系
LIFT = (1.1, 1.5)
# 随机也有三成以上共享 L1 时，提升度到不了高处，改看走完了余地的多少；九成以上没有余地
GAIN, EXPECTED_LARGE, EXPECTED_FULL = (0.05, 0.2), 0.3, 0.9
# 下游对照里（L1 256 个码字，同一个生成模型）提升度 5.4 以下的四种 ID Recall@10 都在 .048 以下，
# 16.5 以上的六种都在 .056 以上；线取在两群之间。码字少时提升度的上限也低，所以 L1 不到 128 个码字不看这条
LIFT_THIN, LIFT_THIN_CODES = 8.0, 128
# 物品对少于这么多时，提升度与命中率多半是碰巧
LEAST_PAIRS = 100
# 重建向量留住的命中率不到原特征的七成
HIT_RATE_KEPT = 0.7
# 随机就能命中两成以上：物品太少，十个近邻说明不了什么
HIT_CHANCE = 0.2

STRONG = Sentence(
    "co_consumption_lift_ok",
    "一起消费的物品共享 L1 是随机的 {lift:.1f} 倍；我们的下游对照里它最能预示推荐的好坏。",
    "items consumed together share L1 {lift:.1f} times as often as chance; in our downstream benchmark this "
    "figure best foretold recommendation quality.",
)
COARSE = Sentence(
    "behaviour_coarse",
    "一起消费的物品共享 L1 是随机的 {lift:.1f} 倍；L1 只有 {codes} 个码字，倍数本来就高不了，请与同样大小的另一套 ID "
    "比。",
    "items consumed together share L1 {lift:.1f} times as often as chance; L1 has only {codes} codewords, which bounds "
    "the figure: compare with other IDs of the same size.",
)
WEAK = Sentence(
    "behaviour_weak",
    "一起消费的物品共享 L1 只是随机的 {lift:.2f} 倍：ID 只懂内容、不懂行为。训练时加 --pairs，或用行为模型的向量。",
    "items consumed together share L1 only {lift:.2f} times as often as chance: the IDs know content, not "
    "behaviour. Train with --pairs, or use vectors of a behaviour model.",
)
THIN = Sentence(
    "behaviour_thin",
    "一起消费的物品共享 L1 是随机的 {lift:.1f} 倍；我们的下游对照里，不到 {line:.0f} 倍的 ID 推荐得都不好"
    "（别的数据上先与另一套 ID 比）。训练时加 --pairs，或换一种懂行为的特征。",
    "items consumed together share L1 {lift:.1f} times as often as chance; in our downstream benchmark every ID "
    "under {line:.0f} recommended poorly (on other data compare with another run first). Train with --pairs, or "
    "use features that know behaviour.",
)
FULL = Sentence(
    "behaviour_unknown",
    "没有判断前缀懂不懂行为：流行度相同的随机对就有 {expected} 共享 L1，分不出高下。先让 L1 的码字都用上。",
    "not judged whether prefixes know behaviour: {expected} of popularity-matched random pairs share L1 already. First "
    "bring the codewords of L1 into use.",
)
FEW_PAIRS = Sentence(
    "behaviour_few_pairs",
    "没有判断行为：只有 {pairs} 个物品对，多半是碰巧。给更多的行为。",
    "not judged against behaviour: {pairs} item pairs are too few to tell from luck. Give more interactions.",
)
HITS = Sentence(
    "embedding_hit_rate_10_ok",
    "一起消费的物品有 {raw} 在特征的十近邻里，随机是 {chance}。",
    "{raw} of co-consumed items are among the ten nearest features, {chance} at random.",
)
NO_BEHAVIOUR = Sentence(
    "features_without_behaviour",
    "一起消费的物品只有 {raw} 在特征的十近邻里，随机是 {chance}：特征本身不含行为，换码本没有用。"
    "换特征，或训练时加 --pairs。",
    "only {raw} of co-consumed items are among the ten nearest features, {chance} at random: the features themselves "
    "lack behaviour. Change the features, or train with --pairs.",
)
LOST = Sentence(
    "hit_rate_lost",
    "命中率从特征的 {raw} 掉到重建的 {kept}：量化磨掉了近邻。加大码本、加一层，或用 --effort max。",
    "hit rate falls from {raw} on features to {kept} on reconstructions: quantisation blurs neighbours. "
    "Enlarge codebooks, add a level, or train with --effort max.",
    "reconstruction_hit_rate_10",
)
FEW_ITEMS = Sentence(
    "hit_rate_unknown",
    "没有判断近邻里的行为：随机挑十个物品就能命中 {chance}，物品太少。在更多物品上评估。",
    "not judged whether neighbours hold behaviour: ten random items hit {chance} already. Evaluate on more items.",
)


def judge_lift(f: Known) -> Iterator[Verdict]:
    """提升度够不够；随机水平高时改看余地，对太少或没有余地时说没法判断。"""
    lift, expected, pairs = f.first("co_consumption_lift"), f.get("co_consumption_expected"), f.get("num_pairs")
    codes = f["codebook_sizes"][0]
    level, (bad, watch) = lift, LIFT
    if expected is not None and expected[0] >= EXPECTED_LARGE:
        level = (lift - 1) * expected[0] / max(1 - expected[0], 1e-12)  # (实际 − 期望) / (1 − 期望)
        bad, watch = GAIN
    if pairs is not None and pairs < LEAST_PAIRS:
        yield FEW_PAIRS.says("unknown", pairs=pairs)
    elif expected is not None and expected[0] > EXPECTED_FULL:
        yield FULL.says("unknown", expected=share(expected[0]))
    elif level < watch:
        yield WEAK.says("bad" if level < bad else "watch", lift=lift)
    elif codes < LIFT_THIN_CODES:
        yield COARSE.says("ok", lift=lift, codes=codes)
    elif lift < LIFT_THIN:
        yield THIN.says("watch", lift=lift, line=LIFT_THIN)
    else:
        yield STRONG.says("ok", lift=lift)


def judge_hits(f: Known) -> Iterator[Verdict]:
    """先看特征自己有没有行为，再看量化留住了多少。"""
    raw, chance = f["embedding_hit_rate_10"], f["embedding_hit_rate_10_chance"]
    kept, pairs = f.get("reconstruction_hit_rate_10"), f.get("num_pairs")
    values = {"raw": share(raw), "chance": share(chance), "kept": "–" if kept is None else share(kept)}
    if pairs is not None and pairs < LEAST_PAIRS:
        yield FEW_PAIRS.says("unknown", pairs=pairs)
    elif chance > HIT_CHANCE:
        yield FEW_ITEMS.says("unknown", **values)
    elif raw < 2 * chance:
        yield NO_BEHAVIOUR.says("watch", **values)
    elif kept is not None and kept < HIT_RATE_KEPT * raw:
        yield LOST.says("watch", **values)
    else:
        yield HITS.says("ok", **values)


def _lift_tile(f: Known) -> Tile:
    zh, en = "一起消费的物品共享 L1 的机会，比随机", "co-consumed items share L1, against chance"
    return Tile(f"{f.first('co_consumption_lift'):.1f}×", (zh, en))


def _hit_tile(f: Known) -> Tile:
    kept, chance = (f.get(key) for key in ("reconstruction_hit_rate_10", "embedding_hit_rate_10_chance"))
    kept, chance = ("–" if value is None else share(value) for value in (kept, chance))
    zh = f"特征的前十近邻；重建后 {kept}，随机 {chance}"
    return Tile(share(f["embedding_hit_rate_10"]), (zh, f"in ten nearest features; {kept} rebuilt, {chance} at random"))


def _hit_rate(neighbours: str, k: int) -> Callable[[Measured], Any]:
    """在哪一种向量的前 k 个近邻里数；近邻不够 k 个（物品太少）时没有定义。"""

    def measure(m: Measured) -> float | None:
        near: np.ndarray = getattr(m, neighbours)
        return None if near.shape[1] < k else embedding_hit_rate(near, m.partners or [], k)

    return measure


def _hit_records(k: int) -> List[Metric]:
    """前 k 个近邻的三条：特征、重建、随机水平。"""
    out = []
    for kind, zh, en in (("embedding", "特征", "features"), ("reconstruction", "重建", "reconstructions")):
        headline = kind == "embedding" and k == HIT_KS[0]
        near = "near_features" if kind == "embedding" else "near_reconstructions"
        out.append(
            Metric(
                key=f"{kind}_hit_rate_{k}",
                name=(f"嵌入命中率@{k}（{zh}）", f"embedding hit rate@{k} ({en})"),
                formula=(
                    f"一个物品被一起消费过的物品，有多少在它{zh}向量的前 {k} 个余弦近邻里；先对物品、再对查询平均",
                    f"share of an item's co-consumed items among the {k} nearest {en} (cosine), averaged over queries",
                ),
                range="[0, 1]",
                question=NEAR,
                better="" if kind == "embedding" else "higher",
                population=QUERIES,
                style="share",
                chance=f"embedding_hit_rate_{k}_chance",
                source="FORGE, 2025, arXiv:2509.20904",
                in_table=k == HIT_KS[0],
                needs=(near, "partners"),
                measure=_hit_rate(near, k),
                judge=judge_hits if headline else None,
                tile=_hit_tile if headline else None,
            )
        )
    chance = Metric(
        key=f"embedding_hit_rate_{k}_chance",
        name=(f"随机的命中率@{k}", f"hit rate@{k} at random"),
        formula=("K / (N − 1)", "K / (N − 1)"),
        range="[0, 1]",
        question=NEAR,
        style="share",
        in_table=False,
        needs=("near_features",),
        measure=lambda m: None if m.near_features.shape[1] < k else k / (m.num_items - 1),
    )
    return [*out, chance]


METRICS: Tuple[Metric, ...] = (
    Metric(
        key="co_consumption_lift",
        name=("共同消费提升", "co-consumption lift"),
        formula=(
            "一起消费而共享前缀的比例 / 流行度相同的随机对的同一比例；1 为没有关系",
            "share of co-consumed pairs with the same prefix / the same share of popularity-matched random pairs; 1 "
            "is no relation",
        ),
        range="[0, ∞)",
        question=PREFIX,
        better="higher",
        population=PAIRS,
        per="prefix",
        source="Brin et al., 1997, SIGMOD",
        needs=("pairs",),
        measure=lambda m: m.co_consumption[2],
        judge=judge_lift,
        tile=_lift_tile,
    ),
    Metric(
        key="co_consumption",
        name=("一起消费而共享前缀", "co-consumed pairs that share a prefix"),
        formula=("物品对里共享前 l 个编号的比例", "share of pairs with the same first l codes"),
        range="[0, 1]",
        question=PREFIX,
        better="higher",
        population=PAIRS,
        per="prefix",
        style="share",
        chance="co_consumption_expected",
        source="LETTER, 2024, arXiv:2405.07314",
        in_table=False,
        needs=("pairs",),
        measure=lambda m: m.co_consumption[0],
    ),
    Metric(
        key="co_consumption_expected",
        name=("流行度相同的随机对", "popularity-matched random pairs"),
        formula=(
            "把各对的第二个物品随机重排之后的同一比例（算出来的，不抽样）",
            "the same share after permuting the second items (computed, not sampled)",
        ),
        range="[0, 1]",
        question=PREFIX,
        population=PAIRS,
        per="prefix",
        style="share",
        in_table=False,
        needs=("pairs",),
        measure=lambda m: m.co_consumption[1],
    ),
    *(record for k in HIT_KS for record in _hit_records(k)),
)
