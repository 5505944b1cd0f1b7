"""联合精修：各层码本一起、而不是一层接一层地逼近数据。

逐层 k-means 里，L1 定下之后不再知道 L2、L3 会补上什么；这里交替做两件事，直到预定的轮数：

1. 编码：用当前码本给每行重新选编号（与上线时同一个 `encode`，贪心或束搜索都一样）；
2. 更新：固定编号，轮流重算每一层的码字 = 该层命中行的「其余各层留下的误差」之和 / (命中数 + λ)。

λ 把命中少的码字向零收缩：L3 每个码字只见过几行，不收缩就把噪声也背下来，新物品的误差反而大。
每轮编码之前给码字加一点退火的高斯噪声（幅度为当前误差的标准差的一个比例，逐轮减到零），跳出局部最优；
没被命中的码字也因此随机游走到有数据的地方。

形状字母：S 行数（至多一块），H 宽度，K_l 码本大小。谁可以写：只写各层码本（经由 `install_`）。

References:
    Babenko & Lempitsky, 2014, Additive Quantization（联合更新）；Martinez et al., 2018, LSQ++ 的随机松弛 SR-D。
"""

from __future__ import annotations

from typing import List

import torch

from .rq_vae import ResidualVectorQuantizer

__all__ = ["NOISE", "SHRINK_ROWS", "Refiner"]

SHRINK_ROWS = 1.0  # λ：每个码字额外附上这么多个位于原点的虚拟行
NOISE = 0.5  # 第一轮噪声的幅度，相对于误差的逐维标准差；之后按 √(剩余轮数比例) 递减
_SWEEPS = 2  # 每轮把各层轮流重算几遍；两遍已与精确解最小二乘的结果没有差别
_BLOCK_ROWS = 8192


class Refiner:
    """在一组固定的隐向量上精修各层码本。

    Attributes:
        residual_std: (H,) 上一轮结束时误差的逐维标准差；还没有跑过时为 None。它是唯一跨轮的状态，断点要存它。
    """

    def __init__(self, rq_vae: ResidualVectorQuantizer, z: torch.Tensor):
        """z: (S, H) float32，与模型同设备，只读；特征网络须仍是恒等映射，此时隐向量就是特征。"""
        self._rq_vae, self._z = rq_vae, z
        self.residual_std: torch.Tensor | None = None

    @torch.no_grad()
    def round_(self, temperature: float, seed: int, batch_size: int) -> List[torch.Tensor]:
        """一轮：加噪、编码、更新。

        Args:
            temperature: [0, 1]，1 为最大噪声；第一轮还不知道误差大小，不加。
            seed: 这一轮噪声的种子；同样的种子得到同样的字节。
            batch_size: 交给 `install_`。

        Returns:
            各层 (S,) int64 编号，来自这一轮的编码。
        """
        quantizers = self._rq_vae.quantizers
        if self.residual_std is not None and temperature > 0:
            generator = torch.Generator().manual_seed(seed)
            for quantizer in quantizers:
                weight = quantizer.embedding.weight
                noise = torch.empty(weight.shape).normal_(generator=generator).to(weight.device)
                weight.add_(noise * (self.residual_std * (NOISE * temperature)))
        codes = list(self._rq_vae.encode(self._z))
        books = [quantizer.embedding.weight.clone() for quantizer in quantizers]
        error = self._z.clone()  # (S, H)，始终等于 z 减去全部码字
        for book, indices in zip(books, codes, strict=True):
            _add_codewords_(error, book, indices, -1.0)
        for _ in range(_SWEEPS):
            for level, indices in enumerate(codes):
                _add_codewords_(error, books[level], indices, 1.0)
                books[level] = _shrunken_means(error, indices, books[level])
                _add_codewords_(error, books[level], indices, -1.0)
        self.residual_std = error.std(dim=0, correction=0)
        for quantizer, book, indices in zip(quantizers, books, codes, strict=True):
            quantizer.install_(book, indices, batch_size)
        return codes


def _add_codewords_(error: torch.Tensor, book: torch.Tensor, indices: torch.Tensor, sign: float) -> None:
    """Error (S, H) 就地加上（或减去）每行的码字；分块，不产生 (S, H) 的临时张量。"""
    for start in range(0, len(error), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        error[block].add_(book[indices[block]], alpha=sign)


def _shrunken_means(error: torch.Tensor, indices: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """每个码字 = 命中行的误差之和 / (命中数 + λ)，(K, H)；没命中的留在原处。float64 累加，大簇不丢精度。"""
    sums = torch.zeros(old.shape, dtype=torch.float64, device=old.device)
    for start in range(0, len(error), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        sums.index_add_(0, indices[block], error[block].double())
    counts = torch.bincount(indices, minlength=len(old))
    means = (sums / (counts + SHRINK_ROWS)[:, None]).float()
    return torch.where((counts > 0)[:, None], means, old)
