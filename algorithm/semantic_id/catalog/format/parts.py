"""Parquet 分片：一批行进，一个带页校验和的文件出；字节只由行的内容与先后决定。

形状字母：R 为一个分片的行数，L 为层数（带去重位时 ID 多一列）。
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...files.durable import write_atomically
from ...files.parquet_bytes import describe_bytes, table_from_bytes, table_to_bytes
from ...files.source import one_line
from .manifest import SUFFIX, CatalogError, gone, level_columns

__all__ = [
    "check_range",
    "codes_of",
    "full_ids_of",
    "id_rows",
    "id_table",
    "order_of_ids",
    "part_name",
    "read_checked",
    "read_staged",
    "write_table",
]

# 行组长度固定，文件字节就不随编码时的块长变化
_ROW_GROUP_ROWS = 1 << 17


def part_name(number: int) -> str:
    """第 `number` 个分片的文件名；编号只增不减，不同代的分片不会同名。"""
    return f"part-{number:05d}.parquet"


def id_table(ids: Any, codes: np.ndarray, suffix: np.ndarray | None = None, **more: Any) -> pa.Table:
    """item_id, l1, …[, suffix] 的表。

    Args:
        ids: (R,) 物品编号。
        codes: (R, L) 整数编码。
        suffix: (R,) 去重位；None 表示没有这一列。
        **more: 排在后面的别的列。
    """
    columns = {"item_id": ids}
    for i, name in enumerate(level_columns(codes.shape[1])):
        columns[name] = pa.array(np.ascontiguousarray(codes[:, i], dtype=np.int32))
    if suffix is not None:
        columns[SUFFIX] = pa.array(np.ascontiguousarray(suffix, dtype=np.int32))
    return pa.table({**columns, **more})


def id_rows(items: pa.Array, ids: np.ndarray, levels: int) -> pa.Table:
    """编号与 (R, L') 完整的 ID（有去重位时最后一列就是它）组成分片那样的表。"""
    return id_table(items, ids[:, :levels], ids[:, levels] if ids.shape[1] > levels else None)


def order_of_ids(items: pa.Array) -> np.ndarray:
    """按 item_id 排好的下标，稳定；Arrow 不会给定长字节串排序，先转成变长的。"""
    keyed = items.cast(pa.binary()) if pa.types.is_fixed_size_binary(items.type) else items
    return pc.sort_indices(keyed).to_numpy().astype(np.int64)


def write_table(folder: Path, name: str, table: pa.Table) -> Dict[str, Any]:
    """写一个文件：先在内存里成形（一个分片不过几十 MB），再原子地换上。返回清单里的一项。"""
    data = table_to_bytes(table, _ROW_GROUP_ROWS)
    write_atomically(folder / name, data)
    return describe_bytes(name, table.num_rows, data)


def read_checked(folder: Path, entry: Dict[str, Any], columns: Sequence[str]) -> pa.Table:
    """读清单里的一个 Parquet 文件并核对 SHA-256、列与行数。

    Raises:
        CatalogError: 被改动、截断、换成了别的物品表的，或内容与清单不符。
    """
    path = folder / entry["name"]
    try:
        data = path.read_bytes()  # 只读一次：校验的与解析的是同一份字节
    except FileNotFoundError:
        raise gone(path) from None
    table = table_from_bytes(data, entry, str(path), CatalogError)
    if table.column_names != list(columns):
        raise CatalogError(f"{path} has columns {table.column_names}, not {list(columns)}; encode the catalog again")
    return table


def read_staged(path: Path) -> pa.Table:
    """读一个编码途中的文件；页校验和有错就要求重来。"""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(
            f"{path} is not readable: {one_line(error)}; delete it and run again with --resume"
        ) from None


def codes_of(table: pa.Table) -> np.ndarray:
    """取出 l1, l2, … 列，得到 (R, L) int32。"""
    names = level_columns(sum(1 for name in table.column_names if re.fullmatch(r"l\d+", name)))
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def full_ids_of(table: pa.Table) -> np.ndarray:
    """取出完整的 ID：各层，有去重位时再加一列，(R, L[+1]) int32。"""
    codes = codes_of(table)
    if SUFFIX not in table.column_names:
        return codes
    return np.concatenate([codes, table.column(SUFFIX).to_numpy()[:, None]], axis=1)


def check_range(codes: np.ndarray, sizes: Sequence[int], name: str, row_offset: int) -> None:
    """编码须在各层码本之内。"""
    if codes.shape[1] != len(sizes):
        raise CatalogError(f"{name} has {codes.shape[1]} levels, but codebook_sizes has {len(sizes)}")
    bad = (codes < 0) | (codes >= np.asarray(sizes))  # (B, L)
    if bool(bad.any()):
        row, level = (int(i) for i in np.argwhere(bad)[0])
        value, size = codes[row, level], sizes[level]
        raise CatalogError(f"{name} row {row_offset + row} has L{level + 1} code {value}; codes must be in [0, {size})")
