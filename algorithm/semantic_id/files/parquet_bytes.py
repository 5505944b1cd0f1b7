"""表 ↔ Parquet：自己写的连同摘要，别人给的整个读进来；带页校验和，翻转的比特认得出来。

整张表在内存里成形：用它写的都是一个分片以内的小表。
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Type

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .source import one_line

__all__ = ["describe_bytes", "read_schema", "read_table", "table_from_bytes", "table_to_bytes"]


def table_to_bytes(table: pa.Table, row_group_rows: int | None = None) -> pa.Buffer:
    """表 → Parquet 字节（zstd、页校验和）；同样的表得到同样的字节。"""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_rows, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def describe_bytes(name: str, rows: int, data: Any) -> Dict[str, Any]:
    """清单里的一项：文件名、行数、字节数、SHA-256。"""
    view = memoryview(data)
    return {"name": name, "rows": rows, "bytes": view.nbytes, "sha256": hashlib.sha256(view).hexdigest()}


def table_from_bytes(data: Any, entry: Dict[str, Any], where: str, error: Type[ValueError] = InputError) -> pa.Table:
    """核对字节数、SHA-256 与行数之后读成表。

    Args:
        data: 文件的全部字节。
        entry: `describe_bytes` 的结果。
        where: 错误信息里的文件名。
        error: 用哪一种错误。

    Raises:
        ValueError: `error`，被截断、改动或读不懂。
    """
    found = describe_bytes(entry["name"], entry["rows"], data)
    if found != {key: entry.get(key) for key in found}:
        raise error(f"{where} does not match its SHA-256 in the manifest; restore it from a backup or write it again")
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as problem:
        raise error(f"{where} is not a readable Parquet file: {one_line(problem)}") from None
    if table.num_rows != entry["rows"]:
        raise error(f"{where} has {table.num_rows} rows, its manifest says {entry['rows']}; write it again")
    return table


def read_schema(path: Path) -> pa.Schema:
    """别人的 Parquet 文件有哪些列。

    Raises:
        ValueError: 不是 Parquet，或有两列同名。
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {one_line(error)}; write or copy it again") from None
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has column {twice[0]!r} more than once; give each column its own name")
    return schema


def read_table(path: Path, columns: List[str] | None = None) -> pa.Table:
    """别人的一个 Parquet 文件整个读进来，核对页校验和。

    Raises:
        ValueError: 不是 Parquet，或坏了。
    """
    read_schema(path)
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}; copy it again") from None
    # 新的 string_view、binary_view 还没有 filter 等算子：换成同样内容的大字符串
    plain = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    fields = [field.with_type(plain.get(str(field.type), field.type)) for field in table.schema]
    return table.cast(pa.schema(fields)) if any(str(kind) in plain for kind in table.schema.types) else table
