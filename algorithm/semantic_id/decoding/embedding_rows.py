"""用码本初始化语义 ID 的词向量：语义相近的编号，词向量从第一步起就相近。

每层的码字 (K_l, H)：去均值、旋转到主方向、截到 d 维（截掉的是方差最小的方向），再乘一个随机的正交矩阵放进 d 维空间。
H ≤ d 时这是等距的：词向量之间的距离与码字之间的距离成正比。各层用不同的正交矩阵，不同层的词才不会碰巧相似。
"""

from __future__ import annotations

from typing import Sequence

import torch

from ..errors import InputError, InputTypeError
from .tokens import TokenLayout

__all__ = ["init_embedding_rows_", "project_codebook"]

# 没有旧词可以参照时的标准差：Transformer 词向量常用的初始值
_DEFAULT_STD = 0.02


def init_embedding_rows_(
    weight: torch.Tensor, layout: TokenLayout, codebooks: Sequence[torch.Tensor], *, seed: int = 0
) -> None:
    """就地改写语义 ID 各行；别的行不动。

    新行的均值与标准差取自已有的行，模型一开始就把它们当作普通的词；没有已有的行（例如 `TokenLayout.flat` 的新词表里
    只有五个特殊词）就用均值 0、标准差 0.02。

    Args:
        weight: (V, d) 词向量矩阵，V ≥ `layout.vocab_size`。
        layout: 词号排在哪里。
        codebooks: 各层码本 (K_l, H)；可以比层数少，余下的层（去重位没有码字）用随机行。
        seed: 随机正交矩阵与随机行的种子。

    Raises:
        TypeError: weight 不是浮点张量。
        ValueError: 形状或层数不符。
    """
    if not isinstance(weight, torch.Tensor) or not weight.dtype.is_floating_point:
        raise InputTypeError(
            "weight must be a floating torch.Tensor of shape (V, d), e.g. model.get_input_embeddings().weight"
        )
    if weight.ndim != 2 or weight.shape[0] < layout.vocab_size:
        raise InputError(
            f"weight has shape {tuple(weight.shape)}, but the tokens reach id {layout.vocab_size - 1}; call "
            "model.resize_token_embeddings(len(tokenizer)) first"
        )
    if len(codebooks) > layout.num_levels:
        raise InputError(f"got {len(codebooks)} codebooks for {layout.num_levels} levels; pass at most one per level")
    for level, codebook in enumerate(codebooks):
        if codebook.ndim != 2 or len(codebook) != layout.sizes[level]:
            raise InputError(
                f"codebook of L{level + 1} has shape {tuple(codebook.shape)}; need ({layout.sizes[level]}, H)"
            )
    width = weight.shape[1]
    with torch.no_grad():
        old = weight[: layout.offsets[0]].float()  # 分词器原有的词都在新词之前
        is_new = len(old) < 100  # 几个特殊词估不出均值与标准差
        mean = torch.zeros(width, device=weight.device) if is_new else old.mean(dim=0)
        std = _DEFAULT_STD if is_new else float((old - mean).square().mean().sqrt())
        for level, (offset, size) in enumerate(zip(layout.offsets, layout.sizes, strict=True)):
            if level < len(codebooks):
                rows = project_codebook(codebooks[level], width, seed=seed + level)
            else:
                rows = torch.randn(size, width, generator=torch.Generator().manual_seed(seed + level))
            rows = rows * (std / max(float(rows.square().mean().sqrt()), 1e-12))
            weight[offset : offset + size] = (mean + rows.to(weight.device)).to(weight.dtype)


def project_codebook(codebook: torch.Tensor, width: int, *, seed: int = 0) -> torch.Tensor:
    """(K, H) 码本 → (K, d) 去均值的投影，没有缩放；H ≤ d 时保持行间距离。

    Args:
        codebook: 码本。
        width: d，词向量的宽度。
        seed: 随机正交矩阵的种子。
    """
    if isinstance(width, bool) or not hasattr(width, "__index__") or width < 1:
        raise InputError(f"width={width!r} must be an int >= 1: the width of the embedding")
    centered = codebook.detach().cpu().double()
    centered = centered - centered.mean(dim=0)
    # 特征分解 (H, H) 而不是 K × H 的 SVD：K 到 16384，H 只有几百
    _, axes = torch.linalg.eigh(centered.T @ centered)  # 特征值从小到大
    kept = min(width, centered.shape[1])
    principal = centered @ axes[:, -kept:]  # (K, kept)
    noise = torch.randn(width, kept, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis, triangle = torch.linalg.qr(noise)  # (d, kept)，列正交
    basis = basis * triangle.diagonal().sign()  # QR 的符号随实现而变，定死它
    return (principal @ basis.T).float()
