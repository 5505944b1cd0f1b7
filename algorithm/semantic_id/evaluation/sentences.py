"""体检的句子：代号 → (中文, 英文)，每句说清现象、原因、办法。数字由 `verdicts.py` 填。"""

from __future__ import annotations

from typing import Dict, Tuple

__all__ = ["SENTENCES"]

SENTENCES: Dict[str, Tuple[str, str]] = {
    "fewer_items_than_codewords": (
        "L{level} 有 {size} 个码字，却只有 {rows} 个物品，利用率与困惑度不说明问题。用更小的码本，或在更多物品上评估。",
        "L{level} has {size} codewords but there are only {rows} items, so its utilization says little. Use a smaller "
        "codebook or evaluate on more items.",
    ),
    "utilization_low": (
        "L{level} 只用到 {used:.1%} 的码字，其余是死码字，常见于均匀初始化后训练太短。"
        "用 --init kmeans 重新训练，或减小这一层。",
        "L{level} uses only {used:.1%} of its codewords; the rest are dead, as after uniform init and little training. "
        "Train again with --init kmeans, or shrink this level.",
    ),
    "perplexity_low": (
        "L{level} 的困惑度是 {effective:.0f}，而码字有 {size} 个：少数码字吃掉了大多数物品。"
        "用 --init kmeans 重新训练，或减小这一层。",
        "L{level} has perplexity {effective:.0f} of {size}: a few hub codewords take most items. Train again with "
        "--init kmeans, or shrink this level.",
    ),
    "collisions_high": (
        "冲突率 {rate:.1%}：不同物品挤在同一个 ID 上，最多 {most} 个。加一层、加大最后一层码本，或检查有无重复的特征。",
        "collision rate {rate:.1%}: up to {most} items share one ID. Add a level, enlarge the last codebook, or look "
        "for duplicate vectors.",
    ),
    "error_high": (
        "相对误差 {relative:.2f}，接近「全猜均值」的 1：ID 里信息很少。加大码本，或确认特征与训练时出自同一个模型。",
        "relative error {relative:.2f}, close to the 1 of guessing the mean: the IDs carry little information. Use "
        "larger codebooks, or check that the features come from the same model as in training.",
    ),
    "drift": (
        "相对误差 {relative:.2f}，训练时的留出行只有 {trained:.2f}：这批数据与训练数据分布不同。用新数据重新训练。",
        "relative error {relative:.2f} against {trained:.2f} on held-back rows in training: this data is distributed "
        "differently. Train again on recent data.",
    ),
    "duplicates": (
        "冲突率 {rate:.1%}，而 {duplicates:.1%} 的物品特征与别人逐字节相同：再大的码本也分不开。"
        "先去重，或编码时加 --unique。",
        "collision rate {rate:.1%}, but {duplicates:.1%} of the items repeat another vector byte for byte: no codebook "
        "can tell them apart. Drop duplicates, or encode with --unique.",
    ),
    "catalog_not_unique": (
        "物品表里仍有 {rate:.1%} 的冲突：它是不去重编码的，生成出来的 ID 认不出物品。"
        "用 semid encode --unique 重新编码。",
        "the catalog still has collision rate {rate:.1%}: it was encoded without unique IDs, so a generated ID "
        "does not "
        "name one item. Encode again with --unique.",
    ),
    "catalog_incomplete": (
        "{rows} 个物品里有 {missing} 个不在物品表中：物品表比特征旧。用 semid update 把它们加进去。",
        "{missing} of {rows} items are not in the catalog: it is older than the features. Add them with semid update.",
    ),
    "level_idle": (
        "L{level} 只再消掉剩余误差的 {gain:.1%}：这一层几乎白占一个词。去掉它，或把码字分给别的层（semid advise）。",
        "L{level} removes only {gain:.1%} of the error that is left: it costs a token for nothing. Drop it or give its "
        "codewords to other levels (semid advise).",
    ),
    "hierarchy_weak": (
        "最近的邻居里只有 {share:.1%} 共享 L1，随机是 {chance:.1%}：前缀几乎不含语义。"
        "多半是编码与特征的行序没对齐，或 ID 是散列来的；对齐，或用 semid train 训练残差量化的 ID。",
        "only {share:.1%} of nearest neighbours share L1, {chance:.1%} at random: the prefix carries no meaning. Codes "
        "and features are probably not in the same order, or the IDs are hashes: align them, or train with "
        "semid train.",
    ),
    "labels_ignored": (
        "L1 的标签纯度 {purity:.2f}，打乱标签也有 {chance:.2f}：前缀与类目无关。"
        "检查物品信息与特征是否对齐；对齐了，就是特征里没有类目，换一种或拼上类目的文本。",
        "label purity of L1 is {purity:.2f}, {chance:.2f} with shuffled labels: prefixes ignore the labels. Check that "
        "items and features are aligned; if so the features lack the category: add its text to the embedding.",
    ),
    "behaviour_weak": (
        "一起消费的物品共享 L1 只是随机的 {lift:.2f} 倍：ID 只懂内容、不懂行为。训练时加 --pairs，或用行为模型的向量。",
        "items consumed together share L1 only {lift:.2f} times as often as chance: the IDs know content, not "
        "behaviour. Train with --pairs, or use vectors of a behaviour model.",
    ),
    "behaviour_thin": (
        "一起消费的物品共享 L1 是随机的 {lift:.1f} 倍；我们的下游对照里，不到 {line:.0f} 倍的 ID 推荐得都不好"
        "（别的数据上先与另一套 ID 比）。训练时加 --pairs，或换一种懂行为的特征。",
        "items consumed together share L1 {lift:.1f} times as often as chance; in our downstream benchmark every ID "
        "under {line:.0f} recommended poorly (on other data compare with another run first). Train with --pairs, or "
        "use features that know behaviour.",
    ),
    "features_without_behaviour": (
        "一起消费的物品只有 {raw:.2%} 在特征的十近邻里，与随机差不多：特征本身不含行为，换码本没有用。"
        "换特征，或训练时加 --pairs。",
        "only {raw:.2%} of co-consumed items are among the ten nearest features, about chance: the features themselves "
        "lack behaviour. Change the features, or train with --pairs.",
    ),
    "hit_rate_lost": (
        "命中率从特征的 {raw:.2%} 掉到重建的 {kept:.2%}：量化磨掉了近邻。加大码本、加一层，或用 --effort max。",
        "hit rate falls from {raw:.2%} on features to {kept:.2%} on reconstructions: quantisation blurs neighbours. "
        "Enlarge codebooks, add a level, or train with --effort max.",
    ),
    "generalisation_gap": (
        "没见过的物品相对误差 {unseen:.2f}，见过的 {seen:.2f}，{ratio:.2f} 倍：码本记住了训练行。"
        "用更多的行训练，或减小 L2、L3。",
        "relative error {unseen:.2f} on unseen items against {seen:.2f} on seen ones, {ratio:.2f} times: the codebooks "
        "memorise training rows. Train on more rows, or shrink L2 and L3.",
    ),
    "perplexity_ok": (
        "各层的码字都用得上，没有塌缩：L1 相当于 {value:.0f} 个码字在均匀地用。",
        "every level uses its codewords; L1 works like {value:.0f} equally used ones.",
    ),
    "collision_rate_ok": ("冲突率 {value:.2%}，不高。", "collision rate {value:.2%} is low."),
    "assigned_collision_rate_ok": ("物品表里每个 ID 只有一个物品。", "every ID of the catalog names one item."),
    "relative_mse_ok": (
        "相对误差 {value:.2f}：ID 说清了特征变化的大部分。",
        "relative error {value:.2f}: the IDs tell most of what varies in the features.",
    ),
    "neighbour_share_ok": (
        "最近的邻居里 {value:.1%} 共享 L1，随机只有 {chance:.1%}：前缀有语义。",
        "{value:.1%} of nearest neighbours share L1, {chance:.1%} at random: prefixes carry meaning.",
    ),
    "label_purity_ok": (
        "按 L1 猜标签对 {value:.0%}，打乱标签是 {chance:.0%}。",
        "guessing the label from L1 is right for {value:.0%}, {chance:.0%} with shuffled labels.",
    ),
    "co_consumption_lift_ok": (
        "一起消费的物品共享 L1 是随机的 {value:.1f} 倍；我们的下游对照里它最能预示推荐的好坏。",
        "items consumed together share L1 {value:.1f} times as often as chance; in our downstream benchmark this "
        "figure best foretold recommendation quality.",
    ),
    "embedding_hit_rate_10_ok": (
        "一起消费的物品有 {value:.1%} 在特征的十近邻里，随机是 {chance:.2%}。",
        "{value:.1%} of co-consumed items are among the ten nearest features, {chance:.2%} at random.",
    ),
    "generalisation_ratio_ok": (
        "没见过的物品误差是见过的 {value:.2f} 倍：泛化正常。",
        "unseen items have {value:.2f} times the error of seen ones: it generalises.",
    ),
}
