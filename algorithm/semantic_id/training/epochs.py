"""一个 epoch 的三种过法：EMA、联合精修、解码网络；各返回一行记录。

- `ema`：需求的在线 EMA（训练模式的 forward），用于 uniform 起步：它自带死码字复活。
- `refine`：`Refiner` 的若干轮，每轮是一遍编码加一次联合更新。
- `network`：冻结码本，用 Adam 训练解码网络；编号不会变，所以只算一次。

形状字母：B 批大小，K_l 码本大小，L 层数。
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from ..config import Effort, SemanticIDConfig
from ..files.progress import Progress
from ..metrics import codes as metrics
from ..rq_vae import ResidualVectorQuantizer
from .refine import Refiner

__all__ = ["Round", "decoder_pass", "ema_epoch", "passes_per_epoch", "plan_phases", "refine_epoch", "rounds_per_epoch"]

_NETWORK_SHARE = 5  # 最后五分之一的 epoch 给解码网络
_EPOCH_WORK = 2e11  # 一个精修 epoch 值得花的乘加数，约几秒；一轮就超过它时跑 effort 的下限


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


def ema_epoch(
    rq_vae: ResidualVectorQuantizer, batches: Iterable[torch.Tensor], num_rows: int, bar: Progress, label: str
) -> Dict[str, Any]:
    """过一遍打乱的批次，用 EMA 更新码本，不求梯度。

    Args:
        rq_vae: 就地修改。
        batches: (B, D) float32 的批次。
        num_rows: 总行数，供进度条使用。
        bar: 进度条。
        label: 进度条上的字。

    Returns:
        平均损失与码本使用情况；口径为这一遍的训练行，编号取自当时的码本。
    """
    device = rq_vae.initialized.device
    rq_vae.train()
    totals = dict.fromkeys(("reconstruction_loss", "commitment_loss", "total_loss"), 0.0)
    counts = [np.zeros(size, dtype=np.int64) for size in rq_vae.config.codebook_sizes]
    seen = 0
    with bar.task(label, num_rows) as report, torch.no_grad():
        for batch in batches:
            output = rq_vae(batch.to(device))
            for name in totals:
                totals[name] += float(output[name]) * len(batch)
            _tally(counts, output["indices"])
            seen += len(batch)
            report(seen, num_rows)
    return {**{name: total / seen for name, total in totals.items()}, **_usage(counts)}


def decoder_pass(
    rq_vae: ResidualVectorQuantizer,
    batches: Iterable[Tuple[torch.Tensor, torch.Tensor]],
    num_rows: int,
    optimizer: torch.optim.Optimizer,
    bar: Progress,
    label: str,
) -> Dict[str, Any]:
    """过一遍打乱的批次，只训练解码网络：从码字之和重建特征。

    Args:
        rq_vae: 就地修改它的解码网络。
        batches: (B, D) float32 的特征与 (B, L) int64 的编号。
        num_rows: 总行数，供进度条使用。
        optimizer: 只含解码网络的参数。
        bar: 进度条。
        label: 进度条上的字。

    Returns:
        平均的重建损失与码本使用情况，口径为这一遍的训练行。
    """
    device = rq_vae.initialized.device
    rq_vae.eval()
    # 损失除以典型大小的平方：Adam 的轨迹与特征的单位无关（2 的幂时逐位无关）
    scale = 1.0 / float(rq_vae.encoder.unit) ** 2
    counts = [np.zeros(size, dtype=np.int64) for size in rq_vae.config.codebook_sizes]
    total, seen = 0.0, 0
    with bar.task(label, num_rows) as report, torch.enable_grad():
        for batch, codes in batches:
            quantized = rq_vae.codeword_sum(codes.to(device).unbind(1)).detach()  # (B, H)
            loss = F.mse_loss(rq_vae.decoder(quantized), batch.to(device))
            optimizer.zero_grad()
            (loss * scale).backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
            _tally(counts, codes.unbind(1))
            seen += len(batch)
            report(seen, num_rows)
    return {"reconstruction_loss": total / seen, **_usage(counts)}


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


def refine_epoch(
    refiner: Refiner,
    rq_vae: ResidualVectorQuantizer,
    rounds: Sequence[Round],
    latents: Callable[[int], torch.Tensor],
    batch_size: int,
    bar: Progress,
    label: str,
    *,
    rotating: bool,
    beam_size: int = 1,
) -> Dict[str, Any]:
    """精修若干轮。

    Args:
        refiner: 精修器。
        rq_vae: 就地修改。
        rounds: 依次跑的各轮。
        latents: 第几轮 → (S, H) 隐向量。
        batch_size: 之后 EMA 训练的批大小。
        bar: 进度条。
        label: 进度条上的字。
        rotating: 各轮的行是否不同（数据超过一块）；是则越往后越信任旧码字，等于对许多批取平均。
        beam_size: 编码用的束宽。

    Returns:
        最后一轮的码本使用情况；口径为这一轮的行，编号取自这一轮更新之前的码本。
    """
    codes: List[torch.Tensor] = []
    with bar.task(label, len(rounds)) as report:
        for done, (number, seed, progress) in enumerate(rounds, start=1):
            temperature, trust = math.sqrt(1 - progress), progress if rotating else 0.0
            codes = refiner.round_(latents(number), temperature, seed, batch_size, trust=trust, beam_size=beam_size)
            report(done, len(rounds))
    counts = [
        metrics.code_counts(indices.cpu().numpy(), size)
        for indices, size in zip(codes, rq_vae.config.codebook_sizes, strict=True)
    ]
    assert refiner.residual_std is not None
    return {"reconstruction_loss": float(refiner.residual_std.double().square().mean()), **_usage(counts)}


def _tally(counts: Sequence[np.ndarray], codes: Sequence[torch.Tensor]) -> None:
    """把各层的编号记进各层的命中次数。"""
    for count, indices in zip(counts, codes, strict=True):
        count += np.bincount(indices.cpu().numpy(), minlength=len(count))


def _usage(counts: Sequence[np.ndarray]) -> Dict[str, Any]:
    """各层利用率、困惑度、死码字数（这一遍里一次也没有命中的）。"""
    return {
        "utilization": [metrics.utilization(count) for count in counts],
        "perplexity": [metrics.perplexity(count) for count in counts],
        "dead_codes": [int((count == 0).sum()) for count in counts],
    }
