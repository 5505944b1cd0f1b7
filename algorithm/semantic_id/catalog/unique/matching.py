"""最小费用匹配：每个物品挑一个码，两个物品不能同码，总费用最小；只做整数与浮点，不认识模型与文件。

`place` 怎样得到全局最优而不必解一个大问题：先让每个物品各自取最便宜的码；抢同一个码的物品并成一簇，簇内求最优，簇与簇
再有冲突就再并，直到没有冲突。最后各簇最优之和不大于全局最优（少了簇之间的约束），而它又可行，所以就是全局最优。只有真正抢在一起
的物品才会同簇，所以簇很小。一簇超过 `MAX_EXACT` 个物品时改用贪心，且照实报出有多少物品是贪心安置的。

形状字母：n 为物品数，E 为候选（边）数。
"""

from __future__ import annotations

import heapq
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

__all__ = ["MAX_EXACT", "Candidates", "place", "solve"]

MAX_EXACT = 256


class Candidates(NamedTuple):
    """每个物品的候选，按（物品, 费用, 码）排好。

    Attributes:
        start: (n + 1,) int64，第 i 个物品的候选是 [start[i], start[i + 1])。
        code: (E,) int64，码的编号；大小即并列时的先后。
        cost: (E,) float64，费用。
    """

    start: np.ndarray
    code: np.ndarray
    cost: np.ndarray


def place(candidates: Candidates, max_exact: int = MAX_EXACT) -> Tuple[np.ndarray, int]:
    """给每个物品一个互不相同的码，总费用最小；物品的先后就是并列时的先后。

    Args:
        candidates: 每个物品的候选；物品须按 item_id 排好，结果才与行序无关。
        max_exact: 一簇至多几个物品求最优，更大的贪心。

    Returns:
        chosen: (n,) int64，选中第几条候选（下标进 `candidates.code`）；安置不下的是 −1。
        num_greedy: 多少物品在贪心的簇里。
    """
    count = len(candidates.start) - 1
    chosen = np.where(np.diff(candidates.start) > 0, candidates.start[:-1], -1)  # 各取最便宜的一个
    members: Dict[int, List[int]] = {}  # 簇的代表 → 物品；单独成簇的不记
    cluster = np.arange(count)
    while True:
        pairs = _conflicts(candidates, chosen)
        if not len(pairs):
            break
        for left, right in pairs.tolist():
            _merge(cluster, members, left, right)
        touched = sorted({int(cluster[left]) for left, _ in pairs.tolist()})
        for head in touched:
            items = sorted(members[head])
            chosen[items] = (solve if len(items) <= max_exact else _greedy)(candidates, items)
    return chosen, sum(len(items) for items in members.values() if len(items) > max_exact)


def _conflicts(candidates: Candidates, chosen: np.ndarray) -> np.ndarray:
    """(c, 2) 选了同一个码的相邻两个物品。"""
    placed = np.flatnonzero(chosen >= 0)
    code = candidates.code[chosen[placed]]
    order = np.argsort(code, kind="stable")
    same = np.flatnonzero(code[order][1:] == code[order][:-1])
    return np.stack([placed[order[same]], placed[order[same + 1]]], axis=1)


def _merge(cluster: np.ndarray, members: Dict[int, List[int]], left: int, right: int) -> None:
    """两个物品所在的簇并成一个，小的并进大的，所以总共只改 n log n 次。"""
    a, b = int(cluster[left]), int(cluster[right])
    if a == b:
        return
    first, second = members.setdefault(a, [a]), members.setdefault(b, [b])
    if len(first) < len(second):
        a, b, first, second = b, a, second, first
    first.extend(second)
    cluster[second] = a
    del members[b]


def _lists(candidates: Candidates, items: Sequence[int]) -> List[List[Tuple[float, int, int]]]:
    """各物品的 (费用, 码, 候选下标)；n 个物品的簇里，每个物品只取最便宜的 n 个：更贵的总能换成其中空着的一个。"""
    out = []
    for item in items:
        low = int(candidates.start[item])
        high = min(int(candidates.start[item + 1]), low + len(items))
        cost, code = candidates.cost[low:high].tolist(), candidates.code[low:high].tolist()
        out.append(list(zip(cost, code, range(low, high), strict=True)))
    return out


