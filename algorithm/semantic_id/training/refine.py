"""联合精修：各层码本一起、而不是一层接一层地逼近数据。

逐层 k-means 里，L1 定下之后不再知道 L2、L3 会补上什么；这里交替做两件事，直到预定的轮数：

1. 编码：用当前码本给每行重新选编号（贪心：前缀因此仍是「最近的大类」；
   只有最后不加噪的两轮按读码时的束宽，见 `plan.py`）；
2. 更新：固定编号，轮流重算每一层的码字 = 该层命中行的「其余各层留下的误差」的加权和 / (权重之和 + λ)。

撞在一起的行少算票：n 行得到同一个 ID 时，每行的权重是 n⁻ᵖ。码字若被一堆撞在一起的行拉到它们正中间，这些行就更
分不开；p = 3 时它们合起来只算 1/n² 票，冲突率降四到六成，未见误差至多多 1.3%。行多得 ID 不够分时，冲突免不了，少算票
只会让稠密处没有码字（每个 ID 两行以上时误差多 4%–13%），所以 p 随「行数 ÷ ID 总数」线性地退到零。数字都在 docs/log.md。

λ 把命中少的码字向零收缩：L3 每个码字只见过几行，不收缩就把噪声也背下来，新物品的误差反而大。
每轮编码之前给码字加一点退火的高斯噪声（幅度为当前误差的标准差的一个比例，逐轮减到零），跳出局部最优；
一轮下来没有命中的码字放到误差大的行的码字旁边，去分裂那个簇。

形状字母：S 行数（至多一块），H 宽度，K_l 码本大小，L 层数。谁可以写：只写各层码本（经由 `install_`）。

References:
    Babenko & Lempitsky, 2014, Additive Quantization（联合更新）；Martinez et al., 2018, LSQ++ 的随机松弛 SR-D。
"""

from __future__ import annotations

import math
from typing import List, Sequence

import torch

from ..codebook import REVIVE_STEP, draw_by_weight
from ..rq_vae import ResidualVectorQuantizer

__all__ = ["NOISE", "SHRINK_VOTES", "Refiner", "votes"]

SHRINK_VOTES = 1.0  # λ：每个码字额外附上这么多票、位于原点的虚拟行
NOISE = 0.5  # 第一轮噪声的幅度，相对于误差的逐维标准差；之后按 √(剩余轮数比例) 递减
_VOTE_POWER = 3  # ID 绰绰有余时的 p
_SWEEPS = 2  # 每轮把各层轮流重算几遍；两遍已与精确解最小二乘的结果没有差别
_BLOCK_ROWS = 8192


class Refiner:
    """一轮一轮地精修各层码本。

    Args:
        rq_vae: 就地修改它的码本。
        num_frozen: 前几层的码本不动，只精修其余各层；它们仍由编码时的残差起作用。
        residual_std: 接着前一次精修时，那一次结束时的 `residual_std`。

    Attributes:
        residual_std: (H,) 上一轮结束时误差的逐维标准差；还没有跑过时为 None。它是唯一跨轮的状态，断点要存它。
    """

    def __init__(self, rq_vae: ResidualVectorQuantizer, num_frozen: int = 0, residual_std: torch.Tensor | None = None):
        self._rq_vae, self._num_frozen, self.residual_std = rq_vae, num_frozen, residual_std

    @torch.no_grad()
    def round_(
        self, z: torch.Tensor, temperature: float, seed: int, batch_size: int, *, trust: float = 0.0, beam_size: int = 1
    ) -> List[torch.Tensor]:
        """一轮：加噪、编码、更新。

        Args:
            z: (S, H) float32 隐向量，与模型同设备，只读。
            temperature: [0, 1]，1 为最大噪声；第一轮还不知道误差大小，不加。
            seed: 这一轮噪声的种子；同样的种子得到同样的字节。
            batch_size: 交给 `install_`。
            trust: 旧码字值多少，相对于这一轮的票数，≥ 0。每轮换一批行时越往后越大：码字于是是许多批的平均，
                而不只记得最后一批；行不换时为 0。
            beam_size: 编码用的束宽。

        Returns:
            各层 (S,) int64 编号，来自这一轮的编码。
        """
        quantizers = self._rq_vae.quantizers
        generator = torch.Generator().manual_seed(seed)
        if self.residual_std is not None and temperature > 0:
            for quantizer in quantizers[self._num_frozen :]:
                weight = quantizer.embedding.weight
                noise = torch.empty(weight.shape).normal_(generator=generator).to(weight.device)
                weight.add_(noise * (self.residual_std * (NOISE * temperature)))
        codes = list(self._rq_vae.encode_latent(z, beam_size))
        old = [quantizer.embedding.weight.clone() for quantizer in quantizers]
        books = list(old)
        weights = votes(codes, self._rq_vae.config.codebook_sizes)  # (S,)
        error = z.clone()  # (S, H)，始终等于 z 减去全部码字
        for book, indices in zip(books, codes, strict=True):
            _add_codewords_(error, book, indices, -1.0)
        for _ in range(_SWEEPS):
            for level in range(self._num_frozen, len(codes)):
                indices = codes[level]
                _add_codewords_(error, books[level], indices, 1.0)
                books[level] = _shrunken_means(error, indices, weights, old[level], trust)
                _add_codewords_(error, books[level], indices, -1.0)
        self.residual_std = error.std(dim=0, correction=0)
        for level, (quantizer, book, indices) in enumerate(zip(quantizers, books, codes, strict=True)):
            if level >= self._num_frozen:
                _split_with_unused_(book, error, indices, weights, generator)
            quantizer.install_(book, indices, batch_size)
        return codes


