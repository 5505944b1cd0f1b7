"""查找索引：`seal` 写出的几个有序的 int64 数组，读者只映射、不读入；一千万个物品打开只要看几个文件头。

形状字母：N 为物品数，Q 为查询数，L' 为 ID 的位数（各层，加上去重位），W 为一个 ID 占几个 int64。

    index-G-codes.npy      (N, W) 打包的 ID，升序（ID 相同的按 item_id）；下文的「位置」就是这里的行号
    index-G-items.npy      (N,) int64，各位置的 item_id（整数编号）
    index-G-offsets.npy    (N + 1,) int64，与 index-G-strings.npy 一起存各位置的 item_id（字符串、字节串编号）
    index-G-keys.npy       (N,) int64，整数编号本身或字符串的散列，升序
    index-G-positions.npy  (N,) int64，keys 的每一项在哪个位置
    index-G-blocks.npy     以上各文件逐块的校验和，见 `blocks.py`

G 是第几代。散列只用来定位，找到之后总要逐字节核对。W > 1 时 codes 是大端，于是一行可以当作一个字节串来比大小。
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pyarrow as pa

from ...code_keys import Packing, comparable
from ..format.id_keys import hash_bytes, ids_to_bytes, ids_to_integers
from ..format.manifest import CatalogError
from .blocks import BlockArray, open_arrays

__all__ = ["CatalogIndex", "ItemStore"]

_PIECE = 1 << 13
_DAMAGED = "the lookup index of the catalog is damaged; copy the catalog again, or encode it again"


class ItemStore:
    """按位置取 item_id；整数编号在 items，其余在 offsets 与 strings。"""

    def __init__(self, arrays: Dict[str, BlockArray]) -> None:
        self.items = arrays.get("items")
        if self.items is None:
            self._offsets, self._strings = arrays["offsets"], arrays["strings"]
            self._offsets.rows(np.array([0, len(self._offsets) - 1]))  # Arrow 会看首尾两个偏移
            buffers = [None, pa.py_buffer(self._offsets.array), pa.py_buffer(self._strings.array)]
            try:
                self._texts = pa.Array.from_buffers(pa.large_binary(), len(self._offsets) - 1, buffers)  # 不复制
            except pa.ArrowInvalid:
                raise CatalogError(_DAMAGED) from None

    def keys(self, start: int, stop: int) -> np.ndarray:
        """一段位置的查找键 (n,)。"""
        if self.items is not None:
            return self.items.span(start, stop)
        offsets = self._offsets.span(start, stop + 1)
        return hash_bytes(offsets - offsets[0], self._strings.span(int(offsets[0]), int(offsets[-1])))

    def take(self, positions: np.ndarray) -> pa.Array:
        """这些位置的编号：int64 或 large_binary。"""
        if self.items is not None:
            return pa.array(self.items.rows(positions))
        start, stop = self._offsets.rows(positions), self._offsets.rows(positions + 1)
        # 偏移若是伪造的（校验和也配好了），宁可报错，不能让 Arrow 读到映射之外去
        if len(start) and (start.min() < 0 or stop.max() > len(self._strings) or bool((stop < start).any())):
            raise CatalogError(_DAMAGED)
        self._strings.check_spans(start, stop)
        return self._texts.take(pa.array(positions))


class CatalogIndex:
    """一代物品表的查找，全部向量化；只读映射，同机的多个进程共用一份页缓存。

    Args:
        folder: 物品表目录。
        entries: 清单里的 index。
        packing: ID 的打包方式，含去重位。
        id_type: item_id 的 Arrow 类型。
    """

    def __init__(
        self, folder: Path, entries: Dict[str, Dict[str, Any]], packing: Packing, id_type: pa.DataType
    ) -> None:
        self._packing, self._id_type = packing, id_type
        arrays = open_arrays(folder, entries, packing.num_words)
        self._codes, self._keys, self._positions = (arrays[role] for role in ("codes", "keys", "positions"))
        self._store = ItemStore(arrays)

    def positions_of(self, ids: pa.Array) -> np.ndarray:
        """(Q,) 编号 → (Q,) int64 位置，没有的是 −1。"""
        if self._store.items is not None:
            keys, text = ids_to_integers(ids), None
        else:
            text = ids_to_bytes(ids)
            keys = hash_bytes(*text)
        slot = self._keys.search(keys)
        out = np.full(len(keys), -1, np.int64)
        open_ = np.arange(len(keys))  # 还没有着落、也还有同键的项可看的查询
        while len(open_):
            inside = open_[slot[open_] < len(self._keys)]
            open_ = inside[self._keys.rows(slot[inside]) == keys[inside]]
            position = self._positions.rows(slot[open_])
            if len(position) and not 0 <= position.min() <= position.max() < len(self._codes):
                raise CatalogError(_DAMAGED)
            right = np.ones(len(open_), bool)
            if text is not None:
                for start in range(0, len(open_), _PIECE):  # 逐字节比较的中间量放得进缓存才快
                    part = slice(start, start + _PIECE)
                    right[part] = self._equal(position[part], text, open_[part])
            out[open_[right]] = position[right]
            open_ = open_[~right]
            slot[open_] += 1
        return out

    def _equal(self, positions: np.ndarray, text: Tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """位置上的字符串与查询的是否逐字节相同。"""
        found = ids_to_bytes(self._store.take(positions))
        start, length = text[0][rows], text[0][rows + 1] - text[0][rows]
        same = np.diff(found[0]) == length
        where = np.flatnonzero(same)
        lengths = length[where]
        total = np.concatenate([[0], np.cumsum(lengths)])
        step = np.arange(total[-1])
        left = found[1][step + np.repeat(found[0][:-1][where] - total[:-1], lengths)]
        right = text[1][step + np.repeat(start[where] - total[:-1], lengths)]
        wrong = np.concatenate([[0], np.cumsum(left != right)])
        same[where] = wrong[total[1:]] == wrong[total[:-1]]
        return same

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        """(Q,) 位置 → (Q, L') int32；−1 的位置整行是 −1。"""
        out = self._packing.unpack(self._codes.rows(np.maximum(positions, 0)))
        out[positions < 0] = -1
        return out

    def items_at(self, positions: np.ndarray) -> pa.Array:
        """(Q,) 位置 → item_id，类型与输入时相同；−1 的位置是 null。"""
        good = np.flatnonzero(positions >= 0)
        found = self._store.take(positions[good])
        if self._store.items is not None and self._id_type == pa.uint64():
            found = pa.array(found.to_numpy().view(np.uint64) ^ np.uint64(1 << 63))
        elif self._id_type != found.type:
            try:
                found = _restore(found, self._id_type)
            except pa.ArrowInvalid:  # 例如字符串已不是 UTF-8
                raise CatalogError(_DAMAGED) from None
        if len(good) == len(positions):
            return found
        slot = np.full(len(positions), -1, np.int64)
        slot[good] = np.arange(len(good))
        return found.take(pa.array(slot, mask=slot < 0))

    def first_position(self, ids: np.ndarray) -> np.ndarray:
        """(Q, L') ID → (Q,) 位置，没有的是 −1；几个物品同 ID 时是 item_id 最小的那个。"""
        inside = np.all((ids >= 0) & (ids < np.asarray(self._packing.sizes)), axis=1)  # (Q,)
        packed = self._packing.pack(np.where(inside[:, None], ids, 0))  # (Q, W)
        slot = self._codes.search(comparable(packed))
        near = np.flatnonzero(inside & (slot < len(self._codes)))
        hit = near[(self._codes.rows(slot[near]) == packed[near]).all(axis=1)]
        out = np.full(len(ids), -1, np.int64)
        out[hit] = slot[hit]
        return out

    def spans(self, prefixes: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(Q, l) 前缀 → 位置的区间 [开始, 结束)，各 (Q,) int64；没有物品的、编号越界的都是空区间。"""
        inside = np.all((prefixes >= 0) & (prefixes < np.asarray(self._packing.sizes[: prefixes.shape[1]])), axis=1)
        low, high = (comparable(keys) for keys in self._packing.bounds(np.where(inside[:, None], prefixes, 0)))
        start, stop = self._codes.search(low, "left"), self._codes.search(high, "right")
        stop[~inside] = start[~inside]
        return start, stop


def _restore(found: pa.Array, id_type: pa.DataType) -> pa.Array:
    """int64 或 large_binary → 原来的类型。"""
    if pa.types.is_string(id_type) or pa.types.is_large_string(id_type):
        return found.cast(pa.large_string()).cast(id_type)
    if pa.types.is_fixed_size_binary(id_type):
        return found.cast(pa.binary()).cast(id_type)
    return found.cast(id_type)
