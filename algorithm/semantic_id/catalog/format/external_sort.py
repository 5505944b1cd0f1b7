"""外部排序：行再多，内存里也只有一桶；全局唯一、稳定的编号都从这一次排序得来，没有装下全表的字典。

做法是按键的范围分桶：读一遍量出键的分布，再读一遍把每行追加到自己那一桶的文件里，然后逐桶排好、依次给出，连起来就是全局
有序。桶界只影响内存，不影响结果。同键的行一定同桶，所以冲突的物品总在同一张表里出现。

形状字母：N 为行数，W 为键占几列。
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, List

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["DEFAULT_ROWS_IN_MEMORY", "group_starts", "key_columns", "key_table", "keys_of", "sort_rows"]

DEFAULT_ROWS_IN_MEMORY = 1 << 21
_CELLS = 1 << 20  # 键的直方图有几格


def key_columns(num_words: int) -> List[str]:
    """键的列名：k0, k1, …。"""
    return [f"k{i}" for i in range(num_words)]


def key_table(keys: np.ndarray, **columns: object) -> pa.Table:
    """(N, W) int64 键与别的列组成一张表。"""
    named = {name: pa.array(np.ascontiguousarray(keys[:, i])) for i, name in enumerate(key_columns(keys.shape[1]))}
    return pa.table({**named, **columns})


def keys_of(table: pa.Table) -> np.ndarray:
    """取回 (N, W) int64 键。"""
    names = [name for name in table.column_names if name[0] == "k" and name[1:].isdigit()]
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def group_starts(keys: np.ndarray) -> np.ndarray:
    """排好序的 (N, W) 键里每组相同的键从哪一行开始。"""
    if not len(keys):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)]))


def sort_rows(
    chunks: Callable[[], Iterator[pa.Table]],
    folder: Path,
    *,
    tie: str | None = None,
    rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
) -> Iterator[pa.Table]:
    """按键（再按 `tie` 列）排序全部行。

    Args:
        chunks: 每次调用从头给出同样的表，列为 `key_table` 的样子；会被读一到三遍。
        folder: 放临时文件 `scratch-*` 的目录，用完即删。
        tie: 键相同时再按它排（整数按大小，字符串与字节串按字节）；None 表示保持先后。
        rows_in_memory: 一桶大约多少行。单独一格（键相同的行总在一格）多于此数时，那一桶就更大。

    Yields:
        依次有序的表。
    """
    total, low, high = 0, 0, 0
    scratch = folder / "scratch-keys"
    with open(scratch, "wb") as file:
        for chunk in chunks():
            first = chunk.column("k0").to_numpy()
            if len(first):
                low = int(first.min()) if not total else min(low, int(first.min()))
                high = int(first.max()) if not total else max(high, int(first.max()))
                file.write(np.ascontiguousarray(first).data)
                total += len(first)
    if total <= rows_in_memory:
        scratch.unlink()
        tables = [chunk for chunk in chunks() if chunk.num_rows]
        if tables:
            yield _sorted(pa.concat_tables(tables), tie)
        return
    shift = max((high - low).bit_length() - (_CELLS.bit_length() - 1), 0)
    bucket_of = _buckets(scratch, low, shift, rows_in_memory)
    scratch.unlink()
    yield from _bucket_sort(chunks, folder, bucket_of, low, shift, tie)


def _cells(first: np.ndarray, low: int, shift: int) -> np.ndarray:
    """键属于哪一格；减法在 uint64 里做，跨越正负的值域也不溢出。"""
    offset = first.view(np.uint64) - np.array(low, np.int64).view(np.uint64)
    return (offset >> np.uint64(shift)).astype(np.int64)


def _buckets(scratch: Path, low: int, shift: int, rows_in_memory: int) -> np.ndarray:
    """每一格归哪一桶：相邻的格依次装进桶里，装满就换下一桶。"""
    counts = np.zeros(_CELLS + 1, np.int64)
    with open(scratch, "rb") as file:
        while len(part := np.fromfile(file, np.int64, 1 << 20)):
            counts += np.bincount(_cells(part, low, shift), minlength=_CELLS + 1)
    bucket_of = np.zeros(_CELLS + 1, np.int64)
    bucket, filled = 0, 0
    for cell in np.flatnonzero(counts).tolist():
        if filled and filled + counts[cell] > rows_in_memory:
            bucket, filled = bucket + 1, 0
        filled += int(counts[cell])
        bucket_of[cell] = bucket
    return bucket_of


def _bucket_sort(
    chunks: Callable[[], Iterator[pa.Table]],
    folder: Path,
    bucket_of: np.ndarray,
    low: int,
    shift: int,
    tie: str | None,
) -> Iterator[pa.Table]:
    """分进桶文件，再逐桶排好给出。"""
    names = [folder / f"scratch-bucket-{i:05d}" for i in range(int(bucket_of.max()) + 1)]
    sinks: List[pa.OSFile | None] = [None] * len(names)
    writers: List[pa.ipc.RecordBatchStreamWriter | None] = [None] * len(names)
    for chunk in chunks():
        bucket = bucket_of[_cells(chunk.column("k0").to_numpy(), low, shift)]  # (n,)
        order = np.argsort(bucket, kind="stable")
        edges = np.searchsorted(bucket[order], np.arange(len(names) + 1))
        chunk = chunk.take(pa.array(order))
        for i in np.flatnonzero(np.diff(edges)):
            writer = writers[i]
            if writer is None:
                sinks[i] = pa.OSFile(str(names[i]), "wb")
                writer = writers[i] = pa.ipc.new_stream(sinks[i], chunk.schema)
            writer.write_table(chunk.slice(edges[i], edges[i + 1] - edges[i]))
    for writer, sink in zip(writers, sinks, strict=True):
        if writer is not None and sink is not None:
            writer.close()
            sink.close()
    for name, writer in zip(names, writers, strict=True):
        if writer is None:
            continue
        with pa.OSFile(str(name), "rb") as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
        name.unlink()
        yield _sorted(table, tie)


def _sorted(table: pa.Table, tie: str | None) -> pa.Table:
    """一桶在内存里排好。先只按整数键排；只有键相同的少数行才去比 `tie`，字符串比较很慢。"""
    keys = keys_of(table)
    order = np.lexsort(keys.T[::-1]) if keys.shape[1] > 1 else np.argsort(keys[:, 0], kind="stable")
    if tie is not None:
        ordered = keys[order]
        start = group_starts(ordered)
        size = np.diff(np.append(start, len(ordered)))
        tied = np.flatnonzero(np.repeat(size > 1, size))
        if len(tied):
            rows = order[tied]
            group = np.repeat(np.arange(len(start)), size)[tied]
            items = table.column(tie).take(pa.array(rows))
            if pa.types.is_fixed_size_binary(items.type):
                items = items.cast(pa.binary())
            small = pa.table({"group": group, "item": items})
            inner = pc.sort_indices(small, sort_keys=[("group", "ascending"), ("item", "ascending")]).to_numpy()
            order[tied] = rows[inner]
    return table.take(pa.array(order)).combine_chunks()
