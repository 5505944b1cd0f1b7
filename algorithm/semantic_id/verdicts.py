"""体检：把评估数字变成人话，每条说清现象、原因、办法。

只认 `evaluate` 返回的字典；纯函数，不读文件，不 import 模型。
门槛写在这里并说明来由；它们是「值得看一眼」的线，不是标准。
"""

from __future__ import annotations

import math
from typing import Any, List, Mapping, NamedTuple

__all__ = ["Verdict", "judge_health"]

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


class Verdict(NamedTuple):
    """一条结论。

    Attributes:
        code: 稳定的英文代号，写进 JSON。
        zh: 中文一句话：现象、原因、办法。
        en: 英文一句话。
    """

    code: str
    zh: str
    en: str


def judge_health(figures: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> List[Verdict]:
    """给出值得处理的问题；没有问题时为空列表。

    Args:
        figures: `evaluate` 的返回值。
        training: 训练时的数字（`model.training_figures`），用来判断数据是否漂移；None 则不判断。

    Returns:
        先逐层、再整体的结论。
    """
    out: List[Verdict] = []
    for level, size in enumerate(figures["codebook_sizes"]):
        values = {
            "level": level + 1,
            "size": size,
            "rows": figures["num_items"],
            "used": figures["utilization"][level],
            "effective": figures["perplexity"][level],
        }
        code = _level_problem(**values)
        out += [_say(code, **values)] if code else []
    if figures["collision_rate"] > _COLLISION_RATE:
        out.append(_say("collisions_high", rate=figures["collision_rate"], most=figures["max_collision"]))
    relative, trained = figures["relative_mse"], (training or {}).get("holdout_relative_mse")
    if relative is not None and relative > _RELATIVE_MSE:
        out.append(_say("error_high", relative=relative))
    if relative is not None and trained and relative > _DRIFT * trained:
        out.append(_say("drift", relative=relative, trained=trained))
    return out


def _level_problem(level: int, size: int, rows: int, used: float, effective: float) -> str | None:
    """一层最根本的问题：先看够不够样本，再看死码字，再看是否扎堆。"""
    if rows < size:
        return "fewer_items_than_codewords"
    expected = 1.0 - math.exp(-rows / size)  # rows 个球随机投进 size 个桶，非空桶的期望比例
    if used < _UTILIZATION_SHARE * expected:
        return "utilization_low"
    return "perplexity_low" if effective < _PERPLEXITY_SHARE * size else None


def _say(code: str, **values: Any) -> Verdict:
    """填好两种语言的句子。"""
    zh, en = _SENTENCES[code]
    return Verdict(code, zh.format(**values), en.format(**values))


_SENTENCES = {
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
        "L{level} 的困惑度只有 {effective:.0f}，而码字有 {size} 个：少数码字吃掉了大多数物品。"
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
}