def solve(candidates: Candidates, items: Sequence[int]) -> List[int]:
    """一簇的最优：逐个物品找最短增广路（带势的 Dijkstra），先保证安置得最多，再保证费用最小。

    References:
        Jonker & Volgenant, 1987, A shortest augmenting path algorithm for dense and sparse linear assignment problems。
    """
    lists = _lists(candidates, items)
    owner: Dict[int, int] = {}  # 码 → 占着它的物品；holds 是反过来的
    holds: Dict[int, int] = {}
    paid: Dict[int, Tuple[float, int]] = {}  # 码 → 占着它的物品为它付的 (费用, 候选下标)
    price: Dict[int, float] = {}  # 码的势，≤ 0
    for item in range(len(items)):
        distance: Dict[int, float] = {}
        source: Dict[int, Tuple[int, float, int]] = {}  # 码 → 从哪个物品来，(物品, 费用, 候选下标)
        done: Dict[int, float] = {}
        heap: List[Tuple[float, int]] = []
        here, base = item, 0.0
        while True:
            for cost, code, edge in lists[here]:
                if code in done:
                    continue
                far = base + cost - price.get(code, 0.0)
                if far < distance.get(code, np.inf):
                    distance[code], source[code] = far, (here, cost, edge)
                    heapq.heappush(heap, (far, code))
            while heap and heap[0][1] in done:
                heapq.heappop(heap)
            if not heap:
                break  # 到不了任何空码：这个物品安置不下
            far, code = heapq.heappop(heap)
            if code not in owner:
                for passed, length in done.items():
                    price[passed] = price.get(passed, 0.0) + length - far
                while True:  # 沿着来路，每个物品都挪到下一个码
                    who, cost, edge = source[code]
                    before = holds.get(who, -1)
                    owner[code], holds[who], paid[code] = who, code, (cost, edge)
                    if who == item:
                        break
                    code = before
                break
            done[code] = far
            here = owner[code]
            base = far - (paid[code][0] - price.get(code, 0.0))
    chosen = [-1] * len(items)
    for code, who in owner.items():
        chosen[who] = paid[code][1]
    return _tidy(lists, chosen)


def _tidy(lists: List[List[Tuple[float, int, int]]], chosen: List[int]) -> List[int]:
    """候选完全相同的物品（重复的向量）换来换去总费用不变：让排在前面的拿便宜的。"""
    twins: Dict[Tuple[Tuple[float, int], ...], List[int]] = {}
    for item, edges in enumerate(lists):
        twins.setdefault(tuple((cost, code) for cost, code, _ in edges), []).append(item)
    for group in twins.values():
        if len(group) > 1:
            # 同一个下标在各自的列表里指同一个码，所以只换「第几个候选」；安置不下的排最后
            place_of = {edge: rank for item in group for rank, (_, _, edge) in enumerate(lists[item])}
            ranks = sorted(place_of[chosen[item]] if chosen[item] >= 0 else len(place_of) for item in group)
            for item, rank in zip(group, ranks, strict=True):
                chosen[item] = lists[item][rank][2] if rank < len(lists[item]) else -1
    return chosen


def _greedy(candidates: Candidates, items: Sequence[int]) -> List[int]:
    """大簇：全部候选按（费用，物品，码）从便宜到贵，物品没有着落、码也空着就成交。"""
    cost, code, start = candidates.cost, candidates.code, candidates.start
    chosen, taken = [-1] * len(items), set()
    heap = [(float(cost[start[i]]), n, int(start[i])) for n, i in enumerate(items) if start[i] < start[i + 1]]
    heapq.heapify(heap)
    while heap:  # 每个物品只放当前最便宜的一条，失败了再放下一条：不必把全部候选排在内存里
        _, n, edge = heapq.heappop(heap)
        if int(code[edge]) not in taken:
            chosen[n] = edge
            taken.add(int(code[edge]))
        elif edge + 1 < start[items[n] + 1]:
            heapq.heappush(heap, (float(cost[edge + 1]), n, edge + 1))
    return chosen
