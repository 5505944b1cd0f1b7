"""一份行为日志读进来之后的样子：每个人一串物品，或带权的物品对；不留用户编号。

形状字母：N 物品数，E 留下的行为数，U 有行为的用户数，P 物品对数。

次序是规范的：各人的串按内容的摘要排，物品对按编号排；所以日志里行的次序、用户叫什么都不改变一个字节。
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import NamedTuple, Sequence, Tuple

import numpy as np

__all__ = ["Log", "log_of_pairs", "log_of_steps", "name_keys"]


class Log(NamedTuple):
    """读好的日志；行号指向物品表。

    Attributes:
        num_items: 物品数 N。
        items: (E,) int64，各人的串首尾相接，由旧到新；给的是物品对时为空。
        starts: (U + 1,) int64，各人的串从哪里起。
        pairs: (P, 2) int64，左小右大；给的是各人的串时为空。
        weights: (P,) float64，> 0。
        cut: 英文短语：用的是日志的哪一部分。
        num_unknown: 切过之后，物品表里没有的编号出现的次数；它们先被拿掉，两旁的物品于是相邻。
        num_capped: 因为每人的上限没有用的行为数。
        sha256: 用到的行为的摘要；与行序、物品表的次序无关。
    """

    num_items: int
    items: np.ndarray
    starts: np.ndarray
    pairs: np.ndarray
    weights: np.ndarray
    cut: str = "all rows"
    num_unknown: int = 0
    num_capped: int = 0
    sha256: str = ""

    @classmethod
    def of_sequences(cls, sequences: Sequence[Sequence[int]], num_items: int) -> Log:
        """内存里的几串行号；给程序与测试用，次序照给的。"""
        lengths = [len(one) for one in sequences]
        flat = np.array([item for one in sequences for item in one], dtype=np.int64)
        return cls(num_items, flat, np.cumsum([0, *lengths]), np.empty((0, 2), dtype=np.int64), np.empty(0))

    @property
    def num_users(self) -> int:
        """U；物品对没有用户，为 0。"""
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """(N,) float64 各物品的行为次数；物品对算两头的权重之和。"""
        ends = np.bincount(self.pairs.T.reshape(-1), weights=np.tile(self.weights, 2), minlength=self.num_items)
        return np.bincount(self.items, minlength=self.num_items) + ends

    def steps(self, distance: int) -> Tuple[np.ndarray, np.ndarray]:
        """同一个人的串里相隔 distance 个位置的全部 (左, 右)，各 (n,) 行号；可以是同一个物品。"""
        left, right = self.items[:-distance], self.items[distance:]
        owner = np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.starts))
        same = owner[distance:] == owner[:-distance]
        return left[same], right[same]


def log_of_steps(rows: np.ndarray, owners: np.ndarray, names: np.ndarray, cap: int, num_items: int) -> Log:
    """每人的行为 → `Log`：去掉不认识的，取最近的几个，排成规范的次序。

    Args:
        rows: (E,) int64，各行为的物品在物品表的哪一行，−1 为不认识；同一个人的连在一起，由旧到新。
        owners: (E,) 不减的整数，谁的。
        names: (N,) uint64，各物品编号的摘要，见 `name_keys`。
        cap: 每人至多用最近几个。
        num_items: N。
    """
    known = rows >= 0
    num_unknown = len(rows) - int(known.sum())
    rows, owners = rows[known], owners[known]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    lengths = np.diff(np.append(starts, len(rows)))
    age = np.repeat(starts + lengths, lengths) - np.arange(len(rows))  # 最新的是 1
    recent = age <= cap  # 取最近的
    num_capped = len(rows) - int(recent.sum())
    rows, lengths = rows[recent], np.minimum(lengths, cap)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    keys = names[rows].tobytes()
    marks = [hashlib.sha256(keys[8 * a : 8 * b]).digest() for a, b in pairwise(bounds)]
    order = sorted(range(len(marks)), key=marks.__getitem__)  # 摘要相同的串也相同，谁先谁后都一样
    moved = lengths[order] if order else lengths
    ends = np.cumsum(moved)
    take = np.arange(len(rows)) + np.repeat(np.array(bounds[:-1], dtype=np.int64)[order] - (ends - moved), moved)
    digest = hashlib.sha256(b"sequences")
    for place in order:
        digest.update(marks[place])
    return Log(
        num_items=num_items,
        items=rows[take],
        starts=np.concatenate([[0], ends]).astype(np.int64),
        pairs=np.empty((0, 2), dtype=np.int64),
        weights=np.empty(0),
        num_unknown=num_unknown,
        num_capped=num_capped,
        sha256=digest.hexdigest(),
    )


def log_of_pairs(pairs: np.ndarray, weights: np.ndarray, names: np.ndarray, num_items: int) -> Log:
    """带权的物品对 → `Log`：去掉不认识的与自己对自己的；方向不算数。

    Args:
        pairs: (P, 2) int64 行号，−1 为不认识。
        weights: (P,) float64，> 0。
        names: (N,) uint64，见 `name_keys`。
        num_items: N。
    """
    num_unknown = int((pairs < 0).sum())
    keep = (pairs >= 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])
    pairs, weights = np.sort(pairs[keep], axis=1), weights[keep]
    order = np.lexsort([weights, pairs[:, 1], pairs[:, 0]])
    pairs, weights = pairs[order], weights[order]
    marks = np.sort(names[pairs], axis=1)  # 摘要按编号的名字排，不按行号
    order = np.lexsort([weights, marks[:, 1], marks[:, 0]])
    digest = hashlib.sha256(b"pairs" + marks[order].tobytes() + weights[order].tobytes())
    return Log(
        num_items=num_items,
        items=np.empty(0, dtype=np.int64),
        starts=np.zeros(1, dtype=np.int64),
        pairs=pairs,
        weights=weights,
        num_unknown=num_unknown,
        sha256=digest.hexdigest(),
    )


def name_keys(names: Sequence[object]) -> np.ndarray:
    """(N,) uint64：各物品编号的摘要的前八个字节；整数 7 与字符串 "7" 不同。"""
    keys = b"".join(hashlib.sha256(repr(name).encode()).digest()[:8] for name in names)
    return np.frombuffer(keys, dtype="<u8")
