"""语义的指标：相似的物品共享前缀吗，前缀懂得类目吗。"""

from __future__ import annotations

from typing import Iterator

from ..meaning import neighbour_share, prefix_chance
from .base import Known, Metric, Sentence, Tile, Verdict, share

__all__ = ["METRICS"]

NEAR = ("相似的物品共享前缀吗？", "Do similar items share a prefix?")
CATEGORY = ("前缀懂得类目吗？", "Do prefixes know the categories?")
SAMPLE = (
    "抽样查询（种子 0，至多 1000），候选为全部物品",
    "seeded sample of up to 1000 queries against all items",
)
LABELLED = ("有标签的物品", "items with a label")

# 邻居共享 L1 的占比不到随机的 1.5 倍（坏）、3 倍（看一眼）；随机水平三成以上时倍数到不了 3，改看离「全部共享」还有多远
NEIGHBOUR_LIFT, NEIGHBOUR_GAIN = (1.5, 3.0), (0.2, 0.5)
CHANCE_LARGE = 0.3
# 随机水平九成以上：抽样误差（0.016）与剩下的余地差不多大，分不出好坏
CHANCE_FULL = 0.9
# 邻居里共享 L1 的不到 5%：比随机多也没有用，前缀帮不了近邻
SHARE_THIN = 0.05
# 不到这么多物品时，占比的误差比要分辨的还大
LEAST_ITEMS = 50
# L1 的标签纯度：走完从打乱标签到全对的不到一成
PURITY_GAIN, PURITY_FULL = 0.1, 0.95

CARRIES = Sentence(
    "neighbour_share_ok",
    "最近的邻居里 {share} 共享 L1，随机只有 {chance}：前缀有语义。",
    "{share} of nearest neighbours share L1, {chance} at random: prefixes carry meaning.",
)
WEAK = Sentence(
    "hierarchy_weak",
    "最近的邻居里只有 {share} 共享 L1，随机是 {chance}：前缀几乎不含语义。"
    "多半是编码与特征的行序没对齐，或 ID 是散列来的；对齐，或用 semid train 训练残差量化的 ID。",
    "only {share} of nearest neighbours share L1, {chance} at random: the prefix carries no meaning. Codes "
    "and features are probably not in the same order, or the IDs are hashes: align them, or train with semid train.",
)
SOMEWHAT = Sentence(
    "hierarchy_some",
    "最近的邻居里 {share} 共享 L1，随机是 {chance}：前缀有一点语义，不多。换小一些的 L1，或多训练几轮。",
    "{share} of nearest neighbours share L1, {chance} at random: the prefix carries some meaning, not much. Use a "
    "smaller L1, or train for more epochs.",
)
FINE = Sentence(
    "hierarchy_fine",
    "最近的邻居里只有 {share} 共享 L1（随机 {chance}）：L1 分得太细，邻居也不在一起。换小一些的 L1。",
    "only {share} of nearest neighbours share L1 ({chance} at random): L1 is so fine that even neighbours are apart. "
    "Use a smaller L1.",
)
ALONE = Sentence(
    "hierarchy_alone",
    "没有两个物品共享 L1：前缀不成组，谈不上语义。换小得多的 L1。",
    "no two items share an L1 code: prefixes group nothing and carry no meaning. Use a much smaller L1.",
)
FULL = Sentence(
    "hierarchy_unknown",
    "没有判断前缀的语义：随便两个物品就有 {chance} 共享 L1，分不出高下。先让 L1 的码字都用上。",
    "not judged whether prefixes carry meaning: {chance} of random pairs share L1 already. First bring the codewords "
    "of L1 into use.",
)
FEW = Sentence(
    "hierarchy_few_items",
    "没有判断前缀的语义：只有 {rows} 个物品。在更多物品上评估。",
    "not judged whether prefixes carry meaning: there are only {rows} items. Evaluate on more items.",
)
KNOWS = Sentence(
    "label_purity_ok",
    "按 L1 猜标签对 {purity}，打乱标签是 {chance}。",
    "guessing the label from L1 is right for {purity}, {chance} with shuffled labels.",
)
IGNORES = Sentence(
    "labels_ignored",
    "L1 的标签纯度 {purity}，打乱标签也有 {chance}：前缀与类目无关。"
    "检查物品信息与特征是否对齐；对齐了，就是特征里没有类目，换一种或拼上类目的文本。",
    "label purity of L1 is {purity}, {chance} with shuffled labels: prefixes ignore the labels. Check that items and "
    "features are aligned; if so the features lack the category: add its text to the embedding.",
)
ONE_LABEL = Sentence(
    "labels_one",
    "没有判断类目：全部物品是同一个标签。换一个标签列。",
    "not judged whether prefixes know the categories: every item has the same label. Choose another label column.",
)
NO_ROOM = Sentence(
    "labels_unknown",
    "没有判断类目：标签打乱之后也能猜对 {chance}，没有余地看出好坏（标签太偏，或 L1 几乎一件一组）。换标签列，"
    "或换小一些的 L1。",
    "not judged whether prefixes know the categories: shuffled labels are guessed right for {chance} already (one "
    "label dominates, or L1 holds about one item a group). Choose another label column, or a smaller L1.",
)


