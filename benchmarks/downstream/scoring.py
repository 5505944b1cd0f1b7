"""名次 → Recall、NDCG、配对自助法、等级相关。纯函数，只认数组。"""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np

CUTOFFS = (5, 10)


def ranks_of(items: np.ndarray, targets: np.ndarray, histories: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """(U,) 目标在推荐里的名次，0 起；不在其中为 −1。

    Args:
        items: (U, M) 各用户的推荐，从好到差；−1 是空位。
        targets: (U,) 目标物品。
        histories: 给出时先去掉用户已经有过的物品，后面的往前补。
    """
    ranks = np.full(len(targets), -1, dtype=np.int16)
    for row, (found, target) in enumerate(zip(items, targets, strict=True)):
        if histories is not None:
            found = found[~np.isin(found, histories[row])]
        place = np.flatnonzero(found == target)
        if len(place):
            ranks[row] = place[0]
    return ranks


def gains(ranks: np.ndarray, cutoff: int, discounted: bool) -> np.ndarray:
    """(U,) 每个用户的得分：命中为 1（Recall），或 1 / log2(名次 + 2)（NDCG，只有一个相关物品，理想值是 1）。"""
    hit = (ranks >= 0) & (ranks < cutoff)
    return np.where(hit, 1.0 / np.log2(np.maximum(ranks, 0) + 2.0) if discounted else 1.0, 0.0)


def paired_bootstrap(first: np.ndarray, second: np.ndarray, samples: int, seed: int) -> Tuple[float, float, float]:
    """配对自助法：种子与用户都重抽，两边抽到的总是同样的种子、同样的用户。

    重抽 S 个种子、把差在种子上平均，再重抽 U 个用户、取平均。后一步等于在差的不同取值上抽一次多项分布，不必真的建
    (samples, U) 的下标；前一步只有几种组合，同一种组合的样本一起抽。种子只有一个时就只有用户的波动；种子很少时重抽
    低估种子的波动（S 个种子少算 1/S）。

    Args:
        first, second: (S, U) 同样的种子、同样的用户的得分。
        samples: 重抽次数。
        seed: 随机数种子。

    Returns:
        (差的 2.5% 分位, 97.5% 分位, 双侧 p)；p 至少 1 / samples。
    """
    rng = np.random.default_rng(seed)
    delta = first - second  # (S, U)
    num_seeds, num_users = delta.shape
    chosen = np.sort(rng.integers(0, num_seeds, (samples, num_seeds)), axis=1)
    means = []
    for combination, times in zip(*np.unique(chosen, axis=0, return_counts=True), strict=True):
        values, counts = np.unique(delta[combination].mean(axis=0), return_counts=True)
        means.append(rng.multinomial(num_users, counts / num_users, size=times) @ values / num_users)
    every = np.concatenate(means)
    low, high = np.quantile(every, (0.025, 0.975))
    tail = min(np.mean(every <= 0), np.mean(every >= 0))
    return float(low), float(high), float(min(1.0, max(2 * tail, 1 / samples)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman 等级相关，并列取平均名次；少于三个或有一边全同时没有定义，为 None。"""
    a, b = (_average_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]
