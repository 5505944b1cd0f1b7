"""重建误差的指标：ID 说清了物品的多少。门槛是「值得看一眼」的线，不是标准；来由写在旁边。"""

from __future__ import annotations

from typing import Iterator, List

from ..codes import relative_mse
from .base import Known, Metric, Sentence, Tile, Verdict, share
from .measured import Measured

__all__ = ["METRICS"]

QUESTION = ("ID 说清了物品的多少？", "How much of an item do the IDs tell?")
TRAINED = ("训练时说清了多少？", "How much did they tell in training?")

# 内置演示（8,192 个物品、三层）是 0.58；误差超过全猜均值的七成，ID 里的信息就不多，超过八成几乎没有
HALF, LITTLE, NONE = 0.5, 0.7, 0.8
# 比训练时差四分之一以上，而且差得看得见：这批数据与训练数据不是一回事
DRIFT, DRIFT_LEAST = 1.25, 0.01
# 一层只再消掉剩余误差的 2% 以下：这一层几乎白占一个词
LEVEL_GAIN = 0.02

MOST = Sentence(
    "relative_mse_ok",
    "相对误差 {value:.2f}：ID 说清了特征变化的 {told:.0%}。",
    "relative error {value:.2f}: the IDs tell {told:.0%} of what varies in the features.",
)
PART = Sentence(
    "relative_mse_part",
    "相对误差 {value:.2f}：ID 说清了特征变化的 {told:.0%}，不到一半；还要更准，加大码本或加一层。",
    "relative error {value:.2f}: the IDs tell {told:.0%} of what varies in the features, less than half. To tell more, "
    "enlarge the codebooks or add a level.",
)
ERROR_LARGE = Sentence(
    "error_large",
    "相对误差 {value:.2f}：ID 只说清了特征变化的 {told:.0%}。加大码本、加一层，或确认特征与训练时出自同一个模型。",
    "relative error {value:.2f}: the IDs tell only {told:.0%} of what varies in the features. Enlarge the codebooks, "
    "add a level, or check that the features come from the same model as in training.",
)
ERROR_HIGH = Sentence(
    "error_high",
    "相对误差 {value:.2f}，接近「全猜均值」的 1：ID 里信息很少。加大码本，或确认特征与训练时出自同一个模型。",
    "relative error {value:.2f}, close to the 1 of guessing the mean: the IDs carry little information. Use "
    "larger codebooks, or check that the features come from the same model as in training.",
)
ERROR_ABOVE = Sentence(
    "error_above_mean",
    "相对误差 {value:.2f}，不比「全猜均值」的 1 好：ID 说错了物品。多半特征与训练时不是同一个模型，或行序没有对齐。",
    "relative error {value:.2f}, no better than the 1 of guessing the mean: the IDs tell the wrong item. The features "
    "probably come from another model than in training, or codes and features are not in the same order.",
)
DRIFTED = Sentence(
    "drift",
    "相对误差 {value:.2f}，训练时的留出行只有 {trained:.2f}：这批数据与训练数据分布不同。用新数据重新训练。",
    "relative error {value:.2f} against {trained:.2f} on held-back rows in training: this data is distributed "
    "differently. Train again on recent data.",
)
LEVEL_IDLE = Sentence(
    "level_idle",
    "有的层只再消掉剩余误差的一点点（{levels}）：几乎白占一个词。去掉它，或把码字分给别的层（semid advise）。",
    "some levels remove only a little of the error that is left ({levels}): they cost a token for nothing. Drop them "
    "or give their codewords to other levels (semid advise).",
)
LEVEL_WORSE = Sentence(
    "level_worse",
    "有的层走完之后误差反而多了（{levels}）：这批特征多半与训练时不同。核对特征，或重新训练。",
    "after some levels the error is larger than before ({levels}): these features probably differ from those in "
    "training. Check them, or train again.",
)
LEVELS_OK = Sentence(
    "level_relative_mse_ok",
    "每一层都在消误差：走完各层之后依次剩 {left}。",
    "every level removes error: {left} is left after them.",
)


def judge_error(f: Known) -> Iterator[Verdict]:
    """由低到高五段，句子与数字相符；再与训练时的留出行比。"""
    value, trained = f["relative_mse"], f.get("training_holdout_relative_mse")
    severity, sentence = "ok", MOST
    for line, worse, other in (
        (HALF, "ok", PART),
        (LITTLE, "watch", ERROR_LARGE),
        (NONE, "bad", ERROR_HIGH),
        (1.0, "bad", ERROR_ABOVE),
    ):
        if value > line or (line == 1.0 and value == 1.0):
            severity, sentence = worse, other
    yield sentence.says(severity, value=value, told=1 - value)
    if trained is not None and value > DRIFT * trained and value - trained > DRIFT_LEAST:
        yield DRIFTED.says("watch", value=value, trained=trained)


def judge_levels(f: Known) -> Iterator[Verdict]:
    """逐层看这一层消掉了剩余误差的多少；第一层与全部偏差比。"""
    before, idle, worse = 1.0, [], []
    for level, error in enumerate(f["level_relative_mse"], 1):
        gain = 1.0 - error / before if before > 0 else 0.0
        if gain < 0:
            worse.append(f"L{level} +{share(-gain)}")
        elif gain < LEVEL_GAIN:
            idle.append(f"L{level} {share(gain)}")
        before = error
    if worse:
        yield LEVEL_WORSE.says("watch", levels=" · ".join(worse))
    if idle:
        yield LEVEL_IDLE.says("watch", levels=" · ".join(idle))
    if not worse and not idle:
        yield LEVELS_OK.says("ok", left=" · ".join(f"{error:.2f}" for error in f["level_relative_mse"]))


