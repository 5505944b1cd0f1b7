"""索引文件怎样核对：切成 64 KiB 的块，每块一个校验和；一块第一次被用到时才核对，所以打开与文件大小无关。

几个数组的块记在同一个 `index-G-blocks.npy` 里，(B, 1 + W) int64，B 为总块数：

    第 0 列      这一块的 SHA-256 的前 8 个字节
    第 1…W 列    这一块的第一个键（codes 的 W 个字，keys 的一个；别的数组为 0）

按 `ROLES` 的次序，每个数组先是它的文件头（算一块），再是各块数据。这个文件自己的 SHA-256 在清单里，打开时核对；十亿个
物品也只有 8 MB。有了每块的第一个键，一次查找只碰一块，而不是二分途中的每一块。

版本 2 的索引没有这个文件：打开时核对整个文件。
"""

from __future__ import annotations

import hashlib
import io
import mmap
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from ...code_keys import comparable
from ..format.manifest import CatalogError, gone

__all__ = ["ROLES", "BlockArray", "block_table", "digest", "header_of", "open_arrays", "rows_in_block"]

BLOCK_BYTES = 1 << 16
ROLES = ("codes", "items", "offsets", "strings", "keys", "positions")


def header_of(dtype: np.dtype, shape: Tuple[int, ...]) -> bytes:
    """`.npy` 的文件头。"""
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return sink.getvalue()


def digest(data: Any) -> int:
    """一块的校验和，有符号的 64 位整数。"""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little", signed=True)


