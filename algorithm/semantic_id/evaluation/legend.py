"""图例：评估的每个数字叫什么、怎么算、单位、范围、在哪些物品上算、出自哪里；报告原样印出。

只是数据。测试看着它与评估真的给出的键一致：多一个、少一个都失败。
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

__all__ = ["METRIC_KEYS", "legend_of"]

_ALL = "全部物品 / all items"
_SAMPLE = "抽样查询（种子 0，至多 1000），候选为全部物品 / seeded sample of up to 1000 queries against all items"
_LABELLED = "有标签的物品 / items with a label"
_PAIRS = "行为里的全部物品对，两个都在特征里 / all item pairs of the interactions that the features know"
_PER_LEVEL = "每层一个 / one per level"
_PER_LENGTH = "每个前缀长度一个 / one per prefix length"

# 键 → 中文名、英文名、中文定义、英文定义、单位、范围、总体、出处
_ENTRIES: Dict[str, Tuple[str, str, str, str, str, str, str, str]] = {
    "mse": (
        "均方误差",
        "MSE",
        "Σ‖x − x̂‖² / (N·D)；没有模型时 x̂ 是各层编号的平均残差之和",
        "Σ‖x − x̂‖² / (N·D); without a model x̂ sums the mean residual of each code",
        "特征的平方 / squared feature",
        "[0, ∞)",
        _ALL,
        "",
    ),
    "relative_mse": (
        "相对误差",
        "relative MSE",
        "Σ‖x − x̂‖² / Σ‖x − μ‖²，μ 为训练均值（没有模型时为这批物品的均值）；0 完美，1 等于全猜均值",
        "Σ‖x − x̂‖² / Σ‖x − μ‖², μ the training mean (without a model: the mean of these items); 0 perfect, 1 the mean",
        "",
        "[0, ∞)",
        _ALL,
        "1 − out-of-sample R²",
    ),
    "level_relative_mse": (
        "逐层误差",
        "error per level",
        "走完前 l 层之后剩下的误差（有模型时在隐空间里量） / Σ‖x − μ‖²；特征网络为恒等时，最后一个就是相对误差",
        "error left after l levels (in latent space for a model) / Σ‖x − μ‖²; with identity networks the last "
        "one is the "
        "relative MSE",
        _PER_LEVEL,
        "[0, ∞)",
        _ALL,
        "Zeghidour et al., 2021, arXiv:2107.03312",
    ),
    "prefix_mean_relative_mse": (
        "前缀平均的误差",
        "error of prefix means",
        "把同一前缀的物品都猜成它们的平均，误差占 Σ‖x − 均值‖² 的比例：任何解码器在这批物品上的下界；"
        "独占前缀的物品记 0，所以乐观",
        "error when each item is guessed as the mean of its prefix group, as a share of Σ‖x − mean‖²: a "
        "lower bound for any decoder on these items; items alone in their group count 0, so it is optimistic",
        _PER_LENGTH,
        "[0, 1]",
        _ALL,
        "k-means within-cluster sum of squares",
    ),
    "prefix_alone_rate": (
        "独占前缀的物品",
        "items alone in their prefix",
        "前 l 个编号与任何别的物品都不同的物品所占比例",
        "share of items whose first l codes no other item has",
        _PER_LENGTH,
        "[0, 1]",
        _ALL,
        "",
    ),
    "utilization": (
        "利用率",
        "utilization",
        "至少用过一次的码字 / K",
        "codewords used at least once / K",
        _PER_LEVEL,
        "[0, 1]",
        _ALL,
        "Zeghidour et al., 2021, arXiv:2107.03312",
    ),
    "perplexity": (
        "困惑度",
        "perplexity",
        "exp(−Σ p ln p)：相当于有多少个码字在均匀地用",
        "exp(−Σ p ln p): how many equally used codewords the usage amounts to",
        "码字，每层一个 / one per level",
        "[1, K]",
        _ALL,
        "van den Oord et al., 2017, arXiv:1711.00937",
    ),
    "gini": (
        "码字的基尼系数",
        "Gini of codewords",
        "使用次数的基尼系数，没用过的码字也算；0 为均匀",
        "Gini coefficient of usage counts, unused codewords included; 0 is uniform",
        _PER_LEVEL,
        "[0, 1)",
        _ALL,
        "Gini, 1912",
    ),
    "dead_codes": (
        "死码字",
        "dead codes",
        "在这批物品里一次也没用到的码字数",
        "codewords that none of these items uses",
        "码字，每层一个 / one per level",
        "[0, K]",
        _ALL,
        "",
    ),
    "id_gini": (
        "ID 的基尼系数",
        "Gini of IDs",
        "物品在用到的各个完整 ID 上的件数的基尼系数",
        "Gini coefficient of item counts over the distinct IDs in use",
        "",
        "[0, 1)",
        _ALL,
        "FORGE, 2025, arXiv:2509.20904",
    ),
    "collision_rate": (
        "冲突率（去重之前）",
        "collision rate before assignment",
        "1 − 不同 ID 数 / N",
        "1 − distinct IDs / N",
        "",
        "[0, 1)",
        _ALL,
        "LC-Rec, 2024, arXiv:2311.09049",
    ),
    "collided_item_rate": (
        "与别人共用 ID 的物品",
        "items that share an ID",
        "ID 不独占的物品 / N",
        "items whose ID another item has / N",
        "",
        "[0, 1]",
        _ALL,
        "TIGER, 2023, arXiv:2305.05065",
    ),
    "max_collision": (
        "最拥挤的 ID",
        "most crowded ID",
        "一个 ID 上最多有几个物品",
        "largest number of items on one ID",
        "物品 / items",
        "[1, N]",
        _ALL,
        "TIGER, 2023, arXiv:2305.05065",
    ),
    "duplicate_rate": (
        "重复的特征",
        "duplicate vectors",
        "与另一行逐字节相同的多余行 / N：任何 ID 都分不开它们",
        "rows that repeat another one byte for byte / N: no codes can separate them",
        "",
        "[0, 1)",
        _ALL,
        "",
    ),
    "assigned_collision_rate": (
        "冲突率（去重之后）",
        "collision rate after assignment",
        "物品表里的完整 ID：1 − 不同 ID 数 / 物品数",
        "full IDs of the catalog: 1 − distinct IDs / items",
        "",
        "[0, 1)",
        "在物品表里的物品 / items found in the catalog",
        "LC-Rec, 2024, arXiv:2311.09049",
    ),
    "assigned_changed_rate": (
        "去重时换了编号的物品",
        "items moved by assignment",
        "物品表里的各层编号与直接编码不同的物品所占比例",
        "share of items whose codes in the catalog differ from plain encoding",
        "",
        "[0, 1]",
        "在物品表里的物品 / items found in the catalog",
        "",
    ),
    "num_not_in_catalog": (
        "不在物品表里的物品",
        "items not in the catalog",
        "特征里有、物品表里没有的物品数",
        "items of the features that the catalog lacks",
        "物品 / items",
        "[0, N]",
        _ALL,
        "",
    ),
    "label_purity": (
        "标签纯度",
        "label purity",
        "每个前缀组猜最常见的标签，猜对的比例；与打乱标签的比",
        "share guessed right by the commonest label of each prefix group; compare with shuffled labels",
        _PER_LENGTH,
        "(0, 1]",
        _LABELLED,
        "Manning et al., 2008, IIR §16.3",
    ),
    "label_purity_chance": (
        "打乱标签的纯度",
        "purity of shuffled labels",
        "标签按种子 0 打乱之后的标签纯度：只由组的大小带来的部分",
        "label purity after shuffling the labels (seed 0): what group sizes alone give",
        _PER_LENGTH,
        "(0, 1]",
        _LABELLED,
        "",
    ),
    "nmi": (
        "归一化互信息",
        "NMI",
        "2 I(组; 标签) / (H(组) + H(标签))",
        "2 I(group; label) / (H(group) + H(label))",
        _PER_LENGTH,
        "[0, 1]",
        _LABELLED,
        "Strehl & Ghosh, 2002, JMLR 3",
    ),
    "nmi_chance": (
        "打乱标签的 NMI",
        "NMI of shuffled labels",
        "标签按种子 0 打乱之后的 NMI",
        "NMI after shuffling the labels (seed 0)",
        _PER_LENGTH,
        "[0, 1]",
        _LABELLED,
        "",
    ),
    "neighbour_share": (
        "邻居占比",
        "neighbour share",
        "十个最近的物品（欧氏、精确）里共享前 l 个编号的比例",
        "share of the ten nearest items (Euclidean, exact) that have the same first l codes",
        _PER_LENGTH,
        "[0, 1]",
        _SAMPLE,
        "Jégou et al., 2011, TPAMI 33",
    ),
    "prefix_chance": (
        "随机两件共享前缀",
        "prefix shared at random",
        "任意另一个物品共享前 l 个编号的概率",
        "probability that any other item has the same first l codes",
        _PER_LENGTH,
        "[0, 1]",
        _ALL,
        "Rand, 1971, JASA 66",
    ),
    "co_consumption": (
        "一起消费而共享前缀",
        "co-consumed pairs that share a prefix",
        "物品对里共享前 l 个编号的比例",
        "share of pairs with the same first l codes",
        _PER_LENGTH,
        "[0, 1]",
        _PAIRS,
        "LETTER, 2024, arXiv:2405.07314",
    ),
    "co_consumption_expected": (
        "流行度相同的随机对",
        "popularity-matched random pairs",
        "把各对的第二个物品随机重排之后的同一比例（算出来的，不抽样）",
        "the same share after permuting the second items (computed, not sampled)",
        _PER_LENGTH,
        "[0, 1]",
        _PAIRS,
        "",
    ),
    "co_consumption_lift": (
        "共同消费提升",
        "co-consumption lift",
        "上面两个之比；1 为没有关系",
        "ratio of the two; 1 is no relation",
        _PER_LENGTH,
        "[0, ∞)",
        _PAIRS,
        "Brin et al., 1997, SIGMOD",
    ),
    "generalisation_ratio": (
        "泛化比",
        "generalisation ratio",
        "没见过的物品的相对误差 / 见过的",
        "relative MSE of unseen items / of seen ones",
        "",
        "[0, ∞)",
        "FEATURES 与 --unseen 的全部物品 / all items of FEATURES and of --unseen",
        "",
    ),
    "unseen_relative_mse": (
        "没见过的物品的相对误差",
        "relative MSE, unseen",
        "定义同相对误差",
        "defined as relative MSE",
        "",
        "[0, ∞)",
        "--unseen 的全部物品 / all items of --unseen",
        "",
    ),
    "unseen_collision_rate": (
        "没见过的物品的冲突率",
        "collision rate, unseen",
        "定义同冲突率，只在没见过的物品之间",
        "defined as collision rate, among unseen items only",
        "",
        "[0, 1)",
        "--unseen 的全部物品 / all items of --unseen",
        "",
    ),
    "unseen_known_prefix_rate": (
        "没见过的物品落在已有前缀",
        "unseen items on known prefixes",
        "前 l 个编号在 FEATURES 里出现过的没见过的物品所占比例",
        "share of unseen items whose first l codes occur in FEATURES",
        _PER_LENGTH,
        "[0, 1]",
        "--unseen 的全部物品 / all items of --unseen",
        "",
    ),
    "training_relative_mse": (
        "训练行的相对误差",
        "relative MSE, training rows",
        "训练结束时在训练行上测的相对误差",
        "relative MSE on training rows when training ended",
        "",
        "[0, ∞)",
        "训练行（至多一块） / training rows, at most one block",
        "",
    ),
    "training_holdout_relative_mse": (
        "留出行的相对误差",
        "relative MSE, held-back rows",
        "训练挑定最好的状态时，在还没见过的留出行上测的相对误差",
        "relative MSE on held-back rows, still unseen, when training chose its best state",
        "",
        "[0, ∞)",
        "留出行 / held-back rows",
        "",
    ),
}

for _kind, _zh, _en in (("embedding", "特征", "features"), ("reconstruction", "重建", "reconstructions")):
    for _k in (10, 100):
        _ENTRIES[f"{_kind}_hit_rate_{_k}"] = (
            f"嵌入命中率@{_k}（{_zh}）", f"embedding hit rate@{_k} ({_en})",
            f"一个物品被一起消费过的物品，有多少在它{_zh}向量的前 {_k} 个余弦近邻里；先对物品、再对查询平均",
            f"share of an item's co-consumed items among the {_k} nearest {_en} (cosine), averaged over queries",
            "", "[0, 1]", _SAMPLE, "FORGE, 2025, arXiv:2509.20904",
        )  # fmt: skip
for _k in (10, 100):
    _ENTRIES[f"embedding_hit_rate_{_k}_chance"] = (
        f"随机的命中率@{_k}", f"hit rate@{_k} at random", "K / (N − 1)", "K / (N − 1)", "", "[0, 1]", _ALL, "",
    )  # fmt: skip

METRIC_KEYS = tuple(_ENTRIES)
_FIELDS = ("zh", "en", "definition_zh", "definition_en", "unit", "range", "population", "source")


def legend_of(metrics: Mapping[str, Any]) -> List[Dict[str, str]]:
    """这次评估给出的指标的图例。

    Args:
        metrics: 指标的键值；没有图例的键（计数、说明）不管。

    Returns:
        每个指标一项：key、zh、en、definition_zh、definition_en、unit、range、population、source，次序固定。
    """
    return [
        {"key": key, **dict(zip(_FIELDS, entry, strict=True))}
        for key, entry in _ENTRIES.items()
        if metrics.get(key) is not None
    ]
