"""编码 (N, L) → 前缀树的数组：打包成整数、排一次序、逐层去重。纯 NumPy，不认设备。

形状字母：N 物品数，L 层数，E_l 长度为 l 的不同前缀个数（E_0 = 1，即根），也就是第 l 层的边数：每条边通向唯一的结点，
所以「边的下标」就是「下一层结点的编号」，不必再存指针。

内存是这里的难处：千万物品时一列 int64 就是 80 MB。所以编码与行号打包进同一个 int64 就地排序（一次排序得到次序与行号），
再一列一列地拆开；一个 int64 放不下时只打包编码，再稳定地排，结果相同。
"""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Sequence, Tuple

import numpy as np

from ..code_keys import Packing, comparable
from ..errors import InputError, InputTypeError

__all__ = ["TrieArrays", "build_arrays", "check_codes", "check_sizes", "codes_of_catalog", "narrow_int"]

# 一次拆多少行：中间结果留在缓存里，也不会多出一整列 int64
_CHUNK = 1 << 18


class TrieArrays(NamedTuple):
    """前缀树的全部数组，次序即字典序。

    Attributes:
        pointers: L 个 (E_{l-1} + 1,)，结点 n 的孩子是第 l 层的边 [pointers[l-1][n], pointers[l-1][n+1])。
        edges: L 个 (E_l,)，每条边的编号；同一结点之内严格递增。
        order: (N,) 按 (编码, 行号) 排好的行号。
        repeats: (N − E_L,) 递增；与别人共用 ID 的物品，除第一个以外各在这里记一次自己的叶子。叶子 i 的物品在 order 里从
            i + (repeats 里小于 i 的个数) 开始。没有重复时它是空的，重复少时几乎不占内存。
    """

    pointers: Tuple[np.ndarray, ...]
    edges: Tuple[np.ndarray, ...]
    order: np.ndarray
    repeats: np.ndarray


def build_arrays(codes: np.ndarray, sizes: Sequence[int]) -> TrieArrays:
    """排序、去重；每个前缀一个结点。

    Args:
        codes: (N, L) 整数，已经过 `check_codes`。
        sizes: (K_1, …, K_L)。
    """
    column, order = _sorted_columns(codes, sizes)
    num_rows = len(codes)
    is_new = np.zeros(num_rows, dtype=bool)  # (N,) 这一行是否开始一个新的前缀
    is_new[0] = True
    starts = np.zeros(1, dtype=np.int64)  # 上一层各结点在排好序的行里的起点；根从第 0 行起
    pointers: List[np.ndarray] = []
    edges: List[np.ndarray] = []
    for level in range(len(sizes)):
        values = column(level)  # (N,)
        is_new[1:] |= values[1:] != values[:-1]
        rank = np.cumsum(is_new, dtype=np.int32 if num_rows < 2**31 else np.int64)  # (N,) 第几个前缀，从 1 起
        edges.append(values[is_new])
        pointers.append(np.append(rank[starts] - 1, rank[-1]).astype(index_int(num_rows)))
        if level + 1 < len(sizes):
            starts = np.flatnonzero(is_new)
    repeats: np.ndarray = (rank[~is_new] - 1).astype(index_int(num_rows))
    return TrieArrays(tuple(pointers), tuple(edges), order, repeats)


def narrow_int(limit: int) -> type:
    """装得下 [0, limit] 的最窄的有符号整数；PyTorch 的 uint16 几乎不能运算。"""
    return next(kind for kind in (np.int16, np.int32, np.int64) if limit <= np.iinfo(kind).max)


def index_int(limit: int) -> type:
    """装得下 [0, limit] 又能做下标的整数：PyTorch 的下标只认 int32 与 int64。"""
    return np.int32 if limit < 2**31 else np.int64


