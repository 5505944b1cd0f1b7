"""写查找索引：两次外部排序，一次按 ID、一次按编号；顺便核对行数、编号不重复、ID 不重复。文件的样子见 `lookup.py`。

形状字母：N 为物品数，W 为一个 ID 占几个 int64。
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pyarrow as pa

from ...code_keys import Packing
from ...errors import InputError
from ...files.durable import replacing
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY, key_table, keys_of, sort_rows
from ..format.id_keys import ids_to_bytes, ids_to_integers
from ..format.manifest import CatalogError
from ..format.parts import full_ids_of
from .blocks import ROLES, block_table, digest, header_of, open_arrays, rows_in_block
from .lookup import ItemStore

__all__ = ["build_index"]

_CHUNK = 1 << 20
_SMALL = 1 << 17  # 字符串一次处理多少个：散列的中间量按字节数算


class _ArrayFile:
    """边写边算校验和的 `.npy`；行数事先知道。"""

    def __init__(self, file: BinaryIO, name: str, dtype: str, shape: Tuple[int, ...]) -> None:
        self._file, self._name, self._shape, self._dtype = file, name, shape, np.dtype(dtype)
        self._header = header_of(self._dtype, shape)
        self._whole = hashlib.sha256(self._header)
        self._row_bytes = self._dtype.itemsize * (shape[1] if len(shape) > 1 else 1)
        self._block_bytes = rows_in_block(self._row_bytes) * self._row_bytes
        self._tail, self._bytes = bytearray(), len(self._header)
        self._digests: List[int] = []
        self._first: List[np.ndarray] = []  # 各块的第一个键
        file.write(self._header)

    def write(self, array: np.ndarray) -> None:
        """接上一段。"""
        data = np.ascontiguousarray(array, dtype=self._dtype)
        self._file.write(data.data)
        self._whole.update(data.data)
        self._bytes += data.nbytes
        self._tail += data.data.cast("B") if data.nbytes else b""
        whole = len(self._tail) // self._block_bytes * self._block_bytes
        for start in range(0, whole, self._block_bytes):
            self._close_block(self._tail[start : start + self._block_bytes])
        del self._tail[:whole]

    def blocks(self) -> Tuple[bytes, List[int], List[np.ndarray]]:
        """写完之后：文件头、各块的校验和、各块的第一个键。"""
        return self._header, self._digests, self._first

    def entry(self) -> Dict[str, Any]:
        """写完之后：清单里的一项。"""
        rows = (self._bytes - len(self._header)) // self._row_bytes
        assert rows == self._shape[0], (self._name, rows, self._shape)
        return {"name": self._name, "rows": rows, "bytes": self._bytes, "sha256": self._whole.hexdigest()}

    def finish(self) -> None:
        """最后一块可以不满。"""
        if self._tail:
            self._close_block(self._tail)

    def _close_block(self, data: bytearray) -> None:
        self._digests.append(digest(data))
        if self._dtype.itemsize == 8:
            self._first.append(np.frombuffer(bytes(data[: self._row_bytes]), self._dtype).astype(np.int64))


@contextmanager
def _array_file(folder: Path, name: str, dtype: str, shape: Tuple[int, ...]) -> Iterator[_ArrayFile]:
    """临时文件 → fsync → 改名；出错时什么也不留下。"""
    with replacing(folder / name) as file:
        writer = _ArrayFile(file, name, dtype, shape)
        yield writer
        writer.finish()


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
    stem = f"index-{generation:05d}"
    text_bytes, id_type = 0, pa.null()

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
    rows = last = 0
    with ExitStack() as stack:
        for table in sort_rows(by_code, scratch, tie="item_id", rows_in_memory=rows_in_memory):
            if not files:  # 到这里全部行都已读过至少一遍
                for role, dtype, shape in _shapes(
                    num_items, packing, None if pa.types.is_integer(id_type) else text_bytes
                ):
                    files[role] = stack.enter_context(_array_file(folder, f"{stem}-{role}.npy", dtype, shape))
                if "offsets" in files:
                    files["offsets"].write(np.zeros(1, np.int64))
            keys = keys_of(table)
            if unique:
                _check_unique(keys, packing)
            files["codes"].write(keys)
            last = _write_items(files, table.column("item_id").combine_chunks(), last)
            rows += len(keys)
        if rows != num_items:
            raise CatalogError(f"the parts hold {rows} rows, but {num_items} were expected; nothing was sealed")
    entries = {role: file.entry() for role, file in files.items()}
    more = _by_item(folder, entries, stem, num_items, packing.num_words, scratch, rows_in_memory)
    files |= more
    entries |= {role: file.entry() for role, file in more.items()}
    table = block_table([files[role].blocks() for role in ROLES if role in files], packing.num_words)
    with _array_file(folder, f"{stem}-blocks.npy", "<i8", table.shape) as blocks:
        blocks.write(table)
    return {**entries, "blocks": blocks.entry()}


def _shapes(num_items: int, packing: Packing, text_bytes: int | None) -> Iterator[Tuple[str, str, Tuple[int, ...]]]:
    """按 ID 排的几个文件的角色、dtype 与形状；`text_bytes` 是全部字符串编号的字节数，整数编号为 None。"""
    yield "codes", ">i8" if packing.num_words > 1 else "<i8", (num_items, packing.num_words)
    if text_bytes is None:
        yield "items", "<i8", (num_items,)
    else:
        yield "offsets", "<i8", (num_items + 1,)
        yield "strings", "|u1", (text_bytes,)


def _check_unique(keys: np.ndarray, packing: Packing) -> None:
    """排好序的键里没有重复；同键的行总在同一张表里。"""
    same = (keys[1:] == keys[:-1]).all(axis=1)
    if bool(same.any()):
        at = int(same.argmax())
        twice = packing.unpack(keys[at : at + 1])[0].tolist()
        raise CatalogError(f"two items got the Semantic ID {tuple(twice)}; nothing was sealed")


def _write_items(files: Dict[str, _ArrayFile], ids: pa.Array, last: int) -> int:
    """写一段编号；字符串的偏移接在 `last` 之后，返回新的末尾。"""
    if "items" in files:
        files["items"].write(ids_to_integers(ids))
        return last
    offsets, data = ids_to_bytes(ids)
    files["offsets"].write(offsets[1:] + last)
    files["strings"].write(data)
    return last + int(offsets[-1])


def _by_item(
    folder: Path,
    entries: Dict[str, Dict[str, Any]],
    stem: str,
    num_items: int,
    num_words: int,
    scratch: Path,
    rows_in_memory: int,
) -> Dict[str, _ArrayFile]:
    """按编号排：keys 与 positions；编号重复在这里现形。"""
    store = ItemStore(open_arrays(folder, entries, num_words, trusted=True))

    def chunks() -> Iterator[pa.Table]:
        step = _CHUNK if store.items is not None else _SMALL
        for start in range(0, num_items, step):
            stop = min(start + step, num_items)
            yield key_table(store.keys(start, stop)[:, None], position=pa.array(np.arange(start, stop)))

    with (
        _array_file(folder, f"{stem}-keys.npy", "<i8", (num_items,)) as keys_file,
        _array_file(folder, f"{stem}-positions.npy", "<i8", (num_items,)) as positions_file,
    ):
        for table in sort_rows(chunks, scratch, rows_in_memory=rows_in_memory):
            keys, positions = table.column("k0").to_numpy(), table.column("position").to_numpy()
            same = np.flatnonzero(keys[1:] == keys[:-1])
            if len(same):
                _check_distinct(store, keys, positions, same)
            keys_file.write(keys)
            positions_file.write(positions)
    return {"keys": keys_file, "positions": positions_file}


def _check_distinct(store: ItemStore, keys: np.ndarray, positions: np.ndarray, same: np.ndarray) -> None:
    """同一个键：整数就是同一个编号，字符串还要看是不是只有散列相同。"""
    if store.items is not None:
        raise InputError(_twice(int(keys[same[0]])))
    for key in np.unique(keys[same]):
        seen = set()
        for value in store.take(positions[keys == key]).to_pylist():
            if value in seen:
                raise InputError(_twice(value))
            seen.add(value)


def _twice(item: Any) -> str:
    shown = item.decode(errors="replace") if isinstance(item, bytes) else item
    return f"item_id {shown!r} appears more than once; item ids must be unique: drop or rename one of them"
