"""评估要读的别的文件：物品信息；在门口对齐到特征的行，对不上的报错或数清楚。用户行为由 `behaviour/reader.py` 读。

形状字母：N 物品数。只读；各文件的格式写在 `docs/guides/evaluate.md`。
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, InputTypeError
from ..files.parquet_bytes import read_schema, read_table
from ..files.source import VectorSource

__all__ = [
    "ItemFacts",
    "lookup_ids",
    "read_item_facts",
    "same_rows",
    "source_ids",
]


class ItemFacts(NamedTuple):
    """与特征逐行对齐的物品信息。

    Attributes:
        titles: (N,) string，可以为空；文件没有 title 列时为 None。
        labels: (N,) string，可以为空；没有要标签时为 None。
        num_missing: 物品信息里没有的物品数。
        matched_by: id（按物品编号对齐）、row（没有编号，按行序）或 self（特征文件自己）。
    """

    titles: pa.Array | None
    labels: pa.Array | None
    num_missing: int
    matched_by: str = "id"


def source_ids(source: VectorSource) -> pa.Array:
    """(N,) 全部物品编号。"""
    return pa.concat_arrays(list(source.id_blocks()))


def read_item_facts(
    path: Path, source: VectorSource, *, label_column: str | None, id_column: str, title_column: str = "title"
) -> ItemFacts:
    """物品信息：Parquet，编号列（特征也没有编号时可以没有，行序须与特征相同）、可选的 title 列与标签列。

    Args:
        path: Parquet 文件。
        source: 特征。
        label_column: 标签列；None 为不要标签。
        id_column: 编号列的名字。
        title_column: 标题列的名字。

    Raises:
        FileNotFoundError: 文件不存在。
        TypeError: 标签列不是字符串或整数。
        ValueError: 没有这一列（列出有哪些列）、特征有编号而它没有、行数不同、没有一个编号对得上。
    """
    if not path.exists():
        raise FileNotFoundError(f"items path {str(path)!r} does not exist; give a .parquet file")
    schema = read_schema(path)
    if label_column is not None and label_column not in schema.names:
        raise InputError(f"{path.name} has no column {label_column!r}; columns present: {', '.join(schema.names)}")
    if label_column is not None and not _is_label(schema.field(label_column).type):
        kind = schema.field(label_column).type
        raise InputTypeError(f"{path.name} column {label_column!r} has type {kind}; labels must be strings or integers")
    wanted = [name for name in {id_column, title_column, label_column or title_column} if name in schema.names]
    table = read_table(path, wanted)
    places, missing = np.arange(source.num_rows), 0
    if id_column in table.column_names:
        places = lookup_ids(table.column(id_column), source_ids(source))
        missing = int((places < 0).sum())
        if missing == source.num_rows:
            raise InputError(
                f"no {id_column} of {path.name} is an item of {source.description}; "
                "give the file of the same catalog, or choose the column with --id-column"
            )
    elif source.has_ids:
        raise InputError(
            f"{path.name} has no column {id_column!r}, but the features have item ids; rename its id column or choose "
            f"one with --id-column; columns present: {', '.join(schema.names)}"
        )
    else:
        same_rows(table.num_rows, source, path)
    rows = pa.array(np.where(places < 0, 0, places), mask=places < 0)
    titles = _text(table, title_column, rows) if title_column in table.column_names else None
    labels = _text(table, label_column, rows) if label_column is not None else None
    if labels is not None and labels.null_count == len(labels):
        raise InputError(f"{path.name} column {label_column!r} has no label for any item")
    return ItemFacts(titles, labels, missing, "id" if id_column in table.column_names else "row")


def lookup_ids(haystack: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """(n,) int64：每个编号在 haystack 的第几行，没有的是 −1；类型不同（例如整数对字符串）时都没有。"""
    try:
        found = pc.index_in(ids, value_set=haystack.cast(ids.type).combine_chunks())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(ids), -1, dtype=np.int64)
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _text(table: pa.Table, name: str, rows: pa.Array) -> pa.Array:
    """一列，对齐之后转成字符串；没有的行为空。"""
    column = table.column(name).combine_chunks()
    try:
        return column.take(rows).cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputTypeError(f"column {name!r} has type {column.type}; it must be text, or cast to text") from None


def _is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def same_rows(rows: int, source: VectorSource, path: Path) -> None:
    """按行序对齐之前，行数须与特征相同。"""
    if rows != source.num_rows:
        raise InputError(
            f"{path.name} has {rows} rows, but {source.description} has {source.num_rows}; "
            "both must hold the same items in the same order"
        )
