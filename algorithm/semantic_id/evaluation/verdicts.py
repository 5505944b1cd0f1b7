"""体检：把评估数字变成人话，每条说清现象、原因、办法。

只认评估得到的字典；纯函数，不读文件，不 import 模型。字典里没有的数字就不判，有而没有问题的给一条 ok。
门槛写在这里并说明来由；它们是「值得看一眼」的线，不是标准。

下游对照（`benchmarks/bench_downstream.py`）里，说得准推荐好坏的只有共同消费提升（L1）；误差、困惑度、邻居占比、冲突率各管
别的事：塌没塌、够不够用、能不能认回物品。所以行为的结论有数据时排在最前面。
"""

from __future__ import annotations

import math
from typing import Any, Iterator, List, Mapping, NamedTuple

from .sentences import SENTENCES

__all__ = ["Verdict", "judge_health", "problems"]

# 利用率低于「随机均匀使用时的期望」的一半，说明不是样本少，而是码字死了
_UTILIZATION_SHARE = 0.5
# 有效码字不到可用码字的 15%：健康的残差 k-means 在真实数据上为 0.28 以上
_PERPLEXITY_SHARE = 0.15
# 每十个物品就有一个要靠去重位区分时，语义 ID 的容量明显不够
_COLLISION_RATE = 0.1
# 误差仍有「全猜均值」的八成：ID 里几乎没有信息
_RELATIVE_MSE = 0.8
# 比训练时差四分之一以上：这批数据与训练数据不是一回事
_DRIFT = 1.25
# 有效码字不到可用码字的 5%：几乎塌缩成一个小码本
_PERPLEXITY_COLLAPSED = 0.05
# 三成以上的物品要靠去重位：ID 已经认不出物品
_COLLISION_BAD = 0.3
# 一层只再消掉剩余误差的 2% 以下：这一层几乎白占一个词
_LEVEL_GAIN = 0.02
# 冲突的物品里一半以上是逐字节相同的特征：不是码本的错
_DUPLICATE_SHARE = 0.5
# 邻居共享 L1 的占比不到随机的 1.5 倍（坏）、3 倍（看一眼）
_NEIGHBOUR_LIFT = (1.5, 3.0)
# L1 的标签纯度比打乱标签的高不到 0.05
_PURITY_GAIN = 0.05
# 一起消费的物品共享 L1 的提升度：1 是没有关系
_BEHAVIOUR_LIFT = (1.1, 1.5)
# 下游对照里（L1 256 个码字，同一个生成模型）提升度 5.4 以下的四种 ID Recall@10 都在 .048 以下，
# 16.5 以上的六种都在 .056 以上；线取在两群之间。码字少时提升度的上限也低，所以 L1 不到 128 个码字不看这条
_LIFT_THIN, _LIFT_THIN_CODES = 8.0, 128
# 没见过的物品误差是见过的多少倍
_GENERALISATION = (1.25, 2.0)
# 重建向量留住的命中率不到原特征的七成
_HIT_RATE_KEPT = 0.7


class Verdict(NamedTuple):
    """一条结论。

    Attributes:
        code: 稳定的英文代号，写进 JSON。
        severity: ok、watch（值得看一眼）或 bad（先修它）。
        zh: 中文一句话：现象、原因、办法。
        en: 英文一句话。
        metric: 根据哪个指标，`legend.py` 里的键。
    """

    code: str
    severity: str
    zh: str
    en: str
    metric: str


def problems(verdicts: List[Verdict]) -> List[Verdict]:
    """去掉 ok 的。"""
    return [verdict for verdict in verdicts if verdict.severity != "ok"]


