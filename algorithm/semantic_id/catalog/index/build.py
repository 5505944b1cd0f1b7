"""写查找索引：两次外部排序，一次按 ID、一次按编号；顺便核对行数、编号不重复、ID 不重复。文件的样子见 `lookup.py`。

形状字母：N 为物品数，W 为一个 ID 占几个 int64。
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import numpy as np
import pyarrow as pa

from ...code_keys import Packing
from ...files.durable import sync_folder
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY, key_table, keys_of, sort_rows
from ..format.id_keys import ids_to_bytes, ids_to_integers
from ..format.manifest import CatalogError
from ..format.parts import full_ids_of
from .lookup import ItemStore

__all__ = ["build_index"]

_CHUNK = 1 << 20
_SMALL = 1 << 17  # 字符串一次处理多少个：散列的中间量按字节数算


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
    store = ItemStore(folder, entries)

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


def _check_distinct(store: ItemStore, keys: np.ndarray, positions: np.ndarray, same: np.ndarray) -> None:
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