def check_sizes(sizes: Any) -> Tuple[int, ...]:
    """各层大小的门。

    Raises:
        TypeError: 不是一串整数。
        ValueError: 为空，或有小于 1 的。
    """
    values = tuple(sizes)
    if any(isinstance(size, bool) or not hasattr(size, "__index__") for size in values):
        raise InputTypeError(f"sizes={values!r} must be ints, one per level, e.g. (1024, 4096, 16384)")
    values = tuple(int(size) for size in values)
    if not values or min(values) < 1 or max(values) >= 2**31:
        raise InputError(f"sizes={values} is out of range; give one int in [1, 2**31) per level")
    return values


def check_codes(codes: np.ndarray, sizes: Sequence[int] | None) -> Tuple[int, ...]:
    """编码的门，返回各层大小；没给 sizes 时取每列最大值加一。

    Raises:
        TypeError: 不是整数数组。
        ValueError: 形状不对、没有物品、层数不符，或编号越界（指出第一个坏行）。
    """
    if codes.dtype.kind not in "iu":
        raise InputTypeError(f"codes must have an integer dtype, got {codes.dtype}; Semantic IDs are ints")
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise InputError(f"codes must have shape (N, L), got {codes.shape}; stack the levels as columns")
    if len(codes) == 0:
        raise InputError("codes is empty: a trie needs at least one item")
    if sizes is None:
        sizes = [int(codes[:, level].max()) + 1 for level in range(codes.shape[1])]
    checked = check_sizes([max(1, size) for size in sizes] if sizes is None else sizes)
    if len(checked) != codes.shape[1]:
        raise InputError(f"codes have {codes.shape[1]} levels, but sizes={checked} has {len(checked)}; one per column")
    for start in range(0, len(codes), _CHUNK):
        block = codes[start : start + _CHUNK]
        bad = (block < 0) | (block >= np.asarray(checked))  # (≤ _CHUNK, L)
        if bool(bad.any()):
            row, level = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"codes row {start + row} has L{level + 1} code {block[row, level]}; codes must be in "
                f"[0, {checked[level]}): fix that row or the sizes"
            )
    return checked


def codes_of_catalog(catalog: Any, sizes: Sequence[int] | None) -> Tuple[np.ndarray, Sequence[int]]:
    """物品表 → (完整的 ID, 各位大小)。只要求它逐片交出表，并说明 ID 是哪几列、各有多大；去重位是其中最后一列。"""
    parts = [
        np.stack([table.column(name).to_numpy() for name in catalog.id_columns], axis=1) for table in catalog.tables()
    ]
    if not parts:
        raise InputError("the catalog has no items: a trie needs at least one")
    return np.concatenate(parts), catalog.id_sizes if sizes is None else sizes


def _sorted_columns(codes: np.ndarray, sizes: Sequence[int]) -> Tuple[Callable[[int], np.ndarray], np.ndarray]:
    """排序。返回 (层 → 排好序的那一列 (N,), 行号的次序 (N,))。"""
    num_rows, row_kind = len(codes), index_int(len(codes))
    kinds = [narrow_int(size - 1) for size in sizes]
    with_row = Packing([*sizes, num_rows])
    if with_row.num_words == 1:
        keys = np.empty((num_rows, 1), np.int64)
        for start in range(0, num_rows, _CHUNK):  # 行号是最低的一位；一块一块地接，内存里没有第二份编码
            block = codes[start : start + _CHUNK]
            rows = np.arange(start, start + len(block))
            keys[start : start + _CHUNK] = with_row.pack(np.column_stack([block.astype(np.int64, copy=False), rows]))
        keys[:, 0].sort()  # 键互不相同（含行号），所以快速排序也是确定的
        order = with_row.column(keys, len(sizes), row_kind)
        return lambda level: with_row.column(keys, level, kinds[level]), order
    order = np.argsort(comparable(Packing(sizes).pack(codes)), kind="stable").astype(row_kind)
    return lambda level: codes[order, level].astype(kinds[level]), order
