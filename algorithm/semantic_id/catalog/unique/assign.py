"""冲突 → 唯一的 ID：结果只由（物品编号、编码、候选）决定，与行序、分片、引擎无关。

三种策略：
- none：不管冲突。
- suffix：同码的物品按 item_id 排，第几个就是去重位（TIGER 的做法），独占的是 0。
- nearest-free：ID 还是 L 位。独占一个码的物品不动；同码的物品在自己最便宜的候选里挪，谁也不占别人的码，总的新增误差最小
  （怎样求最优见 `matching.py`）。离开自己的前 L − 1 层要另付 `prefix_price`（单位：这些物品平均的重建误差；inf 则只换
  最后一层）；L1 是物品的大类，永远不换。候选不够就多要，直到本前缀的全部码字；还不够就抛 `NoFreeCodeError`；要的候选
  总数超过三千多万时也抛，免得撑爆内存。

形状字母：n 为要安置的物品数，L 为层数，E 为候选数，M 为每个物品几条候选。
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import numpy as np

from ...code_keys import Packing, comparable
from ...errors import InputError, InputTypeError
from ..format.external_sort import group_starts
from ..format.manifest import UNIQUE_POLICIES, CatalogError
from .matching import Candidates, place

__all__ = [
    "DEFAULT_PREFIX_PRICE",
    "FIRST_CANDIDATES",
    "MAX_WIDE",
    "Choices",
    "NoFreeCodeError",
    "Placement",
    "check_policy",
    "nearest_free",
    "suffixes_of_sorted",
]

DEFAULT_PREFIX_PRICE = 1.0
FIRST_CANDIDATES, _GROWTH = 16, 8
_MOST_EDGES = 1 << 25  # 一次多要的候选总数；再多就不止 1 GB
MAX_WIDE = 1024  # 束搜索的上限；前缀之内的候选没有这个限制


class NoFreeCodeError(CatalogError):
    """同码的物品比放得下的码还多。"""


class Choices(NamedTuple):
    """一批物品的候选，不含自己现在的码。

    Attributes:
        item: (E,) int64，第几个物品。
        codes: (E, L) 整数编码。
        error: (E,) float64，误差 ‖z − Σ q‖²。
    """

    item: np.ndarray
    codes: np.ndarray
    error: np.ndarray


class Placement(NamedTuple):
    """安置的结果。

    Attributes:
        codes: (n, L) int32，各物品最终的编码。
        figures: 可写成 JSON 的数字，键见 `nearest_free`。
    """

    codes: np.ndarray
    figures: Dict[str, Any]


def check_policy(unique: Any, prefix_price: Any) -> None:
    """验收去重策略与前缀价格。

    Raises:
        ValueError: 不认识的策略；价格是负数或 NaN。
        TypeError: 价格不是数。
    """
    if unique not in UNIQUE_POLICIES:
        raise InputError(f"unique={unique!r} is not supported; use one of {', '.join(UNIQUE_POLICIES)}")
    if isinstance(prefix_price, bool) or not isinstance(prefix_price, (int, float)):
        raise InputTypeError(f"prefix_price must be a number, got {type(prefix_price).__name__} ({prefix_price!r})")
    if not prefix_price >= 0:
        raise InputError(f"prefix_price={prefix_price!r} is out of range; use a number >= 0, or inf to move L3 only")


def suffixes_of_sorted(keys: np.ndarray) -> np.ndarray:
    """按（键, item_id）排好的行的去重位：在同键的行里排第几。

    Args:
        keys: (N, W) int64，已排好。

    Returns:
        (N,) int32。

    Examples:
        >>> suffixes_of_sorted(np.array([[3], [5], [5], [5], [9]])).tolist()
        [0, 0, 1, 2, 0]
    """
    start = group_starts(keys)
    size = np.diff(np.append(start, len(keys)))
    return (np.arange(len(keys)) - np.repeat(start, size)).astype(np.int32)


def nearest_free(
    own: np.ndarray,
    own_error: np.ndarray,
    fetch: Callable[[np.ndarray, int], Choices],
    occupied: Callable[[np.ndarray], np.ndarray],
    sizes: Sequence[int],
    prefix_price: float,
    names: Callable[[int], Any],
) -> Placement:
    """把 n 个物品安置到互不相同、也不与别人冲突的码上，总费用最小。

    Args:
        own: (n, L) 各物品现在的编码，行按 item_id 排好。
        own_error: (n,) float64，现在的误差。
        fetch: `fetch(items, M)` 给出这些物品（(m,) 下标，递增）的候选，`Choices.item` 仍是这里的下标。
        occupied: (E, L) 编码 → (E,) bool，是否已被不在这 n 个之内的物品占着。
        sizes: 各层码本大小。
        prefix_price: 离开前 L − 1 层的价格，单位是 `own_error` 的平均值。
        names: 第几个物品叫什么，只供错误信息。

    Returns:
        figures 有 num_contenders（n）、num_moved、num_prefix_changed、added_error（新增误差之和）、num_greedy。

    Raises:
        NoFreeCodeError: 有物品没有码可去。
    """
    if not len(own):
        return Placement(own.astype(np.int32), _figures(own, own, np.zeros(0), 0))
    own = own.astype(np.int32)
    if math.isinf(prefix_price):
        _check_pigeonhole(own, sizes[-1], names)
    price = prefix_price * math.fsum(own_error.tolist()) / len(own)
    everyone = np.arange(len(own))
    own_free = ~occupied(own)
    own_edges = Choices(everyone[own_free], own[own_free], own_error[own_free])
    found: List[Choices] = [fetch(everyone, FIRST_CANDIDATES)]
    tried = np.full(len(own), FIRST_CANDIDATES)
    most = sizes[-1] if math.isinf(prefix_price) else max(sizes[-1], MAX_WIDE)
    while True:
        edges = _usable(found, own, occupied)
        edges = Choices(*(np.concatenate(pair) for pair in zip(own_edges, edges, strict=True)))
        added = edges.error - own_error[edges.item]  # (E,)
        cost = added + np.where((edges.codes[:, :-1] == own[edges.item, :-1]).all(1), 0.0, price)
        candidates, order = _arrange(edges, cost, len(own), Packing(sizes))
        chosen, num_greedy = place(candidates)
        lost = np.flatnonzero(chosen < 0)
        if not len(lost):
            break
        stuck = lost[tried[lost] >= most]
        if len(stuck):
            raise NoFreeCodeError(_no_code(own, int(stuck[0]), prefix_price, names))
        more = int(tried[lost].min()) * _GROWTH
        lost = lost[tried[lost] < more]
        if len(lost) * more > _MOST_EDGES:
            raise NoFreeCodeError(
                f"{len(lost)} items (first item_id {names(int(lost[0]))!r}) found no free code among their "
                f"{more // _GROWTH} cheapest; their neighbourhood is too crowded: use --unique suffix, larger "
                "codebooks, or drop exact duplicates"
            )
        tried[lost] = more
        found = [_without(choices, lost) for choices in found] + [fetch(lost, more)]
    winners = order[chosen]
    return Placement(edges.codes[winners], _figures(own, edges.codes[winners], added[winners], num_greedy))


def _check_pigeonhole(own: np.ndarray, size: int, names: Callable[[int], Any]) -> None:
    """只换最后一层时，一个前缀里要安置的物品不能比码还多；早早说清，而不是先把候选要个遍。"""
    prefixes, inverse, counts = np.unique(own[:, :-1], axis=0, return_inverse=True, return_counts=True)
    worst = int(counts.argmax())
    if counts[worst] > size:
        first = int(np.flatnonzero(inverse.reshape(-1) == worst)[0])
        raise NoFreeCodeError(
            f"no free code is left: {counts[worst]} items share codes within the prefix "
            f"{tuple(prefixes[worst].tolist())} (first item_id {names(first)!r}), which has {size} codes; "
            "use --unique suffix or a finite --prefix-price"
        )


def _usable(found: Sequence[Choices], own: np.ndarray, occupied: Callable[[np.ndarray], np.ndarray]) -> Choices:
    """空着的、不换 L1 的、不是自己那个码的候选。"""
    item, codes, error = (np.concatenate(parts) for parts in zip(*found, strict=True))
    keep = (codes != own[item]).any(axis=1)
    if own.shape[1] > 1:
        keep &= codes[:, 0] == own[item, 0]
    item, codes, error = item[keep], codes[keep], error[keep]
    free = ~occupied(codes)
    return Choices(item[free], codes[free], error[free])


def _without(choices: Choices, items: np.ndarray) -> Choices:
    """去掉这些物品的候选；它们会重新取得更多。"""
    keep = ~np.isin(choices.item, items)
    return Choices(*(part[keep] for part in choices))


def _arrange(edges: Choices, cost: np.ndarray, count: int, packing: Packing) -> tuple[Candidates, np.ndarray]:
    """边按（物品, 费用, 码）排好；同时给出排好的第几条是原来的第几条。"""
    _, code = np.unique(comparable(packing.pack(edges.codes)), return_inverse=True)  # 字典序的名次
    order = np.lexsort((code, cost, edges.item))
    start = np.searchsorted(edges.item[order], np.arange(count + 1))
    return Candidates(start, code[order], cost[order]), order


def _figures(own: np.ndarray, codes: np.ndarray, added: np.ndarray, num_greedy: int) -> Dict[str, Any]:
    """搬动的代价；`math.fsum` 是精确和，与次序无关。"""
    return {
        "num_contenders": len(own),
        "num_moved": int((codes != own).any(axis=1).sum()),
        "num_prefix_changed": int((codes[:, :-1] != own[:, :-1]).any(axis=1).sum()),
        "added_error": math.fsum(added.tolist()),
        "num_greedy": num_greedy,
    }


def _no_code(own: np.ndarray, item: int, prefix_price: float, names: Callable[[int], Any]) -> str:
    """指名道姓：哪一组、多少个、怎么办。"""
    group = np.flatnonzero((own == own[item]).all(axis=1))
    where = "its own prefix" if math.isinf(prefix_price) else "its own prefix or its cheapest paths"
    return (
        f"no free code is left for item_id {names(item)!r}: {len(group)} items share the code "
        f"{tuple(own[item].tolist())} (first item_id {names(int(group[0]))!r}), and every code in {where} is taken; "
        "use --unique suffix, larger codebooks, or drop exact duplicates"
    )
