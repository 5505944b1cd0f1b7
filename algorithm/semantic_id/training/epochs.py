"""照计划过一个个 epoch；计划是 `plan.py` 的数据，这里只执行。

- `ema`：需求的在线 EMA（训练模式的 forward），用于 uniform 起步：它自带死码字复活。
- `refine`：`Refiner` 的若干轮，每轮是一遍编码加一次联合更新。
- `network`：冻结码本，用 Adam 训练解码网络；编号不会变，所以只算一次。

形状字母：B 批大小，S 一块的行数，D 特征维度，H 隐向量宽度，K_l 码本大小，L 层数。
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from ..files.progress import Progress
from ..metrics import codes as metrics
from ..rq_vae import ResidualVectorQuantizer
from .behaviour import fit_decoder_
from .initialize import latents_of
from .judge import judge
from .plan import PATIENCE, Epoch, Plan, Round
from .refine import Refiner
from .state import Job, RunState

__all__ = ["EpochRunner", "decoder_pass", "ema_epoch", "refine_epoch"]

_CODE_ROWS = 65536  # 编码这么多行报一次进度


class EpochRunner:
    """执行计划；跨 epoch 留着的隐向量与编号都能重算，所以不进断点。

    Args:
        job: 料。
        plan: 计划。
        state: 记住的事；就地更新。
    """

    def __init__(self, job: Job, plan: Plan, state: RunState):
        self._job, self._plan, self._state = job, plan, state
        self._judge_rows = job.rows.holdout if len(job.rows.holdout) else job.rows.sample()
        self._latents: torch.Tensor | None = None
        self._codes: torch.Tensor | None = None

    def run(self, epoch: Epoch) -> Dict[str, Any]:
        """过一个 epoch，返回它的记录（不含评判）。"""
        job, rq_vae = self._job, self._job.encoder.rq_vae
        label = f"{epoch.phase} {epoch.number}/{job.num_epochs}"
        if epoch.phase == "refine":
            return self._refine(epoch.rounds, self._latents_of_round, label, rotating=not job.rows.fits_one_block)
        if epoch.phase == "network":
            return self._network(epoch, label)
        batches = job.rows.batches(epoch.shuffles[0], job.config.batch_size)
        return ema_epoch(rq_vae, batches, job.rows.num_train_rows, job.bar, label)

    def judge(self) -> Tuple[Dict[str, Any], bool]:
        """在留出行（没有时为训练行）上评判此刻的编码器，好过最好的就记下；返回（数字，是否最好）。"""
        judged = judge(self._job.encoder, self._judge_rows, self._job.rows.mean)
        return judged, self._state.keep_if_best(self._job.encoder, judged)

    def refit(self) -> int:
        """选定并装回最好的状态之后，留出行也来教码本：训练行与留出行一起，不加噪、按读码时的束宽更新；返回用了几行。

        不再评判，所以 `holdout_` 的数字仍是它们没有参与时的，略微保守。三种情形不做，返回 0：没有留出行；
        数据超过一块，留出行不到 3%，不值得；精修一次也没有胜过起点，那么再更新也不会。训练过的解码网络留着不动。
        """
        job, state = self._job, self._state
        if not len(job.rows.holdout) or not job.rows.fits_one_block or not state.refining_paid():
            return 0
        z = latents_of(job.encoder, torch.cat([job.rows.draw(0), job.rows.holdout]))
        keeps_decoder = state.history[state.best_epoch]["phase"] == "network"
        beam_size = job.encoder.config.beam
        self._refine(self._plan.refit, lambda _: z, "refit", beam_size=beam_size, fits_decoder=not keeps_decoder)
        return len(z)

    def fit_decoder(self) -> None:
        """有物品对时隐向量离特征有一段距离，码本每变一次，就重新求一次从码字之和回到特征的线性映射。"""
        if self._job.pairs is not None:
            x = self._job.rows.draw(0)
            fit_decoder_(self._job.encoder.rq_vae, x, latents_of(self._job.encoder, x))

    def _refine(
        self,
        rounds: Sequence[Round],
        latents: Callable[[int], torch.Tensor],
        label: str,
        *,
        rotating: bool = False,
        beam_size: int = 1,
        fits_decoder: bool = True,
    ) -> Dict[str, Any]:
        """精修若干轮，再让解码跟上。"""
        job, state = self._job, self._state
        refiner = Refiner(job.encoder.rq_vae, self._plan.num_frozen, state.residual_std)
        record = refine_epoch(
            refiner, job.encoder.rq_vae, rounds, latents, job.config.batch_size, job.bar, label,
            rotating=rotating, beam_size=beam_size,
        )  # fmt: skip
        state.residual_std = refiner.residual_std
        if fits_decoder:
            self.fit_decoder()
        return record

    def _network(self, epoch: Epoch, label: str) -> Dict[str, Any]:
        """从最好的状态起训练解码网络若干遍，每遍都评判，结束时停在最好的一遍上；返回最后一遍的记录。

        编码网络不动：训练它，未见误差只升不降（docs/log.md），编码还要多算一个网络。码本也不动，所以几个 network epoch
        都是同样的编号，行一块放得下时只算一次。优化器每个 epoch 新建，断点不必存它。
        """
        job, state = self._job, self._state
        rq_vae = job.encoder.rq_vae
        job.encoder.load_state_dict(state.best_tensors)
        # fused：逐参数写要走四遍
        optimizer = torch.optim.Adam(rq_vae.decoder.parameters(), lr=epoch.learning_rate, fused=True)
        if self._codes is None and job.rows.fits_one_block:
            self._codes = self._encode(job.rows.draw(0), label)
        record: Dict[str, Any] = {}
        num_passes = stale = 0
        for shuffle in epoch.shuffles:
            num_passes += 1
            title = f"{label}, pass {num_passes}/{len(epoch.shuffles)}"
            batches = self._coded_batches(shuffle)
            record = decoder_pass(rq_vae, batches, job.rows.num_train_rows, optimizer, job.bar, title)
            _, is_best = self.judge()
            stale = 0 if is_best else stale + 1
            if stale == PATIENCE:
                break
        rq_vae.zero_grad(set_to_none=True)
        job.encoder.load_state_dict(state.best_tensors)
        return {**record, "passes": num_passes, "learning_rate": epoch.learning_rate}

    def _latents_of_round(self, number: int) -> torch.Tensor:
        """第 number 轮用的隐向量 (S, H)；行一块放得下时只算一次，否则每轮换一批行。"""
        if self._latents is None or not self._job.rows.fits_one_block:
            self._latents = latents_of(self._job.encoder, self._job.rows.draw(number))
        return self._latents

    def _encode(self, x: torch.Tensor, label: str) -> torch.Tensor:
        """`x` (S, D) 的编号 (S, L) int64，在 CPU 上。"""
        encoder, parts = self._job.encoder, []
        with self._job.bar.task(f"{label}, encoding", len(x)) as report:
            for start in range(0, len(x), _CODE_ROWS):
                codes = encoder.rq_vae.encode(x[start : start + _CODE_ROWS].to(encoder.feature_mean.device))
                parts.append(torch.stack([level.cpu() for level in codes], 1))
                report(start, len(x))
        return torch.cat(parts)

    def _coded_batches(self, shuffle: int) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """按第 shuffle 种次序打乱的批次：特征与编号；没有记着编号时边走边编码。"""
        job, size = self._job, self._job.config.batch_size
        if self._codes is None:
            device = job.encoder.feature_mean.device
            for batch in job.rows.batches(shuffle, size):
                yield batch, torch.stack(list(job.encoder.rq_vae.encode(batch.to(device))), 1)
            return
        x, order = job.rows.draw(0), torch.from_numpy(job.rows.order(shuffle))
        for part in order.split(size):
            yield x[part], self._codes[part]


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
