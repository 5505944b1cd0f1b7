"""配方：一次训练从头到尾做什么，只有数据，没有计算；为什么这样定，见 docs/decisions/0006。

    初始化    已训练过的编码器不再做。uniform：±1/K；kmeans：给了物品对先训练特征编码网络，再逐层残差 k-means。
    ema       只在 uniform 起步时，前一半 epoch：需求的 EMA 与死码字复活。
    refine    各层码本联合精修；训练时总用贪心编码。给了物品对时 L1 停在 k-means 的位置。
    network   最后五分之一 epoch：冻结码本，Adam 训练解码网络；从最好的状态起，几遍没有更好就停。
    评判      每个 epoch 末（含初始化之后）在留出行上，先比误差，再比冲突率；最好的状态留下。
    refit     选定之后，留出行也来教码本，按读码的束宽不加噪更新两轮。

改配方先改这里：`EFFORTS` 是力气的三档，下面的常数是各期的长短与速度，`make_plan` 把它们排成一个个 epoch。
执行在 `epochs.py`，k-means、精修、物品对的算法各有一个文件。
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Sequence, Tuple

from ..config import SemanticIDConfig, TrainerConfig

__all__ = [
    "EFFORTS",
    "PATIENCE",
    "Effort",
    "Epoch",
    "Plan",
    "Round",
    "beam_size_of",
    "make_plan",
    "passes_per_epoch",
    "plan_phases",
    "rounds_per_epoch",
]

PATIENCE = 3  # 解码网络连续几遍没有让留出误差更低，这个 epoch 就停
_NETWORK_SHARE = 5  # 最后五分之一的 epoch 给解码网络
_NETWORK_DECAY = 0.3  # 每个 network epoch 的学习率是上一个的几倍
_REFIT_ROUNDS = 2  # 再多几轮，误差不再降（docs/log.md）
_EPOCH_WORK = 2e11  # 一个精修 epoch 值得花的乘加数，约几秒；一轮就超过它时跑 effort 的下限


class Effort(NamedTuple):
    """一档力气：精修几轮、编码用多宽的束、要不要试解码网络。

    Attributes:
        min_rounds: 每个精修 epoch 至少几轮，再大的数据也要这么多。
        max_rounds: 每个精修 epoch 至多几轮；数据小、一轮便宜时用到它。也是一个 network epoch 至多的遍数。
        beam_size: 训练好的模型用多宽的束编码。
        network: 最后是否试解码网络。
    """

    min_rounds: int
    max_rounds: int
    beam_size: int
    network: bool


EFFORTS: Dict[str, Effort] = {
    "fast": Effort(min_rounds=1, max_rounds=4, beam_size=1, network=False),
    "default": Effort(min_rounds=3, max_rounds=16, beam_size=4, network=True),
    "max": Effort(min_rounds=8, max_rounds=48, beam_size=8, network=True),
}


class Round(NamedTuple):
    """精修的一轮。

    Attributes:
        number: 从 0 起，整次训练里的第几轮；决定用哪些行。
        seed: 噪声的种子。
        progress: [0, 1]，之前已完成的比例，1 为不加噪；温度与对旧码字的信任由它定。
    """

    number: int
    seed: int
    progress: float


class Epoch(NamedTuple):
    """一个 epoch。

    Attributes:
        number: 从 1 起。
        phase: `"ema"`、`"refine"` 或 `"network"`。
        rounds: refine 的各轮。
        shuffles: ema 的那一遍、network 的各遍按第几种次序打乱行。
        learning_rate: network 的 Adam 学习率。
    """

    number: int
    phase: str
    rounds: Tuple[Round, ...] = ()
    shuffles: Tuple[int, ...] = ()
    learning_rate: float = 0.0


class Plan(NamedTuple):
    """整次训练。

    Attributes:
        epochs: 依次的各个 epoch。
        refit: 选定最好的状态之后，带上留出行再更新的各轮。
        num_frozen: 精修时前几层的码本不动。
    """

    epochs: Tuple[Epoch, ...]
    refit: Tuple[Round, ...]
    num_frozen: int


def plan_phases(num_epochs: int, init: str, *, has_network: bool, fresh: bool, network: bool = True) -> List[str]:
    """每个 epoch 做什么。

    Args:
        num_epochs: 总数。
        init: `"kmeans"` 或 `"uniform"`。
        has_network: 特征网络已经训练过（接着训练时）；精修不看解码网络，所以只继续训练网络。
        fresh: 这次刚刚初始化。
        network: 最后要不要留几个 epoch 给解码网络。

    Returns:
        长度为 num_epochs 的列表，元素为 `"ema"`、`"refine"`、`"network"`。
    """
    if has_network:
        return ["network"] * num_epochs
    last = num_epochs // _NETWORK_SHARE if network else 0
    ema = num_epochs // 2 if fresh and init == "uniform" else 0
    return ["ema"] * ema + ["refine"] * (num_epochs - ema - last) + ["network"] * last


def make_plan(
    phases: Sequence[str],
    config: TrainerConfig,
    model_config: SemanticIDConfig,
    *,
    num_rows: int,
    block_rows: int,
    guided: bool,
) -> Plan:
    """把各期排成一个个 epoch；只由参数决定，所以断点只须记住 `phases`。

    Args:
        phases: `plan_phases` 的结果。
        config: 用到 effort、seed、learning_rate。
        model_config: 码本大小与宽度。
        num_rows: 训练行数 T。
        block_rows: 一块至多几行；精修一轮用一块。
        guided: 给了物品对。行为里的近邻落在同一个 L1 里，是 k-means 在对齐过的隐向量上得到的；精修只为误差，会把它拉
            回去，所以 L1 不动（只有一层时照样精修）。
    """
    effort = EFFORTS[config.effort]
    num_rounds = rounds_per_epoch(effort, min(num_rows, block_rows), model_config)
    num_passes = passes_per_epoch(effort, num_rows, model_config)
    total_rounds = list(phases).count("refine") * num_rounds
    seed = config.seed * 1_000_003 % 2**40
    epochs: List[Epoch] = []
    for number, phase in enumerate(phases, start=1):
        order = list(phases[: number - 1]).count(phase)  # 同一期里的第几个，从 0 起
        if phase == "refine":
            first = order * num_rounds
            rounds = tuple(Round(r, seed + r, r / total_rounds) for r in range(first, first + num_rounds))
            epochs.append(Epoch(number, phase, rounds=rounds))
        elif phase == "network":
            first = (number - 1) * num_passes + 1
            rate = config.learning_rate * _NETWORK_DECAY**order
            shuffles = tuple(range(first, first + num_passes))
            epochs.append(Epoch(number, phase, shuffles=shuffles, learning_rate=rate))
        else:
            epochs.append(Epoch(number, phase, shuffles=(number,)))
    refit = tuple(Round(number, config.seed, 1.0) for number in range(_REFIT_ROUNDS))
    return Plan(tuple(epochs), refit, min(int(guided), len(model_config.codebook_sizes) - 1))


def beam_size_of(config: TrainerConfig, model_config: SemanticIDConfig, *, fresh: bool) -> int | None:
    """训练好的模型用多宽的束编码；它决定 ID，所以只在没人定过时才由配方定。

    Args:
        config: 明确给出的 `beam_size` 总是算数。
        model_config: 已经定下的（包括明确给出的 1）不改。
        fresh: 这次要初始化；接着训练一个没有记下束宽的旧模型时，它仍按 1 读，不改。

    Returns:
        束宽；None 为仍不定。
    """
    if config.beam_size is not None:
        return config.beam_size
    if model_config.beam_size is not None or not fresh:
        return model_config.beam_size
    return EFFORTS[config.effort].beam_size


def rounds_per_epoch(effort: Effort, num_rows: int, model_config: SemanticIDConfig) -> int:
    """一个精修 epoch 跑几轮：数据小、一轮便宜，就多跑几轮；轮数越多误差越低（docs/log.md）。

    Args:
        effort: 哪一档力气，定出上下限。
        num_rows: 一轮用多少行。
        model_config: 码本大小与宽度。
    """
    work = num_rows * sum(model_config.codebook_sizes) * model_config.width  # 一轮编码的乘加数
    return min(effort.max_rounds, max(effort.min_rounds, int(_EPOCH_WORK // work)))


def passes_per_epoch(effort: Effort, num_rows: int, model_config: SemanticIDConfig) -> int:
    """一个 network epoch 至多过几遍数据：与 `rounds_per_epoch` 同样的力气、同样的上限；参数的意义也相同。"""
    c = model_config
    work = 3 * num_rows * c.hidden_dim * (c.embedding_dim + c.width)  # 解码网络的前向一份，反向两份
    return min(effort.max_rounds, max(1, int(_EPOCH_WORK // work)))
