"""共同消费的图：同一个人先后消费的两个物品之间有一条边，离得越近越重。

形状字母：N 物品数，E 日志的行数，W 窗口，D 向量宽度。只读日志，不写任何东西。

边 (i, j) 的权重是 Σ_d DECAY^(d − 1) · n_d，n_d 为两者在同一个人的列表里相隔 d 个位置的次数，1 ≤ d ≤ W。次数是整数，
各 d 的次序固定，所以用户的次序、分块都不改变一个字节。

用来平滑时先除以 √(n_i n_j) + SHRINK（热门物品不把人人都拉向自己；只见过一两次的边不可信），再让每行之和为一。
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .log import Log

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["DECAY", "SHRINK", "WINDOW", "co_consumption", "neighbour_means", "sparse", "to_transition"]

WINDOW = 3  # 两份数据上都比 1、5、10、20 好（docs/log.md）
DECAY = 0.6
SHRINK = 10.0


def sparse() -> Any:
    """`scipy.sparse`；没装就说怎么装。"""
    try:
        import scipy.sparse
    except ImportError:
        raise ImportError("interactions need scipy; install it with: pip install 'semid[behaviour]'") from None
    return scipy.sparse


def co_consumption(log: Log, window: int = WINDOW, decay: float = DECAY) -> csr_array:
    """日志 → 边。

    一次只数一个距离：内存里至多一个距离的全部对，加上已有的边的上三角。

    Args:
        log: `read_log` 的结果；给的是物品对时边就是它们的权重之和，窗口不起作用。
        window: 至多相隔几个位置 W ≥ 1。
        decay: 每远一个位置乘上的数，(0, 1]。

    Returns:
        (N, N) float32，对称，对角为零，列号升序。

    Examples:
        >>> from .log import Log
        >>> log = Log.of_sequences([[0, 1, 2], [1, 0]], num_items=3)
        >>> co_consumption(log, window=2, decay=0.5).toarray().tolist()
        [[0.0, 2.0, 0.5], [2.0, 0.0, 1.0], [0.5, 1.0, 0.0]]
    """
    shape = (log.num_items, log.num_items)
    upper = _sum(log.pairs[:, 0], log.pairs[:, 1], log.weights, shape)
    for distance in range(1, window + 1):
        left, right = log.steps(distance)
        if len(left):
            counts = _sum(left, right, np.ones(len(left), dtype=np.float32), shape)
            counts.data *= np.float32(decay ** (distance - 1))
            upper = upper + counts
    edges = (upper + upper.T).tocsr()
    edges.sort_indices()
    return edges


def to_transition(edges: csr_array, counts: np.ndarray, shrink: float = SHRINK) -> csr_array:
    """边 → 每行之和为一的权重；没有邻居的行全空。

    Args:
        edges: `co_consumption` 的结果；不改它。
        counts: (N,) 各物品的次数 n。
        shrink: 分母上加的数，≥ 0。

    Returns:
        (N, N) float32，稀疏的形状与 `edges` 相同。

    Examples:
        >>> from .log import Log
        >>> log = Log.of_sequences([[0, 1, 2]], num_items=4)
        >>> to_transition(co_consumption(log, window=1), log.counts).toarray().tolist()[1]
        [0.5, 0.0, 0.5, 0.0]
    """
    lengths = np.diff(edges.indptr)
    roots = np.sqrt(counts.astype(np.float64))
    data = (edges.data / (np.repeat(roots, lengths) * roots[edges.indices] + shrink)).astype(np.float32)
    scaled = sparse().csr_array((data, edges.indices, edges.indptr), shape=edges.shape)
    sums = np.asarray(scaled.sum(axis=1, dtype=np.float64))
    scaled.data /= np.repeat(np.where(sums > 0, sums, 1.0), lengths).astype(np.float32)
    return scaled


def neighbour_means(transition: csr_array, vectors: np.ndarray) -> np.ndarray:
    """(N, D) 各物品的邻居的加权平均；没有邻居的是零。"""
    return np.asarray(transition @ np.ascontiguousarray(vectors, dtype=np.float32))


def _sum(left: np.ndarray, right: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """同一条边的权重相加，放进上三角；自己到自己的不算。

    键稳定地排一次序再分段求和，不用 scipy 的 `sum_duplicates`：它内部的排序不保证同键的次序。
    """
    low, high = np.minimum(left, right), np.maximum(left, right)
    keep = low != high
    keys, weights = (low * np.int64(shape[1]) + high)[keep], weights[keep]
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    sums = np.add.reduceat(weights, starts, dtype=np.float64) if len(starts) else weights
    rows, columns = np.divmod(keys[starts], shape[1])
    pointers = np.searchsorted(rows, np.arange(shape[0] + 1))
    parts = (sums.astype(np.float32), columns.astype(np.int32), pointers.astype(np.int32))
    return sparse().csr_array(parts, shape=shape)
