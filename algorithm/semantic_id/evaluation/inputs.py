"""评估要读的别的文件：物品信息、用户行为；在门口对齐到特征的行，对不上的报错或数清楚。

形状字母：N 物品数，P 物品对数。只读；各文件的格式写在 `docs/guides/evaluate.md`。
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, InputTypeError
from ..files.parquet_bytes import read_schema, read_table
from ..files.source import VectorSource

__all__ = [
    "Interactions",
    "ItemFacts",
    "lookup_ids",
    "read_interactions",
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


class Interactions(NamedTuple):
    """物品对，行号指向特征。

    Attributes:
        pairs: (P, 2) int64，两个不同的物品。
        population: 这些对是哪些，英文短语，写进结果。
        num_users: 用户数。
        num_unknown: 行为里有、特征里没有的物品编号出现的次数；牵涉到的对不算。
    """

    pairs: np.ndarray
    population: str
    num_users: int
    num_unknown: int


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


def read_interactions(path: Path, source: VectorSource, id_column: str = "item_id") -> Interactions:
    """用户行为 → 先后相邻的物品对。

    两种 Parquet：一行一个用户（train_items 列表，可选 valid_item、test_item），或一行一次行为（user_id、物品编号列，
    按时间排好）。有 valid_item 与 test_item 时只用这一对，它没有参与过训练；否则用全部相邻的对。

    Args:
        path: Parquet 文件。
        source: 特征；编号列决定怎样认物品，没有则编号就是行号。
        id_column: 一行一次行为时的物品编号列。

    Raises:
        FileNotFoundError: 文件不存在。
        TypeError: 编号的类型与特征的不同。
        ValueError: 列不齐，或没有一对两个物品都在特征里。
    """
    if not path.exists():
        raise FileNotFoundError(f"interactions path {str(path)!r} does not exist; give a .parquet file")
    table = read_table(path)
    names = table.column_names
    if {"valid_item", "test_item"} <= set(names):
        left, right = (table.column(name).combine_chunks() for name in ("valid_item", "test_item"))
        population, users = "held-out pairs (valid_item, test_item)", table.num_rows
    elif "train_items" in names:
        left, right, users = _steps_of_lists(table, path)
        population = "consecutive items of train_items"
    elif {"user_id", id_column} <= set(names):
        left, right, users = _steps_of_rows(table, id_column)
        population = "consecutive rows of a user"
    else:
        raise InputError(
            f"{path.name} needs train_items (one row a user) or user_id and {id_column} (one row an interaction); "
            f"columns present: {', '.join(names)}"
        )
    known = source_ids(source)
    both = np.stack(
        [lookup_ids(pa.chunked_array([known]), _cast(ids, known.type, path)) for ids in (left, right)], axis=1
    )
    unknown = int((both < 0).sum())
    pairs = both[(both >= 0).all(axis=1) & (both[:, 0] != both[:, 1])]
    if len(pairs) == 0:
        raise InputError(
            f"{path.name} has no pair of two different items of {source.description}: {unknown} of {both.size} item "
            "ids are unknown; give the interactions of the same catalog"
        )
    return Interactions(pairs, population, users, unknown)


def _steps_of_lists(table: pa.Table, path: Path) -> Tuple[pa.Array, pa.Array, int]:
    """一行一个用户 → 列表里前后相邻的两个。"""
    column = table.column("train_items").combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InputTypeError(f"{path.name} column 'train_items' has type {column.type}; a list of item ids is needed")
    flat, owner = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
    same = pa.array(owner[1:] == owner[:-1])
    return flat.slice(0, max(len(flat) - 1, 0)).filter(same), flat.slice(1).filter(same), len(column)


def _steps_of_rows(table: pa.Table, id_column: str) -> Tuple[pa.Array, pa.Array, int]:
    """一行一次行为 → 同一用户前后相邻的两行；文件里的先后就是时间。"""
    users = table.column("user_id").combine_chunks().dictionary_encode()
    numbers = users.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(numbers, kind="stable")
    items, owner = table.column(id_column).combine_chunks().take(pa.array(order)), numbers[order]
    same = pa.array(owner[1:] == owner[:-1])
    return items.slice(0, max(len(items) - 1, 0)).filter(same), items.slice(1).filter(same), len(users.dictionary)


def lookup_ids(haystack: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """(n,) int64：每个编号在 haystack 的第几行，没有的是 −1；类型不同（例如整数对字符串）时都没有。"""
    try:
        found = pc.index_in(ids, value_set=haystack.cast(ids.type).combine_chunks())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(ids), -1, dtype=np.int64)
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _cast(ids: pa.Array, kind: pa.DataType, path: Path) -> pa.Array:
    """行为里的编号 → 特征的编号类型。"""
    if pa.types.is_integer(ids.type) == pa.types.is_integer(kind):
        try:
            return ids.cast(kind)
        except pa.ArrowInvalid:
            pass
    raise InputTypeError(f"{path.name} has item ids of type {ids.type}, but the features have {kind}; make them agree")


def _text(table: pa.Table, name: str, rows: pa.Array) -> pa.Array:
    """一列，对齐之后转成字符串；没有的行为空。"""
    column = table.column(name).combine_chunks()
    return column.take(rows).cast(pa.string())


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
