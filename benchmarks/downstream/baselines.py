"""不用语义 ID 的两条底线：流行度、物品近邻。它们摆在旁边，让人看清生成模型到底好在哪里。"""

from __future__ import annotations

from typing import List, Sequence

import numpy as np

# 在验证物品上挑的，见 docs/log.md：越早的物品权重按这个比例递减；相似度的分母加的数
DECAY = 0.4
SHRINK = 30.0
MAX_HISTORY = 20


def popularity(histories: Sequence[np.ndarray], num_items: int, num_users: int, top: int) -> np.ndarray:
    """(U, top) 人人一样：训练部分里出现次数最多的。"""
    counts = np.bincount(np.concatenate(histories), minlength=num_items)
    return np.tile(np.argsort(-counts, kind="stable")[:top], (num_users, 1))


class ItemNeighbours:
    """物品近邻：余弦形的共现次数。

    sim(i, j) = c_ij / (√(c_i c_j) + SHRINK)，c 为训练部分里（一起）出现过的用户数；不看内容。
    """

    def __init__(self, histories: Sequence[np.ndarray], num_items: int, shrink: float = SHRINK):
        sets = [np.unique(history) for history in histories]
        alone = np.bincount(np.concatenate(sets), minlength=num_items)
        pairs = np.concatenate([(row[:, None] * num_items + row[None]).reshape(-1) for row in sets])
        keys, counts = np.unique(pairs, return_counts=True)
        first, second = keys // num_items, keys % num_items
        other = first != second
        first, self.columns, counts = first[other], second[other], counts[other]
        self.values = counts / (np.sqrt(alone[first] * alone[self.columns]) + shrink)
        self.pointers = np.searchsorted(first, np.arange(num_items + 1))
        self.num_items = num_items

    def recommend(self, histories: Sequence[np.ndarray], top: int, decay: float = DECAY) -> np.ndarray:
        """(U, top) 历史里最近几个物品的邻居，相似度按新旧加权求和；没有邻居可给的位置为 −1。"""
        out: List[np.ndarray] = []
        for history in histories:
            scores = np.zeros(self.num_items)
            for age, item in enumerate(history[: -MAX_HISTORY - 1 : -1]):
                span = slice(self.pointers[item], self.pointers[item + 1])
                scores[self.columns[span]] += decay**age * self.values[span]
            best = np.argpartition(-scores, top)[:top] if top < self.num_items else np.arange(self.num_items)
            best = best[np.argsort(-scores[best], kind="stable")]
            out.append(np.where(scores[best] > 0, best, -1))
        return np.stack(out)