def rows_in_block(row_bytes: int) -> int:
    """一块有几行。"""
    return max(1, BLOCK_BYTES // row_bytes)


class BlockArray:
    """映射在磁盘上的 (n,) 或 (n, W) 数组；取一行之前先核对它所在的块。

    Args:
        path: 文件，错误信息要点它的名。
        array: 映射的数据。
        blocks: (块数, 1 + W) 校验和与第一个键；None 表示已经整个核对过。
    """

    def __init__(self, path: Path, array: np.ndarray, blocks: np.ndarray | None) -> None:
        self.array, self._path = array, path
        self._rows = rows_in_block(array.itemsize * (array.shape[1] if array.ndim > 1 else 1))
        count = -(-len(array) // self._rows)
        self._unchecked = np.full(count, blocks is not None)
        self._digests = np.zeros(count, np.int64) if blocks is None else blocks[:, 0]
        # (n,) 可二分的样子；每块的第一个
        self._ordered = comparable(array) if array.ndim > 1 else array
        if blocks is None:
            self._first = np.array(self._ordered[:: self._rows])
        else:
            first = blocks[:, 1 : 1 + (array.shape[1] if array.ndim > 1 else 1)]
            self._first = comparable(np.ascontiguousarray(first))

    def __len__(self) -> int:
        """行数。"""
        return len(self.array)

    def rows(self, at: np.ndarray) -> np.ndarray:
        """取出这些行。"""
        self._check(at // self._rows)
        return self.array[at]

    def span(self, start: int, stop: int) -> np.ndarray:
        """[start, stop) 行，不复制。"""
        self._check(np.arange(start // self._rows, -(-stop // self._rows)))
        return self.array[start:stop]

    def check_spans(self, start: np.ndarray, stop: np.ndarray) -> None:
        """核对几段 [start, stop)。"""
        some = start < stop
        first, last = start[some] // self._rows, (stop[some] - 1) // self._rows
        self._check(np.concatenate([first, last]))
        for low, high in zip(first[last > first + 1].tolist(), last[last > first + 1].tolist(), strict=True):
            self._check(np.arange(low, high))

    def search(self, wanted: np.ndarray, side: Any = "left") -> np.ndarray:
        """(Q,) 键 → 升序的数组里该插在哪里，同 `np.searchsorted`。"""
        order = np.argsort(wanted, kind="stable")  # 有序地查，同一块的挨在一起
        ordered = wanted[order]
        block = np.maximum(np.searchsorted(self._first, ordered, side) - 1, 0)
        self._check(block)
        edges = np.concatenate([[0], np.flatnonzero(block[1:] != block[:-1]) + 1, [len(block)]])
        found = np.empty(len(wanted), np.int64)
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if low < high:
                start = int(block[low]) * self._rows
                inside = self._ordered[start : start + self._rows]
                found[low:high] = start + np.searchsorted(inside, ordered[low:high], side)
        out = np.empty(len(wanted), np.int64)
        out[order] = found
        return out

    def _check(self, blocks: np.ndarray) -> None:
        """核对还没有核对过的块。

        Raises:
            CatalogError: 与写下时不同。
        """
        waiting = blocks[self._unchecked[blocks]]
        for block in np.unique(waiting).tolist() if len(waiting) else ():
            data = np.ascontiguousarray(self.array[block * self._rows : (block + 1) * self._rows])
            if digest(data) != self._digests[block]:
                raise _damaged(self._path)
            self._unchecked[block] = False


def open_arrays(
    folder: Path, entries: Dict[str, Dict[str, Any]], num_words: int, *, trusted: bool = False
) -> Dict[str, BlockArray]:
    """映射清单里的索引文件。

    Args:
        folder: 物品表目录。
        entries: 角色 → 清单里的一项。
        num_words: 一个 ID 占几个 int64，W。
        trusted: 刚刚写下的，不必核对。

    Raises:
        CatalogError: 文件不在、长短不对，或校验和不符。
    """
    roles = [role for role in ROLES if role in entries]
    shapes = {role: _shape(role, entries[role]["rows"], num_words) for role in roles}
    table = None
    if "blocks" in entries:
        width = 1 + num_words
        entry = entries["blocks"]
        table = _map(folder, entry, np.dtype("<i8"), (entry["rows"], width), whole=True)[0]
        counts = [1 + -(-shapes[role][1][0] // _rows_of(shapes[role])) for role in roles]
        if sum(counts) != len(table):
            raise _damaged(folder / entry["name"])
    out, at = {}, 0
    for i, role in enumerate(roles):
        dtype, shape = shapes[role]
        whole = table is None and not trusted
        array, head = _map(folder, entries[role], dtype, shape, whole=whole)
        blocks = None
        if table is not None:
            blocks = table[at + 1 : at + counts[i]]
            if digest(head) != table[at, 0]:
                raise _damaged(folder / entries[role]["name"])
            at += counts[i]
        out[role] = BlockArray(folder / entries[role]["name"], array, blocks)
    return out


def _shape(role: str, rows: int, num_words: int) -> Tuple[np.dtype, Tuple[int, ...]]:
    """一个角色的 dtype 与形状；几个字的 ID 用大端，一行就可以当字节串来比大小。"""
    if role == "strings":
        return np.dtype("|u1"), (rows,)
    if role == "codes":
        return np.dtype(">i8" if num_words > 1 else "<i8"), (rows, num_words)
    return np.dtype("<i8"), (rows,)


def _rows_of(kind: Tuple[np.dtype, Tuple[int, ...]]) -> int:
    """一块有几行。"""
    dtype, shape = kind
    return rows_in_block(dtype.itemsize * (shape[1] if len(shape) > 1 else 1))


def _map(
    folder: Path, entry: Dict[str, Any], dtype: np.dtype, shape: Tuple[int, ...], *, whole: bool
) -> Tuple[np.ndarray, bytes]:
    """映射一个 `.npy`，给出数据与文件头；`whole` 则核对整个文件。核对的与映射的是同一个打开的文件。"""
    path = folder / entry["name"]
    try:
        with open(path, "rb") as file:
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise gone(path) from None
    except ValueError:  # 空文件不能映射
        data = b""
    count = int(np.prod(shape, dtype=object))
    head = entry["bytes"] - count * dtype.itemsize
    if len(data) != entry["bytes"] or not 0 < head <= BLOCK_BYTES:
        raise CatalogError(f"{path} has {len(data)} bytes, not {entry['bytes']}; copy or encode it again")
    if whole and hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _damaged(path)
    return np.frombuffer(data, dtype, count, head).reshape(shape), data[:head]


def _damaged(path: Path) -> CatalogError:
    return CatalogError(
        f"{path}: the lookup index of the catalog is damaged (its checksum differs); copy the catalog again, or "
        "encode it again"
    )


def block_table(files: List[Tuple[bytes, List[int], List[np.ndarray]]], num_words: int) -> np.ndarray:
    """几个数组的（文件头, 各块的校验和, 各块的第一个键）→ (B, 1 + W)。"""
    rows = []
    for header, digests, first in files:
        rows.append([digest(header), *[0] * num_words])
        for i, value in enumerate(digests):
            key = first[i].tolist() if first else []
            rows.append([value, *key, *[0] * (num_words - len(key))])
    return np.array(rows, "<i8").reshape(-1, 1 + num_words)
