"""没有解码器的编码也能重建：给每层的每个编号一个向量，加起来就是物品；这些向量由特征自己求出。

第 l 层编号 k 的向量，是用到 (l, k) 的物品在前 l − 1 层之后的残差的平均（残差量化的解码方式，一层一层地求）。参数只有
ΣK_l 个向量，所以独占一个 ID 的物品也骗不了它：随机的编码得到 1 左右的相对误差，而「同 ID 物品的平均」会给出接近 0 的
假象。

形状字母：N 物品数，D 特征维度，L 层数，K_l 码本大小。内存：ΣK_l · D 个 float64。
"""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import numpy as np

from ..errors import InputError
from ..files.source import VectorSource
from .prefix_means import add_by_group_

__all__ = ["MAX_TABLE_BYTES", "additive_errors"]

MAX_TABLE_BYTES = 1 << 30


def additive_errors(
    source: VectorSource,
    codes: np.ndarray,
    sizes: Sequence[int],
    mean: np.ndarray,
    *,
    block_rows: int = 8192,
    on_block: Callable[[int], None] | None = None,
) -> Tuple[List[float], np.ndarray]:
    """逐层求平均，量出每层之后的误差；读 L + 1 遍。

    Args:
        source: N 行特征。
        codes: (N, L) 整数编码，第 l 列在 [0, K_l)。
        sizes: (K_1, …, K_L)。
        mean: (D,) float64，先减掉它。
        block_rows: 一次读多少行。
        on_block: 每读完一块调用一次，参数为这块的行数。

    Returns:
        (L 个 Σ‖残差‖²，依次为走完前 l 层；(N,) float32 每个物品最后的 ‖残差‖²)。

    Raises:
        ValueError: 向量表超过 `MAX_TABLE_BYTES`。
    """
    _check_table(sizes, source.dim)
    tables: List[np.ndarray] = []  # L × (K_l, D)
    sums: List[float] = []
    errors = np.empty(len(codes), dtype=np.float32)
    for level in range(len(sizes) + 1):
        fitting = level < len(sizes)
        total = 0.0
        table = np.zeros((sizes[level], source.dim)) if fitting else np.zeros((0, source.dim))
        for block in source.blocks(block_rows):
            rows = slice(block.start, block.start + len(block.vectors))
            left = block.vectors - mean  # (B, D) float64
            for done, vectors in enumerate(tables):
                left -= vectors[codes[rows, done]]
            squares = np.square(left).sum(axis=1)
            total += float(squares.sum())
            if fitting:
                add_by_group_(table, codes[rows, level], left)
            else:
                errors[rows] = squares
            if on_block is not None:
                on_block(len(block.vectors))
        if level > 0:
            sums.append(total)
        if fitting:
            counts = np.bincount(codes[:, level], minlength=sizes[level])
            tables.append(table / np.maximum(counts, 1)[:, None])
    return sums, errors


def _check_table(sizes: Sequence[int], dim: int) -> None:
    """向量表放得下。"""
    need = sum(sizes) * dim * 8
    if need > MAX_TABLE_BYTES:
        raise InputError(
            f"codebook_sizes={tuple(sizes)} need a table of {need} bytes, more than {MAX_TABLE_BYTES}; renumber the "
            "codes of each level from 0"
        )
