"""重新训练之后：给新码本的码字重新编号，使尽可能多的物品保持原来的 ID；物品表怎样搬过去见 `carry.py`。

码字叫几号本来是任意的：重新训练会把「电影」从 12 号换到 700 号，哪怕意思没变。所以逐层求一个一一对应（新号 → 旧号），
使旧 ID 还在的物品最多。先对齐 L1；L2 主要看 L1 已经对上的物品，L3 主要看前两层都对上的，因为前缀没对上，后面对上了也
不算保住。

形状字母：N 为两次都有的物品数，L 为层数，K 为一层的码本大小，E 为出现过的（新号, 旧号）对数。
"""

from __future__ import annotations

from typing import List, Sequence

import numpy as np

from ..unique.matching import Candidates, solve

__all__ = ["align_codes", "align_level", "relabelled"]


def align_codes(old: np.ndarray, new: np.ndarray, sizes: Sequence[int]) -> List[np.ndarray]:
    """逐层的重新编号。

    Args:
        old: (N, L) 旧编码。
        new: (N, L) 同一批物品的新编码。
        sizes: 各层码本大小，新旧相同。

    Returns:
        L 个 (K,) int64 排列：新模型的第 k 个码字应改叫 `labels[k]`。
    """
    labels = []
    agree = np.ones(len(old), bool)  # 前面各层都对上了的物品
    for level, size in enumerate(sizes):
        label = align_level(old[:, level], new[:, level], size, agree)
        labels.append(label)
        agree &= label[new[:, level]] == old[:, level]
    return labels


def align_level(old: np.ndarray, new: np.ndarray, size: int, agree: np.ndarray) -> np.ndarray:
    """一层的重新编号：对上的物品数最多；`agree` 之外的物品只在并列时算数。

    Args:
        old: (N,) 旧编号。
        new: (N,) 新编号。
        size: K。
        agree: (N,) bool，前缀已经对上的物品。

    Returns:
        (K,) int64 排列。

    Examples:
        >>> align_level(np.array([2, 2, 0]), np.array([1, 1, 2]), 3, np.ones(3, bool)).tolist()
        [1, 2, 0]
    """
    pair = new.astype(np.int64) * size + old
    pairs, inverse = np.unique(pair, return_inverse=True)  # (E,)
    count = np.bincount(inverse, minlength=len(pairs))
    strong = np.bincount(inverse, weights=agree.astype(np.float64), minlength=len(pairs))
    gain = strong * (len(old) + 1.0) + count
    item, code = pairs // size, pairs % size
    # 每个新号另有一条「谁也不对」的退路，费用 0，于是求最小费用就是求最大收益
    item = np.concatenate([item, np.arange(size)])
    code = np.concatenate([code, size + np.arange(size)])
    cost = np.concatenate([-gain, np.zeros(size)])
    order = np.lexsort((code, cost, item))
    start = np.searchsorted(item[order], np.arange(size + 1))
    candidates = Candidates(start, code[order], cost[order])
    chosen = candidates.code[solve(candidates, range(size))]
    label = np.where(chosen < size, chosen, -1)
    free = np.setdiff1d(np.arange(size), label)  # 没有对上的，按号补上余下的
    label[label < 0] = free
    return label.astype(np.int64)


def relabelled(codes: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray:
    """(N, L) 编码按 `align_codes` 的结果改名。"""
    return np.stack([label[codes[:, i]] for i, label in enumerate(labels)], axis=1)
