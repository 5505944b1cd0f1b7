"""FORGE 的两个免训练指标：嵌入命中率与 ID 的基尼系数。数组进，数字出，只依赖 NumPy。

形状字母：N 物品数，L 层数，P 物品对数，Q 查询物品数，K 近邻数。

FORGE 报告这两个数与下游召回同向。命中率说的是「特征（或重建）里的近邻，是不是真的被一起消费」，基尼系数说的是「物品在
各个 ID 上分得匀不匀」。论文的公式读不到原文时，以作者仓库的说明与引用它的工作为准，出处写在各函数里。
"""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

import numpy as np

from ..errors import InputError
from .codes import gini, group_sizes
from .neighbours import check_rows

__all__ = ["co_consumed", "embedding_hit_rate", "id_gini"]


def id_gini(codes: Any) -> float:
    """ID 的基尼系数：物品在各个 ID 上分得多不匀。

    定义同 `metrics.gini`，但数的是每个**用到的**完整 ID 上的物品数（没有物品的组合不算，否则几乎总是 1）；无单位；
    [0, 1)，0 为人人独占；总体为传入的全部行；精确。

    Args:
        codes: (N, L) 整数编码。

    References:
        FORGE, 2025, arXiv:2509.20904；口径依其仓库 selous123/al_sid 的说明：按 sid 分组计数，只含出现过的 sid。

    Examples:
        >>> id_gini([[0, 0], [0, 0], [0, 0], [1, 5]])
        0.25
    """
    return gini(group_sizes(codes))


def co_consumed(pairs: Any, num_items: int, num_queries: int, seed: int) -> Tuple[np.ndarray, List[np.ndarray]]:
    """挑出有行为的物品做查询，连同各自被一起消费过的物品。

    Args:
        pairs: (P, 2) 行号；无方向，(i, j) 让 j 成为 i 的、i 成为 j 的共同消费物品。
        num_items: 物品数 N。
        num_queries: 至多几个查询；超过时按种子不放回地抽。
        seed: `numpy.random.default_rng` 的种子。

    Returns:
        (rows, partners)：(Q,) 升序行号；每个查询的共同消费物品，升序、不重复、不含自己。

    Examples:
        >>> rows, partners = co_consumed([[0, 2], [2, 1]], 3, 10, 0)
        >>> rows.tolist(), [p.tolist() for p in partners]
        ([0, 1, 2], [[2], [2], [0, 1]])
    """
    both = np.asarray(pairs)
    both = check_rows(both.reshape(-1), num_items, "pairs").reshape(-1, 2)
    both = both[both[:, 0] != both[:, 1]]
    edges = np.unique(np.concatenate([both, both[:, ::-1]]), axis=0)  # (E, 2)，按左边的物品排好
    rows, starts = np.unique(edges[:, 0], return_index=True)
    chosen = np.arange(len(rows))
    if len(rows) > num_queries:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), num_queries, replace=False))
    stops = np.append(starts, len(edges))
    return rows[chosen], [edges[stops[i] : stops[i + 1], 1] for i in chosen]


def embedding_hit_rate(neighbours: Any, partners: Sequence[np.ndarray], k: int) -> float:
    """嵌入命中率：一个物品被一起消费过的物品，有多少落在它向量的前 K 个近邻里。

    定义 (1/Q) Σ_q |R_q ∩ top-K(q)| / |R_q|，R_q 为 q 的共同消费物品；无单位；[0, 1]，随机水平约为 K / (N − 1)；总体为
    查询物品（有行为的，或其中的抽样）与全部 N 个候选；近邻由调用者给，精确与否由它说明。

    Args:
        neighbours: (Q, ≥ K) 行号，由近到远，不含自己。
        partners: Q 个数组，`co_consumed` 的结果。
        k: 近邻数 K ≥ 1。

    Raises:
        ValueError: 行数不等，或近邻不够 K 个。

    References:
        FORGE, 2025, arXiv:2509.20904（embedding hitrate）。论文没有公开这一项的代码，这里取引用它的工作写出的式子：
        共同消费邻居在前 K 个嵌入近邻里的平均召回。

    Examples:
        >>> embedding_hit_rate([[2, 1], [0, 2]], [np.array([2, 5]), np.array([2])], 1)
        0.25
        >>> embedding_hit_rate([[2, 1], [0, 2]], [np.array([2, 5]), np.array([2])], 2)
        0.75
    """
    near = np.asarray(neighbours)
    if near.ndim != 2 or len(near) != len(partners) or len(near) == 0:
        raise InputError(f"neighbours must have shape (Q, >= {k}) with Q={len(partners)} >= 1, got {near.shape}")
    if not 1 <= k <= near.shape[1]:
        raise InputError(f"k={k} is out of range; neighbours hold {near.shape[1]} columns")
    shares = [np.isin(wanted, row[:k]).mean() for row, wanted in zip(near, partners, strict=True)]
    return float(np.mean(shares))