def votes(codes: Sequence[torch.Tensor], codebook_sizes: Sequence[int]) -> torch.Tensor:
    """每行的权重 n⁻ᵖ，(S,) float32：n 为与它同一个 ID 的行数，p = 3 · max(0, 1 − S / ΠK_l)。

    Args:
        codes: L 个 (S,) int64 编号。
        codebook_sizes: 各层码本大小 (K_1, …, K_L)。

    Examples:
        >>> votes([torch.tensor([0, 0, 1]), torch.tensor([5, 5, 5])], (1024, 2**30)).tolist()
        [0.125, 0.125, 1.0]
        >>> votes([torch.tensor([0, 0, 0, 0])], (2,)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    group = torch.zeros_like(codes[0])
    for indices in codes:  # 逐层合并成组号：组号小于 S，所以多少层、多大的码本都不会溢出
        _, group = torch.unique(group * (int(indices.max()) + 1) + indices, return_inverse=True)
    power = _VOTE_POWER * max(0.0, 1 - len(group) / math.prod(codebook_sizes))
    return torch.bincount(group)[group].double().pow_(-power).float()


def _add_codewords_(error: torch.Tensor, book: torch.Tensor, indices: torch.Tensor, sign: float) -> None:
    """在误差 (S, H) 上就地加上（或减去）每行的码字；分块，不产生 (S, H) 的临时张量。"""
    for start in range(0, len(error), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        error[block].add_(book[indices[block]], alpha=sign)


def _shrunken_means(
    error: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, old: torch.Tensor, trust: float
) -> torch.Tensor:
    """每个码字 = (Σ w·误差 + κ·旧码字) / (Σ w + λ + κ)，κ = trust · Σ w，(K, H)；没命中的留在原处。

    float64 累加，大簇不丢精度。
    """
    sums = torch.zeros(old.shape, dtype=torch.float64, device=old.device)
    for start in range(0, len(error), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        sums.index_add_(0, indices[block], (error[block] * weights[block, None]).double())
    totals = torch.zeros(len(old), dtype=torch.float64, device=old.device).index_add_(0, indices, weights.double())
    if trust > 0:
        sums += (trust * totals)[:, None] * old
    means = (sums / (totals * (1 + trust) + SHRINK_VOTES)[:, None]).float()
    return torch.where((totals > 0)[:, None], means, old)


def _split_with_unused_(
    book: torch.Tensor, error: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, generator: torch.Generator
) -> None:
    """没有命中的码字放到按（权重 × 误差平方）抽中的行的码字旁边，朝那一行走一小步。

    不管它的话，噪声会让它越走越远，噪声大时利用率掉到七成。步长与在线训练的复活相同，理由也相同。
    """
    unused = (torch.bincount(indices, minlength=len(book)) == 0).nonzero()[:, 0]
    if len(unused) == 0:
        return
    cost = (error.square().sum(1) * weights).double().cpu()  # (S,)
    rows = draw_by_weight(cost, len(unused), generator).to(book.device)
    book[unused[: len(rows)]] = book[indices[rows]] + REVIVE_STEP * error[rows]
