"""行为的因子：共同消费的正点互信息（PPMI）的截断 SVD，一个物品一行。

形状字母：N 物品数，F 因子数。

PPMI 是词向量的老办法（与 skip-gram 的负采样分解的是同一个矩阵）：log(a_ij · S / (r_i r_j))，负的当零。矩阵对称，只需
右乘，所以用块子空间迭代：稀疏乘稠密归 scipy，正交化与小矩阵的分解归 NumPy。起点由种子定，符号由每一列绝对值最大的元素
定，线程数相同就得到同样的字节。

References:
    Levy & Goldberg, 2014, Neural word embedding as implicit matrix factorization；
    Halko, Martinsson & Tropp, 2011, 随机化的低秩分解, arXiv:0909.4061。
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .graph import sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["FACTORS", "factorise", "to_ppmi", "unit_rows"]

FACTORS = 128
_OVERSAMPLE = 16  # 多带几列，最后几个因子才准
_ROUNDS = 4  # 子空间迭代的遍数；PPMI 的奇异值降得慢，少于三遍时末尾的因子还在转
_SEED = 0


def to_ppmi(edges: csr_array) -> csr_array:
    """边 → 正点互信息。

    Args:
        edges: (N, N) 对称非负；不改它。

    Returns:
        (N, N) float32，只留大于零的。

    Examples:
        两对互不相干的物品：a = 1，r = 1，S = 4，log 4。

        >>> from .graph import co_consumption
        >>> from .log import Log
        >>> edges = co_consumption(Log.of_sequences([[0, 1], [2, 3]], num_items=4))
        >>> [round(value, 3) for value in to_ppmi(edges).toarray()[0].tolist()]
        [0.0, 1.386, 0.0, 0.0]
    """
    sums = np.asarray(edges.sum(axis=1, dtype=np.float64))
    logs = np.log(np.where(sums > 0, sums, 1.0))
    data = np.log(edges.data.astype(np.float64))
    data += np.log(max(float(sums.sum()), np.finfo(np.float64).tiny))
    data -= np.repeat(logs, np.diff(edges.indptr)) + logs[edges.indices]
    out = sparse().csr_array(
        (np.maximum(data, 0.0).astype(np.float32), edges.indices.copy(), edges.indptr.copy()), shape=edges.shape
    )
    out.eliminate_zeros()
    return out


def factorise(matrix: csr_array, num_factors: int = FACTORS) -> np.ndarray:
    """对称矩阵 → 每个物品 F 个因子，单位长。

    Args:
        matrix: (N, N) 对称。
        num_factors: F ≥ 1；多于 N 时末尾的列是零。

    Returns:
        (N, F) float32，U · √|λ| 之后每行单位长，没有行为的行是零；按 |λ| 从大到小。
    """
    num_items = matrix.shape[0]
    width = min(num_factors + _OVERSAMPLE, num_items)
    basis = np.random.default_rng(_SEED).standard_normal((num_items, width), dtype=np.float32)
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(np.asarray(matrix @ basis))[0]
    image = np.asarray(matrix @ basis)  # (N, w)
    small = basis.T.astype(np.float64) @ image  # (w, w)，A 在子空间里的样子
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")[:num_factors]
    found = np.ascontiguousarray((vectors[:, order] * np.sqrt(np.abs(values[order]))).astype(np.float32))
    factors = np.zeros((num_items, num_factors), dtype=np.float32)
    factors[:, : len(order)] = basis @ found
    factors[np.diff(matrix.indptr) == 0] = 0.0
    peaks = factors[np.abs(factors).argmax(axis=0), np.arange(num_factors)]
    factors *= np.where(peaks < 0, -1.0, 1.0).astype(np.float32)
    return unit_rows(factors)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 → 每行单位长；零行仍是零，不变成 NaN。"""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(lengths > 0, lengths, 1.0).astype(np.float32)[:, None]).astype(np.float32, copy=False)