def judge_neighbours(f: Known) -> Iterator[Verdict]:
    """按随机水平分三段；两头没法分辨的说没法分辨。"""
    near, chance, rows = f.first("neighbour_share"), f.first("prefix_chance"), f["num_items"]
    values = {"share": share(near), "chance": share(chance)}
    if rows < LEAST_ITEMS:
        yield FEW.says("unknown", rows=rows)
    elif chance == 0:
        yield ALONE.says("watch")
    elif chance > CHANCE_FULL:
        yield FULL.says("unknown", **values)
    else:
        bad, watch = NEIGHBOUR_LIFT if chance < CHANCE_LARGE else NEIGHBOUR_GAIN
        value = near / chance if chance < CHANCE_LARGE else (near - chance) / (1 - chance)
        if value < bad:
            yield WEAK.says("bad", **values)
        elif value < watch:
            yield SOMEWHAT.says("watch", **values)
        else:
            yield FINE.says("watch", **values) if near < SHARE_THIN else CARRIES.says("ok", **values)


def judge_labels(f: Known) -> Iterator[Verdict]:
    """与打乱的标签比，看走完了余地的多少；没有余地的说没有。"""
    purity, chance = f.first("label_purity"), f.first("label_purity_chance")
    values = {"purity": share(purity), "chance": share(chance)}
    if f.get("num_labels", 2) < 2:
        yield ONE_LABEL.says("unknown")
    elif chance > PURITY_FULL:
        yield NO_ROOM.says("unknown", **values)
    elif (purity - chance) / (1 - chance) < PURITY_GAIN:
        yield IGNORES.says("watch", **values)
    else:
        yield KNOWS.says("ok", **values)


def _near_tile(f: Known) -> Tile:
    chance = share((f.get("prefix_chance") or [0.0])[0])
    zh, en = f"十个最近的物品里共享 L1 的；随机 {chance}", f"of the ten nearest items share L1; {chance} at random"
    return Tile(f"{f['neighbour_share'][0]:.0%}", (zh, en))


def _label_tile(f: Known) -> Tile:
    chance = share((f.get("label_purity_chance") or [0.0])[0])
    zh, en = f"只看 L1 就猜对标签的；打乱后 {chance}", f"of labels guessed from L1 alone; {chance} when shuffled"
    return Tile(f"{f['label_purity'][0]:.0%}", (zh, en))


METRICS = (
    Metric(
        key="neighbour_share",
        name=("邻居占比", "neighbour share"),
        formula=(
            "十个最近的物品（欧氏、精确）里共享前 l 个编号的比例",
            "share of the ten nearest items (Euclidean, exact) that have the same first l codes",
        ),
        range="[0, 1]",
        question=NEAR,
        better="higher",
        population=SAMPLE,
        per="prefix",
        style="share",
        chance="prefix_chance",
        source="Jégou et al., 2011, TPAMI 33",
        needs=("neighbours", "queries"),
        measure=lambda m: neighbour_share(m.codes, m.neighbours, m.queries),
        judge=judge_neighbours,
        tile=_near_tile,
    ),
    Metric(
        key="prefix_chance",
        name=("随机两件共享前缀", "prefix shared at random"),
        formula=("任意另一个物品共享前 l 个编号的概率", "probability that any other item has the same first l codes"),
        range="[0, 1]",
        question=NEAR,
        per="prefix",
        style="share",
        source="Rand, 1971, JASA 66",
        in_table=False,
        needs=("neighbours",),
        measure=lambda m: prefix_chance(m.codes),
    ),
    Metric(
        key="label_purity",
        name=("标签纯度", "label purity"),
        formula=(
            "每个前缀组猜最常见的标签，猜对的比例；与打乱标签的比",
            "share guessed right by the commonest label of each prefix group; compare with shuffled labels",
        ),
        range="(0, 1]",
        question=CATEGORY,
        better="higher",
        population=LABELLED,
        per="prefix",
        style="share",
        chance="label_purity_chance",
        source="Manning et al., 2008, IIR §16.3",
        needs=("labels",),
        measure=lambda m: m.label_figures["purity"],
        judge=judge_labels,
        tile=_label_tile,
    ),
    Metric(
        key="label_purity_chance",
        name=("打乱标签的纯度", "purity of shuffled labels"),
        formula=(
            "标签按种子 0 打乱之后的标签纯度：只由组的大小带来的部分",
            "label purity after shuffling the labels (seed 0): what group sizes alone give",
        ),
        range="(0, 1]",
        question=CATEGORY,
        population=LABELLED,
        per="prefix",
        style="share",
        in_table=False,
        needs=("labels",),
        measure=lambda m: m.label_figures["purity_chance"],
    ),
    Metric(
        key="nmi",
        name=("归一化互信息", "NMI"),
        formula=("2 I(组; 标签) / (H(组) + H(标签))", "2 I(group; label) / (H(group) + H(label))"),
        range="[0, 1]",
        question=CATEGORY,
        better="higher",
        population=LABELLED,
        per="prefix",
        chance="nmi_chance",
        source="Strehl & Ghosh, 2002, JMLR 3",
        in_table=False,
        needs=("labels",),
        measure=lambda m: m.label_figures["nmi"],
    ),
    Metric(
        key="nmi_chance",
        name=("打乱标签的 NMI", "NMI of shuffled labels"),
        formula=("标签按种子 0 打乱之后的 NMI", "NMI after shuffling the labels (seed 0)"),
        range="[0, 1]",
        question=CATEGORY,
        population=LABELLED,
        per="prefix",
        in_table=False,
        needs=("labels",),
        measure=lambda m: m.label_figures["nmi_chance"],
    ),
)