def _tile(f: Known) -> Tile:
    value = f["relative_mse"]
    return Tile(f"{1 - value:.0%}", (f"相对误差 {value:.3f}，越低越好", f"relative MSE {value:.3f}, lower is better"))


def _of_deviation(m: Measured, sums: List[float], deviation: float | None) -> List[float] | None:
    """各个误差占总偏差的比例；偏差为 0 或没有时没有定义。"""
    shares = [None if deviation is None else relative_mse(float(value), deviation) for value in sums]
    known = [share for share in shares if share is not None]
    return known if len(known) == len(shares) else None


METRICS = (
    Metric(
        key="relative_mse",
        name=("相对误差", "relative MSE"),
        formula=(
            "Σ‖x − x̂‖² / Σ‖x − μ‖²，μ 为训练均值（没有模型时为这批物品的均值）；0 完美，1 等于全猜均值",
            "Σ‖x − x̂‖² / Σ‖x − μ‖², μ the training mean (without a model: the mean of these items); 0 perfect, 1 "
            "the mean",
        ),
        range="[0, ∞)",
        question=QUESTION,
        better="lower",
        source="1 − out-of-sample R²",
        needs=("error",),
        measure=lambda m: m.relative_mse,
        judge=judge_error,
        tile=_tile,
    ),
    Metric(
        key="mse",
        name=("均方误差", "MSE"),
        formula=(
            "Σ‖x − x̂‖² / (N·D)；没有模型时 x̂ 是各层编号的平均残差之和",
            "Σ‖x − x̂‖² / (N·D); without a model x̂ sums the mean residual of each code",
        ),
        range="[0, ∞)",
        question=QUESTION,
        better="lower",
        unit=("特征的平方", "squared feature"),
        needs=("error",),
        measure=lambda m: m.error / m.num_values,
    ),
    Metric(
        key="level_relative_mse",
        name=("走完这层剩下的误差", "error left after level"),
        formula=(
            "走完前 l 层之后剩下的误差（有模型时在隐空间里量） / Σ‖x − μ‖²；特征网络为恒等时，最后一个就是相对误差",
            "error left after l levels (in latent space for a model) / Σ‖x − μ‖²; with identity networks the last one "
            "is the relative MSE",
        ),
        range="[0, ∞)",
        question=QUESTION,
        better="lower",
        source="Zeghidour et al., 2021, arXiv:2107.03312",
        per="level",
        in_table=False,
        needs=("level_errors",),
        measure=lambda m: _of_deviation(m, list(m.level_errors), m.deviation),
        judge=judge_levels,
    ),
    Metric(
        key="prefix_mean_relative_mse",
        name=("前缀平均的误差", "error of prefix means"),
        formula=(
            "把同一前缀的物品都猜成它们的平均，误差占 Σ‖x − 均值‖² 的比例：任何解码器在这批物品上的下界；"
            "独占前缀的物品记 0，"
            "所以乐观",
            "error when each item is guessed as the mean of its prefix group, as a share of Σ‖x − mean‖²: a lower "
            "bound for any decoder on these items; items alone in their group count 0, so it is optimistic",
        ),
        range="[0, 1]",
        question=QUESTION,
        source="k-means within-cluster sum of squares",
        per="prefix",
        in_table=False,
        needs=("prefixes", "own_deviation"),
        measure=lambda m: _of_deviation(m, [prefix.error_sum for prefix in m.prefixes], m.own_deviation),
    ),
    Metric(
        key="prefix_alone_rate",
        name=("独占前缀的物品", "items alone in their prefix"),
        formula=(
            "前 l 个编号与任何别的物品都不同的物品所占比例",
            "share of items whose first l codes no other item has",
        ),
        range="[0, 1]",
        question=QUESTION,
        per="prefix",
        style="share",
        in_table=False,
        needs=("prefixes",),
        measure=lambda m: [prefix.alone_rate for prefix in m.prefixes],
    ),
    Metric(
        key="training_relative_mse",
        name=("训练行的相对误差", "relative MSE, training rows"),
        formula=("训练结束时在训练行上测的相对误差", "relative MSE on training rows when training ended"),
        range="[0, ∞)",
        question=TRAINED,
        population=("训练行（至多一块）", "training rows, at most one block"),
        in_table=False,
        needs=("training",),
        measure=lambda m: m.training.get("relative_mse"),
    ),
    Metric(
        key="training_holdout_relative_mse",
        name=("留出行的相对误差", "relative MSE, held-back rows"),
        formula=(
            "训练挑定最好的状态时，在还没见过的留出行上测的相对误差",
            "relative MSE on held-back rows, still unseen, when training chose its best state",
        ),
        range="[0, ∞)",
        question=TRAINED,
        population=("留出行", "held-back rows"),
        in_table=False,
        needs=("training",),
        measure=lambda m: m.training.get("holdout_relative_mse"),
    ),
)
