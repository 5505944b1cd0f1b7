"""残差量化：逐层取残差、逐层查码本，一次 straight-through，给出损失。

形状字母：B 批大小，D 特征维度，H 隐向量宽度，L 层数，K_l 第 l 层码本大小。

    x (B, D) ─encoder→ z (B, H)；r_1 = z，q_l = 最近码字(r_l)，r_{l+1} = r_l − q_l；Σ q_l ─decoder→ x̂ (B, D)

`forward` 与 `encode` 走同一段残差运算（`residuals`）；`beam_size` > 1 时先由 `search/beam.py` 找出路径，再逐层取残差。
需求草稿在 forward 里用 `r − (r + (q − r))`，与 encode 的 `r − q` 舍入不同，训练时看到的 ID 与上线的 ID 因此会不一致。
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from .checks import check_codes, check_features, check_finite_rows, check_one_process, check_shape
from .codebook import VectorQuantizer
from .config import MAX_BEAM_SIZE, SemanticIDConfig
from .errors import InputError
from .limits import check_int
from .search import beam

__all__ = ["ResidualVectorQuantizer"]

_ENCODE_ROWS = 8192  # 256 维时一块 8 MB
_CUDA_ROWS = 32768  # 显卡上块再短，时间就都花在等待上


class ResidualVectorQuantizer(nn.Module):
    """残差向量量化器（RQ-VAE 的主体）。

    Args:
        config: 结构参数；在此校验，并保存校验后的副本。
        encoder: (B, D) → (B, H) 的特征网络；None 为恒等映射。
        decoder: (B, H) → (B, D) 的特征网络；None 为恒等映射。

    Attributes:
        beam_table_bytes: 束搜索的内积表至多占多少内存；只影响速度，不决定 ID，所以不在配置里。默认 512 MiB 放得下
            默认规模的 168 MiB；设为 0 则不建表，束宽 4 的编码从约 1.5–1.9 倍贪心的时间变成约 3.9 倍
            （AMX 从不建表，总是 3.9 倍）。

    Raises:
        TypeError, ValueError: 配置不合法。

    References:
        Lee et al., 2022, Autoregressive Image Generation using Residual Quantization, arXiv:2203.01941；
        Rajput et al., 2023, Recommender Systems with Generative Retrieval (TIGER), arXiv:2305.05065。
    """

    # nn.Module 把子模块一律标成 Module；这里写出实际类型，调用处才查得出错
    encoder: Any
    decoder: Any
    quantizers: Sequence[VectorQuantizer]
    initialized: torch.Tensor

    def __init__(self, config: SemanticIDConfig, encoder: nn.Module | None = None, decoder: nn.Module | None = None):
        super().__init__()
        self.config = config.resolved()
        self.encoder = encoder if encoder is not None else nn.Identity()
        self.decoder = decoder if decoder is not None else nn.Identity()
        self.quantizers = nn.ModuleList(  # type: ignore[assignment]
            VectorQuantizer(size, self.config.width, self.config.ema_decay, self.config.epsilon)
            for size in self.config.codebook_sizes
        )
        # 依赖数据的初始化只做一次；写成 buffer，重新加载之后也记得
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.beam_table_bytes = 512 << 20
        self._products: beam.InnerProducts | None = None

    def __getstate__(self) -> Dict[str, Any]:
        """复制与序列化时丢掉内积表：它可以随时由权重重建。"""
        return {**self.__dict__, "_products": None}

    def residuals(
        self, z: torch.Tensor, beam_size: int | None = None
    ) -> Iterator[Tuple[VectorQuantizer, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """逐层产出 (量化器, 残差 (B, H), 编号 (B,), 码字 (B, H))；forward、encode 与训练器共用的唯一一处残差运算。

        束搜索要看完所有层才定得下每层的编号，所以先找编号；残差仍在这里逐层相减，与贪心同一段代码。
        `beam_size` 为 None 时取配置里的束宽。
        """
        residual = z
        beam_size = self.config.beam if beam_size is None else beam_size
        codes = self._paths(z, beam_size)[0][:, 0] if beam_size > 1 else None  # (B, L)
        for level, quantizer in enumerate(self.quantizers):
            indices = quantizer.lookup(residual) if codes is None else codes[:, level]
            codewords = quantizer.embedding(indices)
            yield quantizer, residual, indices, codewords
            residual = residual - codewords

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """编码为多层编号；训练模式与评估模式结果相同，且不写任何状态。

        Args:
            x: (B, D) 浮点特征。

        Returns:
            L 个 (B,) int64 张量。

        Raises:
            TypeError: 不是实浮点张量。
            ValueError: 形状不对，或含 NaN/Inf。
        """
        check_shape(x, self.config.embedding_dim)
        # 分块只为限制内存：一行的编号与它和谁同批无关，块多大都是同样的 ID
        blocks = []
        rows = _CUDA_ROWS if x.is_cuda else _ENCODE_ROWS
        for start in range(0, len(x), rows):
            block = x[start : start + rows].float()
            check_finite_rows(block, "features", row_offset=start)
            blocks.append([indices for _, _, indices, _ in self.residuals(self._latent(block))])
        return tuple(torch.cat(level) for level in zip(*blocks, strict=True))

    @torch.no_grad()
    def encode_latent(self, z: torch.Tensor, beam_size: int) -> Tuple[torch.Tensor, ...]:
        """(N, H) 隐向量 → L 个 (N,) 编号，束宽由调用者定；训练器用，z 已检查过。"""
        rows = _CUDA_ROWS if z.is_cuda else _ENCODE_ROWS
        blocks = [[indices for _, _, indices, _ in self.residuals(block, beam_size)] for block in z.split(rows)]
        return tuple(torch.cat(level) for level in zip(*blocks, strict=True))

    @torch.no_grad()
    def encode_candidates(self, x: torch.Tensor, num_candidates: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """每行的几条候选路径与误差，按（误差，编号字典序）递增；见 `SemanticIDEncoder.encode_candidates`。"""
        check_shape(x, self.config.embedding_dim)
        num_candidates = check_int("num_candidates", num_candidates, 1, MAX_BEAM_SIZE)
        codes, errors = [], []
        for start in range(0, len(x), _ENCODE_ROWS):
            block = x[start : start + _ENCODE_ROWS].float()
            check_finite_rows(block, "features", row_offset=start)
            found = self._paths(self._latent(block), max(num_candidates, self.config.beam))
            codes.append(found[0][:, :num_candidates])
            errors.append(found[1][:, :num_candidates])
        return torch.cat(codes), torch.cat(errors)

    @torch.no_grad()
    def prefix_candidates(
        self, x: torch.Tensor, prefixes: torch.Tensor, num_candidates: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """前 L − 1 层固定，只挑最后一层的几条候选；见 `SemanticIDEncoder.encode_candidates`。"""
        check_shape(x, self.config.embedding_dim)
        last, levels = self.quantizers[-1], len(self.quantizers)
        num_candidates = check_int("num_candidates", num_candidates, 1)
        if prefixes.shape != (len(x), levels - 1):
            raise InputError(f"prefixes has shape {tuple(prefixes.shape)}; need ({len(x)}, {levels - 1})")
        if levels > 1:
            check_codes(prefixes.unbind(1), self.config.codebook_sizes[:-1])
        weight, book = last.embedding.weight.detach(), last.prepared(len(x))
        rows = max(1, _ENCODE_ROWS * 16 // max(num_candidates, 16))
        codes, errors = [], []
        for start in range(0, len(x), rows):
            block = x[start : start + rows].float()
            check_finite_rows(block, "features", row_offset=start)
            prefix = prefixes[start : start + rows]
            residual = self._residual(self._latent(block), prefix)
            # 只剩一层的束搜索就是「最近的几个码字」：同一定义、同一误差、同样与批无关
            if num_candidates <= MAX_BEAM_SIZE:
                found, error = beam.search(residual, [weight], [book], num_candidates)
                found = found[:, :, 0]  # (b, M)
            else:
                found, error = beam.all_nearest(residual, weight, book, num_candidates)
            path = torch.cat([prefix[:, None].expand(-1, found.shape[1], -1), found[:, :, None]], 2)
            codes.append(path.masked_fill(found[:, :, None] < 0, -1))
            errors.append(error)
        return torch.cat(codes), torch.cat(errors)

    @torch.no_grad()
    def path_errors(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """每走一层之后的误差，见 `SemanticIDEncoder.path_errors`。"""
        check_shape(x, self.config.embedding_dim)
        shape = (len(x), len(self.quantizers))
        if not isinstance(codes, torch.Tensor) or codes.shape != shape:
            found = tuple(codes.shape) if isinstance(codes, torch.Tensor) else type(codes).__name__
            raise InputError(f"codes must be a tensor of shape {shape}, one row per feature row, got {found}")
        check_codes(codes.unbind(1), self.config.codebook_sizes)
        out = []
        for start in range(0, len(x), 1024):
            block = x[start : start + 1024].float()
            check_finite_rows(block, "features", row_offset=start)
            residual, errors = self._latent(block), []
            for level, quantizer in enumerate(self.quantizers):
                codewords = quantizer.embedding(codes[start : start + 1024, level])
                errors.append(beam.distance(residual, codewords))  # (b,)
                residual = residual - codewords
            out.append(torch.stack(errors, 1))
        return torch.cat(out)

    def refresh_(self) -> None:
        """忘掉为搜索整理的一切，见 `SemanticIDEncoder.refresh_`。"""
        for quantizer in self.quantizers:
            quantizer.refresh_()

    def _residual(self, z: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
        """走完前缀之后的残差，逐层相减，与 `residuals` 同样的舍入。"""
        for level in range(prefixes.shape[1]):
            z = z - self.quantizers[level].embedding(prefixes[:, level])
        return z

    @torch.no_grad()
    def decode(self, *indices: torch.Tensor) -> torch.Tensor:
        """从各层编号重建特征：码字之和再过解码网络。

        Args:
            *indices: L 个 (B,) 整数张量。

        Returns:
            (B, D) float32。

        Raises:
            TypeError: 不是整数张量。
            ValueError: 层数、形状不对，或编号越界。
        """
        return self.decoder(self.codeword_sum(check_codes(indices, self.config.codebook_sizes)))

    def codeword_sum(self, indices: Sequence[torch.Tensor]) -> torch.Tensor:
        """各层码字之和 (B, H)：解码网络的输入；`indices` 是 L 个 (B,) 整数张量，假定都在界内。"""
        total = self.quantizers[0].embedding(indices[0])  # (B, H)
        for quantizer, level_indices in zip(self.quantizers[1:], indices[1:], strict=True):
            total = total + quantizer.embedding(level_indices)
        return total

    def forward(self, x: torch.Tensor) -> Dict[str, Any]:
        """完整前向；训练模式下顺带更新各层码本。

        straight-through 只在码字之和上做一步。逐层做的话，每一层都把 z 的梯度原样加一遍，
        L 层的重建梯度就成了 L 倍。

        Args:
            x: (B, D) 浮点特征。

        Returns:
            字典：`quantized` (B, D) 重建特征；`indices` L 个 (B,) int64；`reconstruction_loss`
            mean((x − x̂)²)；`commitment_loss` Σ_l mean((r_l − sg[q_l])²)，没有乘 β；
            `total_loss` = reconstruction_loss + β · commitment_loss。

        Raises:
            TypeError: 不是实浮点张量。
            ValueError: 形状不对，或含 NaN/Inf。
            MultiProcessTrainingError: 训练模式下，进程组里不止一个进程；码本还没有动过。
        """
        x = check_features(x, self.config.embedding_dim)
        if self.training:
            check_one_process()
        z = self._latent(x)  # (B, H)
        all_indices = []
        commitment_loss = z.new_zeros(())
        quantized_sum = torch.zeros_like(z)
        for quantizer, residual, indices, codewords in self.residuals(z):
            all_indices.append(indices)
            commitment_loss = commitment_loss + F.mse_loss(residual, codewords)
            quantized_sum = quantized_sum + codewords
            if self.training:  # codewords 是副本，之后的残差仍用更新前的码字
                quantizer.update_(residual, indices)
        quantized = self.decoder(z + (quantized_sum - z).detach())  # (B, D)
        reconstruction_loss = F.mse_loss(quantized, x)
        return {
            "quantized": quantized,
            "indices": all_indices,
            "reconstruction_loss": reconstruction_loss,
            "commitment_loss": commitment_loss,
            "total_loss": reconstruction_loss + self.config.commitment_cost * commitment_loss,
        }

    def _paths(self, z: torch.Tensor, beam_size: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """束搜索 → 路径 (B, M, L) 与误差 (B, M)；码本变了，内积表就重来。"""
        weights = [quantizer.embedding.weight for quantizer in self.quantizers]
        books = [quantizer.prepared(len(z)) for quantizer in self.quantizers]
        if self._products is None or not self._products.is_current(books):
            self._products = beam.InnerProducts(books)
        self._products.grow_(weights, len(z), beam_size, self.beam_table_bytes)
        return beam.search(z, weights, books, beam_size, self._products)

    def _latent(self, x: torch.Tensor) -> torch.Tensor:
        """过特征网络，得到 (B, H) 隐向量；x 已在门口检查过。"""
        z = self.encoder(x)
        if z is not x:  # 网络的权重若已发散，隐向量会是 NaN，编号 0 不能替它遮掩
            check_finite_rows(z, "latent")
        return z
