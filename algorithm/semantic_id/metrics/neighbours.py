"""特征空间里的精确近邻：暴力、float64、内存有界，只依赖 NumPy。语义指标拿它做参照，所以不许近似。

形状字母：N 物品数，D 特征维度，Q 查询物品数，M 邻居数。
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError, InputTypeError

__all__ = ["NearestSoFar", "check_rows", "exact_neighbours", "sample_rows"]

_BLOCK_BYTES = 64 << 20  # 一块得分矩阵的上限：再大也不更快


def sample_rows(num_rows: int, num_samples: int, seed: int) -> np.ndarray:
    """取一部分行做查询：不放回，种子定死，升序；要得比有的多就全取。

    Args:
        num_rows: 总行数 N ≥ 1。
        num_samples: 想取几行，≥ 1。
        seed: `numpy.random.default_rng` 的种子。

    Returns:
        (min(N, num_samples),) int64，升序，互不相同。

    Examples:
        >>> sample_rows(3, 10, 0).tolist()
        [0, 1, 2]
    """
    if num_rows < 1 or num_samples < 1:
        raise InputError(f"num_rows and num_samples must be >= 1, got {num_rows} and {num_samples}")
    if num_samples >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, num_samples, replace=False))


def exact_neighbours(features: Any, num_neighbours: int = 10, queries: Any = None) -> np.ndarray:
    """每个查询物品在特征空间里最近的几个别的物品。

    欧氏距离，暴力比较全部 N 行，float64；自己不算，并列取编号小的。先用内积把候选圈出来（圈子比舍入误差宽），再按
    Σ(x − y)² 直接算距离定名次，所以与分块无关，逐字节相同的两行距离恰为 0。内存：N · D 的 float64 一份，加一块得分。

    Args:
        features: (N, D) 实数，没有 NaN 与 Inf。
        num_neighbours: 邻居数 M，[1, N − 1]。
        queries: (Q,) 查询的行号；None 为全部 N 行。N 很大时给 `sample_rows` 的结果。

    Returns:
        (Q, M) int64 行号，由近到远。

    Raises:
        ValueError: 形状不对、有 NaN 或 Inf、行号越界，或 M 越界。

    Examples:
        >>> exact_neighbours([[0.0], [1.0], [3.0], [3.5]], 2).tolist()
        [[1, 2], [0, 2], [3, 1], [2, 1]]
    """
    x = np.ascontiguousarray(features, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"features must have shape (N, D) with N, D >= 1, got {x.shape}")
    if not np.isfinite(x).all():
        raise InputError(f"features row {int((~np.isfinite(x)).any(axis=1).argmax())} has NaN or Inf; drop such rows")
    if not 1 <= num_neighbours < len(x):
        raise InputError(f"num_neighbours={num_neighbours} is out of range; with {len(x)} rows use 1..{len(x) - 1}")
    rows = np.arange(len(x)) if queries is None else check_rows(queries, len(x), "queries")
    squares = np.square(x).sum(axis=1)  # (N,)
    # 一个得分的舍入误差不超过 (D + 2) · eps · (‖x‖ + ‖c‖)²；左右各一个，再放宽一倍
    slack = 8 * (x.shape[1] + 2) * np.finfo(np.float64).eps * float(squares.max())
    found = np.empty((len(rows), num_neighbours), dtype=np.int64)
    block = max(1, _BLOCK_BYTES // (8 * len(x)))
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        scores = squares - 2.0 * (x[part] @ x.T)  # (b, N)，差一个只与查询有关的常数
        scores[np.arange(len(part)), part] = np.inf
        worst = np.partition(scores, num_neighbours - 1, axis=1)[:, num_neighbours - 1]  # (b,)
        for i, row in enumerate(part):
            candidates = np.flatnonzero(scores[i] <= worst[i] + slack)
            distances = np.square(x[candidates] - x[row]).sum(axis=1)
            found[start + i] = candidates[np.argsort(distances, kind="stable")[:num_neighbours]]
    return found


def check_rows(rows: Any, total: int, name: str) -> np.ndarray:
    """(Q,) 行号，在 [0, total)。"""
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.size == 0:
        raise InputError(f"{name} must have shape (Q,) with Q >= 1, got {rows.shape}")
    if rows.dtype.kind not in "iu":
        raise InputTypeError(f"{name} must have an integer dtype, got {rows.dtype}")
    if rows.min() < 0 or rows.max() >= total:
        bad = int(((rows < 0) | (rows >= total)).argmax())
        raise InputError(f"{name} entry {bad} is {rows[bad]}; row numbers must be in [0, {total})")
    return rows.astype(np.int64, copy=False)


class NearestSoFar:
    """流式的精确近邻：候选一块一块来，每个查询只留下最近的几个；内存与 N 无关。

    float64；得分 ‖c‖² − 2 q·c 与 `exact_neighbours` 的初筛相同，多留 `SPARE` 个候选，最后按 Σ(x − y)² 定名次，
    并列取编号小的。与分块只差在恰好并列、而且并列的多于 `SPARE` 个的时候。

    Args:
        queries: (Q, D) 查询的向量。
        rows: (Q,) 查询自己的行号，不算自己的邻居。
        num_neighbours: 邻居数 M ≥ 1。
        unit: True 则两边都先化成单位长，即按余弦。

    Examples:
        >>> near = NearestSoFar([[0.0], [3.0]], [0, 2], 2)
        >>> near.look(np.array([[0.0], [1.0]]), 0)
        >>> near.look(np.array([[3.0], [3.5]]), 2)
        >>> near.result().tolist()
        [[1, 2], [3, 1]]
    """

    SPARE = 8

    def __init__(self, queries: Any, rows: Any, num_neighbours: int, *, unit: bool = False) -> None:
        self._unit = unit
        self._queries = self._prepare(np.asarray(queries))
        self._own = np.asarray(rows)
        self._count = num_neighbours
        width = num_neighbours + self.SPARE
        self._scores = np.full((len(self._queries), width), np.inf)
        self._rows = np.full((len(self._queries), width), -1, dtype=np.int64)
        self._vectors = np.zeros((len(self._queries), width, self._queries.shape[1]), dtype=np.float32)

    def look(self, candidates: np.ndarray, start: int) -> None:
        """看一块候选；`candidates` (B, D)，`start` 是第一行的行号。"""
        c = self._prepare(candidates)
        scores = np.square(c).sum(axis=1) - 2.0 * (self._queries @ c.T)  # (Q, B)
        own = self._own - start
        here = np.flatnonzero((own >= 0) & (own < len(c)))
        scores[here, own[here]] = np.inf
        better = scores < self._scores.max(axis=1)[:, None]  # 看过几块之后，几乎全是 False
        for q in np.flatnonzero(better.any(axis=1)):
            new = np.flatnonzero(better[q])
            every = np.concatenate([self._scores[q], scores[q, new]])
            keep = np.argsort(every, kind="stable")[: len(self._scores[q])]
            width = len(self._scores[q])
            self._rows[q] = np.concatenate([self._rows[q], start + new])[keep]
            fresh = keep >= width
            vectors = self._vectors[q][np.where(fresh, 0, keep)]
            vectors[fresh] = candidates[new[keep[fresh] - width]]
            self._vectors[q], self._scores[q] = vectors, every[keep]

    def result(self) -> np.ndarray:
        """(Q, M) int64 行号，由近到远。

        Raises:
            ValueError: 看过的候选不够 M 个。
        """
        if bool((self._rows >= 0).sum(axis=1).min() < self._count):
            raise InputError(f"num_neighbours={self._count} needs more rows than were seen")
        found = np.empty((len(self._queries), self._count), dtype=np.int64)
        for q, query in enumerate(self._queries):
            rows = self._rows[q]
            distances = np.square(self._prepare(self._vectors[q]) - query).sum(axis=1)
            distances[rows < 0] = np.inf
            found[q] = rows[np.lexsort((rows, distances))[: self._count]]
        return found

    def _prepare(self, vectors: np.ndarray) -> np.ndarray:
        """float64；按余弦时化成单位长，零向量仍是零。"""
        x = np.ascontiguousarray(vectors, dtype=np.float64)
        if not self._unit:
            return x
        norms = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
        return x / np.where(norms > 0, norms, 1.0)
