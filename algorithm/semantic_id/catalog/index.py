"""查找索引：`seal` 写出的几个有序的 int64 数组，读者只映射、不读入；一千万个物品打开只要看几个文件头。

形状字母：N 为物品数，Q 为查询数，L' 为 ID 的位数（各层，加上去重位），W 为一个 ID 占几个 int64。

    index-G-codes.npy      (N, W) 打包的 ID，升序（ID 相同的按 item_id）；下文的「位置」就是这里的行号
    index-G-items.npy      (N,) int64，各位置的 item_id（整数编号）
    index-G-offsets.npy    (N + 1,) int64，与 index-G-strings.npy 一起存各位置的 item_id（字符串、字节串编号）
    index-G-keys.npy       (N,) int64，整数编号本身或字符串的散列，升序
    index-G-positions.npy  (N,) int64，keys 的每一项在哪个位置

G 是第几代。散列只用来定位，找到之后总要逐字节核对。W > 1 时 codes 是大端，于是一行可以当作一个字节串来比大小。
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

import numpy as np
import pyarrow as pa

from ..durable import sync_folder
from .external_sort import DEFAULT_ROWS_IN_MEMORY, key_table, keys_of, sort_rows
from .manifest import CatalogError
from .packing import Packing, comparable, hash_bytes, ids_to_bytes, ids_to_integers
from .parts import full_ids_of

__all__ = ["CatalogIndex", "build_index"]

_CHUNK = 1 << 20
_SMALL = 1 << 17  # 字符串一次处理多少个：散列的中间量按字节数算
_PIECE = 1 << 13


class _ArrayFile:
    """边写边算 SHA-256 的 `.npy`；行数事先知道，写完落盘再改名。"""

    def __init__(self, folder: Path, name: str, dtype: str, shape: Tuple[int, ...]) -> None:
        self._path, self._shape, self._rows = folder / name, shape, 0
        self._temporary = folder / f"{name}.tmp"
        self._dtype, self._digest = np.dtype(dtype), hashlib.sha256()
        self._file = open(self._temporary, "wb+")
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        )
        self._file.seek(0)
        self._digest.update(self._file.read())

    def write(self, array: np.ndarray) -> None:
        """接上一段。"""
        data = np.ascontiguousarray(array, dtype=self._dtype)
        self._file.write(data.data)
        self._digest.update(data.data)
        self._rows += len(data)

    def close(self) -> Dict[str, Any]:
        """落盘、改名，返回清单里的一项。"""
        assert self._rows == self._shape[0], (self._path.name, self._rows, self._shape)
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        os.replace(self._temporary, self._path)
        name = self._path.name
        return {"name": name, "rows": self._rows, "bytes": size, "sha256": self._digest.hexdigest()}


def build_index(
    tables: Callable[[], Iterator[pa.Table]],
    num_items: int,
    packing: Packing,
    folder: Path,
    scratch: Path,
    generation: int,
    *,
    unique: bool,
    rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
) -> Dict[str, Dict[str, Any]]:
    """为一批分片写索引，顺便核对：行数、编号不重复、`unique` 时 ID 也不重复。

    Args:
        tables: 每次调用从头给出全部分片的表。
        num_items: N。
        packing: ID 的打包方式，含去重位。
        folder: 索引写到哪里。
        scratch: 放临时文件的目录。
        generation: 第几代，进文件名。
        unique: ID 是否必须互不相同。
        rows_in_memory: 外部排序一桶多少行。

    Returns:
        角色 → 清单里的一项。

    Raises:
        ValueError: 两行用了同一个 item_id。
        CatalogError: 行数不符，或本该唯一的 ID 重复了。
    """
    stem, text_bytes, id_type = f"index-{generation:05d}", 0, pa.null()

    def by_code() -> Iterator[pa.Table]:
        nonlocal text_bytes, id_type
        text_bytes = 0
        for table in tables():
            ids = table.column("item_id").combine_chunks()
            id_type = ids.type
            if not pa.types.is_integer(ids.type):
                text_bytes += int(ids_to_bytes(ids)[0][-1])
            yield key_table(packing.pack(full_ids_of(table)), item_id=ids)

    files: Dict[str, _ArrayFile] = {}
    last, rows = 0, 0
    for table in sort_rows(by_code, scratch, tie="item_id", rows_in_memory=rows_in_memory):
        if not files:  # 到这里全部行都已读过至少一遍
            wide = ">i8" if packing.num_words > 1 else "<i8"
            files["codes"] = _ArrayFile(folder, f"{stem}-codes.npy", wide, (num_items, packing.num_words))
            if pa.types.is_integer(id_type):
                files["items"] = _ArrayFile(folder, f"{stem}-items.npy", "<i8", (num_items,))
            else:
                files["offsets"] = _ArrayFile(folder, f"{stem}-offsets.npy", "<i8", (num_items + 1,))
                files["strings"] = _ArrayFile(folder, f"{stem}-strings.npy", "|u1", (text_bytes,))
                files["offsets"].write(np.zeros(1, np.int64))
        keys = keys_of(table)
        if unique and bool((keys[1:] == keys[:-1]).all(axis=1).any()):
            at = int((keys[1:] == keys[:-1]).all(axis=1).argmax())
            twice = packing.unpack(keys[at : at + 1])[0].tolist()
            raise CatalogError(f"two items got the Semantic ID {tuple(twice)}; nothing was sealed")
        files["codes"].write(keys)
        ids = table.column("item_id").combine_chunks()
        if "items" in files:
            files["items"].write(ids_to_integers(ids))
        else:
            offsets, data = ids_to_bytes(ids)
            files["offsets"].write(offsets[1:] + last)
            files["strings"].write(data)
            last += int(offsets[-1])
        rows += len(keys)
    if rows != num_items:
        raise CatalogError(f"the parts hold {rows} rows, but {num_items} were expected; nothing was sealed")
    entries = {role: file.close() for role, file in files.items()}
    entries |= _by_item(folder, entries, stem, num_items, scratch, rows_in_memory)
    sync_folder(folder)
    return entries


def _by_item(
    folder: Path, entries: Dict[str, Dict[str, Any]], stem: str, num_items: int, scratch: Path, rows_in_memory: int
) -> Dict[str, Dict[str, Any]]:
    """按编号排：keys 与 positions；编号重复在这里现形。"""
    store = _ItemStore(folder, entries)

    def chunks() -> Iterator[pa.Table]:
        step = _CHUNK if store.items is not None else _SMALL
        for start in range(0, num_items, step):
            stop = min(start + step, num_items)
            yield key_table(store.keys(start, stop)[:, None], position=pa.array(np.arange(start, stop)))

    keys_file = _ArrayFile(folder, f"{stem}-keys.npy", "<i8", (num_items,))
    positions_file = _ArrayFile(folder, f"{stem}-positions.npy", "<i8", (num_items,))
    for table in sort_rows(chunks, scratch, rows_in_memory=rows_in_memory):
        keys, positions = table.column("k0").to_numpy(), table.column("position").to_numpy()
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if len(same):
            _check_distinct(store, keys, positions, same)
        keys_file.write(keys)
        positions_file.write(positions)
    return {"keys": keys_file.close(), "positions": positions_file.close()}


def _check_distinct(store: _ItemStore, keys: np.ndarray, positions: np.ndarray, same: np.ndarray) -> None:
    """同一个键：整数就是同一个编号，字符串还要看是不是只有散列相同。"""
    if store.items is not None:
        raise ValueError(_twice(int(keys[same[0]])))
    for key in np.unique(keys[same]):
        seen = set()
        for value in store.take(positions[keys == key]).to_pylist():
            if value in seen:
                raise ValueError(_twice(value))
            seen.add(value)


def _twice(item: Any) -> str:
    shown = item.decode(errors="replace") if isinstance(item, bytes) else item
    return f"item_id {shown!r} appears more than once; item ids must be unique: drop or rename one of them"


class _ItemStore:
    """按位置取 item_id；整数编号在 items，其余在 offsets 与 strings。"""

    def __init__(self, folder: Path, entries: Dict[str, Dict[str, Any]]) -> None:
        self.items = _open(folder, entries["items"]) if "items" in entries else None
        if self.items is None:
            self.offsets, self.strings = _open(folder, entries["offsets"]), _open(folder, entries["strings"])

    def keys(self, start: int, stop: int) -> np.ndarray:
        """一段位置的查找键 (n,)。"""
        if self.items is not None:
            return np.asarray(self.items[start:stop])
        offsets = np.asarray(self.offsets[start : stop + 1])
        return hash_bytes(offsets - offsets[0], np.asarray(self.strings[offsets[0] : offsets[-1]]))

    def take(self, positions: np.ndarray) -> pa.Array:
        """这些位置的编号：int64 或 large_binary。"""
        if self.items is not None:
            return pa.array(np.asarray(self.items[positions]))
        start = np.asarray(self.offsets[positions])
        length = np.asarray(self.offsets[positions + 1]) - start
        offsets = np.concatenate([[0], np.cumsum(length)])
        flat = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length)
        data = np.ascontiguousarray(self.strings[flat])
        buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.large_binary(), len(positions), buffers)


def _open(folder: Path, entry: Dict[str, Any]) -> np.ndarray:
    """映射一个索引文件；只看文件头与长度，内容由 `Catalog.verify` 核对。"""
    path = folder / entry["name"]
    if path.stat().st_size != entry["bytes"]:
        raise CatalogError(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}; copy or encode it again")
    if entry["rows"] == 0:
        return np.load(path, allow_pickle=False)  # 空数组不能映射
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(array) != entry["rows"]:
        raise CatalogError(f"{path} has {len(array)} rows, not {entry['rows']}; copy or encode it again")
    return array


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
        self._codes = _open(folder, entries["codes"])
        self._keys, self._positions = _open(folder, entries["keys"]), _open(folder, entries["positions"])
        self._store = _ItemStore(folder, entries)
        self._sorted = comparable(self._codes)  # (N,)

    def positions_of(self, ids: pa.Array) -> np.ndarray:
        """(Q,) 编号 → (Q,) int64 位置，没有的是 −1。"""
        if self._store.items is not None:
            keys, text = ids_to_integers(ids), None
        else:
            text = ids_to_bytes(ids)
            keys = hash_bytes(*text)
        order = np.argsort(keys, kind="stable")  # 有序地查，缓存缺失少得多
        slot = np.empty(len(keys), np.int64)
        slot[order] = np.searchsorted(self._keys, keys[order])
        out = np.full(len(keys), -1, np.int64)
        open_ = np.arange(len(keys))  # 还没有着落、也还有同键的项可看的查询
        while len(open_):
            inside = open_[slot[open_] < len(self._keys)]
            open_ = inside[self._keys[slot[inside]] == keys[inside]]
            position = np.asarray(self._positions[slot[open_]])
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
        if not len(self._codes):
            return np.full((len(positions), len(self._packing.sizes)), -1, np.int32)
        out = self._packing.unpack(np.asarray(self._codes[np.maximum(positions, 0)]))
        out[positions < 0] = -1
        return out

    def items_at(self, positions: np.ndarray) -> pa.Array:
        """(Q,) 位置 → item_id，类型与输入时相同；−1 的位置是 null。"""
        good = np.flatnonzero(positions >= 0)
        found = self._store.take(positions[good])
        if self._store.items is not None and self._id_type == pa.uint64():
            found = pa.array(found.to_numpy().view(np.uint64) ^ np.uint64(1 << 63))
        elif self._id_type != found.type:
            found = _restore(found, self._id_type)
        if len(good) == len(positions):
            return found
        slot = np.full(len(positions), -1, np.int64)
        slot[good] = np.arange(len(good))
        return found.take(pa.array(slot, mask=slot < 0))

    def first_position(self, ids: np.ndarray) -> np.ndarray:
        """(Q, L') ID → (Q,) 位置，没有的是 −1；几个物品同 ID 时是 item_id 最小的那个。"""
        inside = np.all((ids >= 0) & (ids < np.asarray(self._packing.sizes)), axis=1)  # (Q,)
        keys = comparable(self._packing.pack(np.where(inside[:, None], ids, 0)))
        order = np.argsort(keys, kind="stable")
        slot = np.empty(len(keys), np.int64)
        slot[order] = np.searchsorted(self._sorted, keys[order])
        near = np.flatnonzero(inside & (slot < len(self._sorted)))
        found: np.ndarray = self._sorted[slot[near]]
        hit = near[np.flatnonzero(found == keys[near])]
        out = np.full(len(keys), -1, np.int64)
        out[hit] = slot[hit]
        return out

    def span(self, prefix: Sequence[int]) -> Tuple[int, int]:
        """前缀 → 位置的区间 [开始, 结束)。"""
        low, high = (comparable(key) for key in self._packing.bounds(prefix))
        start = np.searchsorted(self._sorted, low, side="left")
        return int(start[0]), int(np.searchsorted(self._sorted, high, side="right")[0])


def _restore(found: pa.Array, id_type: pa.DataType) -> pa.Array:
    """int64 或 large_binary → 原来的类型。"""
    if pa.types.is_string(id_type) or pa.types.is_large_string(id_type):
        return found.cast(pa.large_string()).cast(id_type)
    if pa.types.is_fixed_size_binary(id_type):
        return found.cast(pa.binary()).cast(id_type)
    return found.cast(id_type)