def judge_health(figures: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> List[Verdict]:
    """每组量到的指标一条以上的结论：有问题的说原因与办法，没问题的也说一声。

    Args:
        figures: `evaluate` 的返回值，可以带着语义、行为、泛化与物品表的数字。
        training: 训练时的数字（`model.training_figures`），用来判断数据是否漂移；None 则不判断。

    Returns:
        按行为、使用、冲突、误差、层次、命中率、泛化的次序。
    """
    out: List[Verdict] = []
    for metric, judge in _JUDGES.items():
        found = list(judge(figures, training or {}))
        if found or judge in _SILENT or metric not in figures or figures[metric] is None:
            out += found
        else:
            out.append(_say(f"{metric}_ok", metric, "ok", **_ok_values(figures, metric)))
    return out


def _usage(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    """逐层：先看够不够样本，再看死码字，再看是否扎堆。"""
    for level, size in enumerate(figures["codebook_sizes"]):
        rows, used = figures["num_items"], figures["utilization"][level]
        values = {"level": level + 1, "size": size, "rows": rows, "used": used}
        values["effective"] = figures["perplexity"][level]
        expected = 1.0 - math.exp(-rows / size)  # rows 个球随机投进 size 个桶，非空桶的期望比例
        if rows < size:
            yield _say("fewer_items_than_codewords", "utilization", "watch", **values)
        elif used < _UTILIZATION_SHARE * expected:
            yield _say("utilization_low", "utilization", "bad", **values)
        elif values["effective"] < _PERPLEXITY_SHARE * size:
            severity = "bad" if values["effective"] < _PERPLEXITY_COLLAPSED * size else "watch"
            yield _say("perplexity_low", "perplexity", severity, **values)


def _collisions(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    rate = figures["collision_rate"]
    if rate > _COLLISION_RATE:
        severity = "bad" if rate > _COLLISION_BAD else "watch"
        duplicates = figures.get("duplicate_rate", 0.0)
        if duplicates > _DUPLICATE_SHARE * rate:
            yield _say("duplicates", "duplicate_rate", severity, rate=rate, duplicates=duplicates)
        else:
            yield _say("collisions_high", "collision_rate", severity, rate=rate, most=figures["max_collision"])


def _assignment(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    rate = figures.get("assigned_collision_rate")
    if rate:
        yield _say("catalog_not_unique", "assigned_collision_rate", "bad", rate=rate)
    missing = figures.get("num_not_in_catalog")
    if missing:
        yield _say("catalog_incomplete", "num_not_in_catalog", "watch", missing=missing, rows=figures["num_items"])


def _error(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    relative, trained = figures["relative_mse"], training.get("holdout_relative_mse")
    if relative is not None and relative > _RELATIVE_MSE:
        yield _say("error_high", "relative_mse", "bad", relative=relative)
    if relative is not None and trained and relative > _DRIFT * trained:
        yield _say("drift", "relative_mse", "watch", relative=relative, trained=trained)


def _levels(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    errors = figures.get("level_relative_mse") or []
    for level in range(1, len(errors)):
        gain = 1.0 - errors[level] / errors[level - 1] if errors[level - 1] > 0 else 0.0
        if gain < _LEVEL_GAIN:
            yield _say("level_idle", "level_relative_mse", "watch", level=level + 1, gain=gain)


def _hierarchy(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    share, chance = figures.get("neighbour_share"), figures.get("prefix_chance")
    # 随机水平三成以上时倍数没有意义：只有几个 L1 前缀
    if share and chance and 0 < chance[0] < 0.3 and share[0] < _NEIGHBOUR_LIFT[1] * chance[0]:
        severity = "bad" if share[0] < _NEIGHBOUR_LIFT[0] * chance[0] else "watch"
        yield _say("hierarchy_weak", "neighbour_share", severity, share=share[0], chance=chance[0])


def _labels(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    purity, chance = figures.get("label_purity"), figures.get("label_purity_chance")
    if purity and chance and purity[0] < chance[0] + _PURITY_GAIN and figures["num_labels"] > 1:
        yield _say("labels_ignored", "label_purity", "watch", purity=purity[0], chance=chance[0])


def _behaviour(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    lift = (figures.get("co_consumption_lift") or [None])[0]
    if lift is not None and lift < _BEHAVIOUR_LIFT[1]:
        severity = "bad" if lift < _BEHAVIOUR_LIFT[0] else "watch"
        yield _say("behaviour_weak", "co_consumption_lift", severity, lift=lift)
    elif lift is not None and lift < _LIFT_THIN and figures["codebook_sizes"][0] >= _LIFT_THIN_CODES:
        yield _say("behaviour_thin", "co_consumption_lift", "watch", lift=lift, line=_LIFT_THIN)


def _hit_rate(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    raw, kept = figures.get("embedding_hit_rate_10"), figures.get("reconstruction_hit_rate_10")
    if raw is None:
        return
    if raw < 2 * figures["embedding_hit_rate_10_chance"]:
        yield _say("features_without_behaviour", "embedding_hit_rate_10", "watch", raw=raw)
    elif kept is not None and kept < _HIT_RATE_KEPT * raw:
        yield _say("hit_rate_lost", "reconstruction_hit_rate_10", "watch", raw=raw, kept=kept)


def _generalisation(figures: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Verdict]:
    ratio = figures.get("generalisation_ratio")
    if ratio is not None and ratio > _GENERALISATION[0]:
        severity = "bad" if ratio > _GENERALISATION[1] else "watch"
        seen, unseen = figures["relative_mse"], figures["unseen_relative_mse"]
        yield _say("generalisation_gap", "generalisation_ratio", severity, ratio=ratio, seen=seen, unseen=unseen)


# 指标（没有问题时 ok 那一条归在它名下）→ 谁来判
_JUDGES = {
    "co_consumption_lift": _behaviour,
    "perplexity": _usage,
    "collision_rate": _collisions,
    "assigned_collision_rate": _assignment,
    "relative_mse": _error,
    "level_relative_mse": _levels,
    "neighbour_share": _hierarchy,
    "label_purity": _labels,
    "embedding_hit_rate_10": _hit_rate,
    "generalisation_ratio": _generalisation,
}
_SILENT = (_levels,)  # 没有问题时不值一提


def _ok_values(figures: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """Ok 的句子要引用的数字：逐层的只取第一层；随机水平在旁边。"""
    value = figures[metric]
    first = value[0] if isinstance(value, list) else value
    chance = figures.get({"neighbour_share": "prefix_chance"}.get(metric, metric + "_chance"))
    return {"value": first, "chance": chance[0] if isinstance(chance, list) else chance}


def _say(code: str, metric: str, severity: str, **values: Any) -> Verdict:
    """填好两种语言的句子。"""
    zh, en = SENTENCES[code]
    return Verdict(code, severity, zh.format(**values), en.format(**values), metric)
