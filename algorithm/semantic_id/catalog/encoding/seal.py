"""封存：编码好的分片 → 唯一的 ID → 正式的分片、索引、清单。

形状字母：N 为物品数，n 为与别人同码的物品数，L 为层数。

内存：一次外部排序的一桶，加上每行 4 字节的去重位（映射在磁盘上），nearest-free 另加与 n 成正比的候选。没有随 N 增长的
字典。
每一步都由编码好的分片决定，所以在任何一步被杀，重来一遍得到同样的字节。
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence

import numpy as np
import pyarrow as pa

from ...code_keys import Packing, comparable
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY, group_starts, key_table, keys_of, sort_rows
from ..format.manifest import CatalogError, id_columns, write_manifest
from ..format.parts import codes_of, id_table, order_of_ids, part_name, read_checked, write_table
from ..index.build import build_index
from ..unique.assign import Placement, suffixes_of_sorted
from .shards import Shard, note_of, read_staged, shard_name

__all__ = ["Contenders", "assign_suffixes", "find_contenders", "seal"]


class Contenders(NamedTuple):
    """与别人同码的物品，按 item_id 排好。

    Attributes:
        rows: (n,) int64，来源里的行号。
        codes: (n, L) int32。
        items: (n,) 物品编号。
        distinct: 全部不同的码，升序、可二分的 (U,) 数组，映射自磁盘。
    """

    rows: np.ndarray
    codes: np.ndarray
    items: pa.Array
    distinct: np.ndarray

    def occupied(self, packing: Packing) -> Callable[[np.ndarray], np.ndarray]:
        """(E, L) 编码 → 是否被独占它的物品占着。"""
        shared = np.unique(comparable(packing.pack(self.codes)))

        def check(codes: np.ndarray) -> np.ndarray:
            keys = comparable(packing.pack(codes))
            return _among(keys, self.distinct) & ~_among(keys, shared)

        return check


def _among(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """各个键是否在升序的 ordered 里。"""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    slot = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.asarray(ordered[slot]) == keys


def _sorted_codes(staging: Path, shards: Sequence[Shard], packing: Packing, rows_in_memory: int) -> Iterator[pa.Table]:
    """全部行按（编码, item_id）排好：k0…, item_id, row。"""

    def chunks() -> Iterator[pa.Table]:
        for shard in shards:
            table = read_staged(staging / shard_name(shard))
            ids = table.column("item_id").combine_chunks()
            yield key_table(
                packing.pack(codes_of(table)), item_id=ids, row=pa.array(np.arange(shard.start, shard.stop))
            )

    return sort_rows(chunks, staging, tie="item_id", rows_in_memory=rows_in_memory)


def assign_suffixes(
    staging: Path, shards: Sequence[Shard], sizes: Sequence[int], rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY
) -> tuple[np.ndarray, Dict[str, Any]]:
    """去重位 (N,) int32（映射在 staging 里，按行号）与数字 num_contenders、max_suffix。"""
    path = staging / "scratch-suffix"
    suffix = np.memmap(path, np.int32, "w+", shape=(shards[-1].stop,))
    contenders = biggest = 0
    for table in _sorted_codes(staging, shards, Packing(sizes), rows_in_memory):
        keys = keys_of(table)
        rank = suffixes_of_sorted(keys)
        suffix[table.column("row").to_numpy()] = rank
        size = np.diff(np.append(group_starts(keys), len(keys)))
        contenders += int(size[size > 1].sum())
        biggest = max(biggest, int(rank.max()))
    return suffix, {"num_contenders": contenders, "max_suffix": biggest}


def find_contenders(
    staging: Path, shards: Sequence[Shard], sizes: Sequence[int], rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY
) -> Contenders:
    """找出与别人同码的物品，顺便把全部不同的码写到磁盘上供查询。"""
    packing = Packing(sizes)
    path = staging / "scratch-distinct"
    rows, codes, items = [], [], []
    with open(path, "wb") as file:
        for table in _sorted_codes(staging, shards, packing, rows_in_memory):
            keys = keys_of(table)
            start = group_starts(keys)
            size = np.diff(np.append(start, len(keys)))
            file.write(np.ascontiguousarray(comparable(keys[start])).data)
            shared = np.flatnonzero(np.repeat(size > 1, size))
            rows.append(table.column("row").to_numpy()[shared])
            codes.append(packing.unpack(keys[shared]))
            items.append(table.column("item_id").combine_chunks().take(pa.array(shared)))
    distinct = np.memmap(path, comparable(np.zeros((1, packing.num_words), np.int64)).dtype, "r")
    ids = pa.concat_arrays(items)
    order = order_of_ids(ids)
    return Contenders(np.concatenate(rows)[order], np.concatenate(codes)[order], ids.take(pa.array(order)), distinct)


def seal(
    folder: Path,
    staging: Path,
    shards: Sequence[Shard],
    *,
    sizes: Sequence[int],
    fingerprint: str,
    features: str,
    unique: str,
    dim: int,
    suffix: np.ndarray | None = None,
    moves: tuple[np.ndarray, Placement] | None = None,
    figures: Dict[str, Any] | None = None,
    rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
) -> Dict[str, Any]:
    """写正式的分片、索引，最后写清单。

    Args:
        folder: 物品表目录（还没有清单）。
        staging: 编码好的分片所在。
        shards: 全部分片。
        sizes: 各层码本大小。
        fingerprint: 模型的指纹。
        features: 来源的一句描述。
        unique: 去重策略。
        dim: 特征维度 D，只用来把误差换算成 MSE。
        suffix: (N,) 去重位，策略为 suffix 时。
        moves: (行号, 安置结果)，策略为 nearest-free 时。
        figures: 去重的数字，写进清单。
        rows_in_memory: 外部排序一桶多少行。

    Returns:
        清单内容。

    Raises:
        ValueError: item_id 重复。
        CatalogError: 分片缺失、损坏，行数不符，或 ID 没能唯一。
    """
    columns = ["item_id", *id_columns(len(sizes), unique)]
    entries, notes, id_type = _write_parts(folder, staging, shards, suffix, moves)
    total = shards[-1].stop
    max_suffix = (figures or {}).get("max_suffix", 0)
    packing = Packing([*sizes, *([max_suffix + 1] if suffix is not None else [])])
    index = build_index(
        lambda: (read_checked(folder, entry, columns) for entry in entries),
        total,
        packing,
        folder,
        staging,
        0,
        unique=unique != "none",
        rows_in_memory=rows_in_memory,
    )
    return write_manifest(
        folder,
        {
            "generation": 0,
            "num_items": total,
            "columns": columns,
            "item_id_type": id_type,
            "codebook_sizes": list(sizes),
            "unique": unique,
            "max_suffix": max_suffix,
            "model_fingerprint": fingerprint,
            "features": features,
            "reference": _reference(notes, len(sizes), dim),
            "parts": entries,
            "index": index,
            "retired": None,
            "next_part": len(entries),
            "history": [{"generation": 0, "features": features, "added": total, **(figures or {})}],
        },
    )


def _write_parts(
    folder: Path,
    staging: Path,
    shards: Sequence[Shard],
    suffix: np.ndarray | None,
    moves: tuple[np.ndarray, Placement] | None,
) -> tuple[List[Dict[str, Any]], List[Dict[str, Any]], str]:
    """编码途中的分片加上去重的结果，写成正式的分片；返回清单里的各项、各片的误差、item_id 的类型。"""
    entries: List[Dict[str, Any]] = []
    notes = []
    id_type = ""
    for shard in shards:
        table = read_staged(staging / shard_name(shard))
        if table.num_rows != shard.stop - shard.start:
            raise CatalogError(f"{shard_name(shard)} has {table.num_rows} rows, not {shard.stop - shard.start}")
        notes.append(note_of(table))
        codes = codes_of(table)
        if moves is not None:
            rows, placement = moves
            here = np.flatnonzero((rows >= shard.start) & (rows < shard.stop))
            codes[rows[here] - shard.start] = placement.codes[here]
        tail = None if suffix is None else suffix[shard.start : shard.stop]
        ids = table.column("item_id").combine_chunks()
        id_type = str(ids.type)
        entries.append(write_table(folder, part_name(shard.number), id_table(ids, codes, tail)))
    return entries, notes, id_type


def _reference(notes: Sequence[Dict[str, Any]], levels: int, dim: int) -> Dict[str, Any]:
    """编码时逐层的误差（隐空间，对 D 个元素平均），`semid drift` 的参照。"""
    rows = sum(note["rows"] for note in notes)
    sums = [math.fsum(note["error_sum"][level] for note in notes if note["rows"]) for level in range(levels)]
    return {"rows": rows, "level_mse": [value / (rows * dim) if rows else None for value in sums]}
