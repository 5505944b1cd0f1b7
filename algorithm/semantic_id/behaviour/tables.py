"""行为日志的表：各种输入 → pyarrow 的列，空值、类型、时间在这里验收；怎样切、怎样用在 `reader.py`。

形状字母：E 行数，N 物品数。错误点名文件、列、行。
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, InputTypeError
from ..files.parquet_bytes import read_table
from ..files.vectors_npy import NpyFile
from ..limits import check_int

__all__ = ["Cut", "column_of", "flatten_lists", "open_table", "places_of", "sort_rows", "weights_of"]


class Cut(NamedTuple):
    """用日志的哪一部分；都是 None 就是默认：一行一次行为的用全部，一行一个用户的用 train_items。

    Attributes:
        until: 只用 timestamp ≤ 它的行；与那一列同类：数、datetime，或 ISO 8601 的字符串。
        leave_last: 每人最后几次不用。
    """

    until: Any = None
    leave_last: int | None = None


def open_table(source: Any) -> Tuple[pa.Table, str]:
    """各种输入 → 表与它在报错里的名字。"""
    if isinstance(source, pa.Table):
        return source, "interactions"
    if not isinstance(source, (str, Path)):
        return _table_of_array(np.asarray(source), "interactions"), "interactions"
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"interactions path {str(path)!r} does not exist; give a .parquet or a .npy file")
    if path.suffix == ".parquet":
        return read_table(path), path.name
    if path.suffix == ".npy":
        return _table_of_array(
            np.concatenate([rows for _, rows in NpyFile(path).blocks(1 << 20)]), path.name
        ), path.name
    raise InputError(f"interactions file {path.name!r} has unknown extension {path.suffix!r}; use .parquet or .npy")


def _table_of_array(array: np.ndarray, name: str) -> pa.Table:
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"{name} must have shape (P, 2), got {array.shape}; one row is one pair of item ids")
    if array.dtype.kind not in "iuU":
        raise InputTypeError(f"{name} must hold item ids (ints or strings), got {array.dtype}")
    return pa.table({"left": pa.array(array[:, 0]), "right": pa.array(array[:, 1])})


def column_of(table: pa.Table, which: str, name: str) -> pa.Array:
    """一列，不许有空值。"""
    return _no_nulls(table.column(which).combine_chunks(), which, name)


def _no_nulls(column: pa.Array, which: str, name: str) -> pa.Array:
    if column.null_count:
        row = int(np.asarray(pc.is_null(column)).argmax())
        raise InputError(f"{name} column {which!r} has {column.null_count} nulls, the first in row {row}; drop them")
    return column


def flatten_lists(table: pa.Table, which: str, name: str) -> Tuple[np.ndarray, pa.Array]:
    """一列列表 → (各行为的主人 (E,)，编号 (E,))，次序照原样。"""
    column = column_of(table, which, name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InputTypeError(f"{name} column {which!r} has type {column.type}; a list of item ids is needed")
    return pc.list_parent_indices(column).to_numpy().astype(np.int64), _no_nulls(pc.list_flatten(column), which, name)


def sort_rows(table: pa.Table, name: str, id_column: str, cut: Cut) -> Tuple[np.ndarray, pa.Array, str]:
    """一行一次行为 → (主人, 编号, 英文短语)：切好，排成每人由旧到新。"""
    if "timestamp" not in table.column_names:
        raise InputError(
            f"{name} has user_id and {id_column} but no timestamp; add the time of each row, "
            "or give one row a user with train_items in order"
        )
    users, ids, times = (column_of(table, one, name) for one in ("user_id", id_column, "timestamp"))
    if not _is_id(users.type):
        raise InputTypeError(f"{name} column 'user_id' has type {users.type}; user ids must be integers or strings")
    if pa.types.is_nested(ids.type):
        raise InputTypeError(f"{name} column {id_column!r} has type {ids.type}; give one item id a row")
    owners = users.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    clock, until = _clock(times, cut.until, name)
    keep = np.ones(len(owners), dtype=bool) if until is None else clock <= until
    if not keep.any():
        raise InputError(f"{name} has no row with timestamp <= {cut.until}; choose a later --until")
    ids, owners, clock = ids.filter(pa.array(keep)), owners[keep], clock[keep]
    order = np.lexsort([_ranks(ids), clock, owners])  # 时间相同的，编号小的在前
    owners, phrase = owners[order], "all rows" if until is None else f"rows with timestamp <= {cut.until}"
    if cut.leave_last is not None:
        count = check_int("leave_last", cut.leave_last, 1)
        early = np.arange(len(owners)) < np.searchsorted(owners, owners, side="right") - count
        owners, order = owners[early], order[early]
        phrase += f" without the last {count} of every user"
    return owners, ids.take(pa.array(order)), phrase


def _ranks(ids: pa.Array) -> np.ndarray:
    """(E,) int64 各编号按大小的名次；相同的同名次。"""
    names = ids.dictionary_encode()
    ranks = np.empty(len(names.dictionary), dtype=np.int64)
    ranks[pc.sort_indices(names.dictionary).to_numpy()] = np.arange(len(ranks))
    return ranks[names.indices.to_numpy(zero_copy_only=False)]


def _clock(times: pa.Array, until: Any, name: str) -> Tuple[np.ndarray, Any]:
    """时间列与 until → 可以比大小的数；读不懂的点名。"""
    kind = times.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        times = _parsed(times, name)
    elif pa.types.is_floating(kind):
        bad = ~np.isfinite(times.to_numpy(zero_copy_only=False))
        if bad.any():
            raise InputError(f"{name} row {int(bad.argmax())} has timestamp {times[int(bad.argmax())]}; give a number")
    elif pa.types.is_date(kind):
        times = times.cast(pa.timestamp("us"))
    elif not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
        raise InputTypeError(
            f"{name} column 'timestamp' has type {kind}; use numbers, timestamps, dates or ISO 8601 text"
        )
    bound = None
    if until is not None:
        try:
            bound = pa.array([until if isinstance(until, datetime) else str(until)]).cast(times.type)
        except (pa.ArrowException, TypeError, ValueError):
            raise InputError(
                f"until={until!r} is no time of {name}, whose timestamps are {kind}; give one of that kind"
            ) from None
    if pa.types.is_timestamp(times.type):
        times = times.cast(pa.int64())
        bound = None if bound is None else bound.cast(pa.int64())
    return times.to_numpy(zero_copy_only=False), None if bound is None else bound[0].as_py()


def _parsed(times: pa.Array, name: str) -> pa.Array:
    """ISO 8601 的字符串 → UTC 的微秒；第一个读不懂的点名。"""
    found = _parse(times)
    if found is None:
        row = next((row for row in range(len(times)) if _parse(times.slice(row, 1)) is None), None)
        if row is None:
            raise InputError(f"{name} mixes timestamps with and without a zone; write them all in one way")
        raise InputError(
            f"{name} row {row} has timestamp {times[row].as_py()!r}; use ISO 8601, such as 2024-05-01T12:00:00Z"
        )
    return found


def _parse(times: pa.Array) -> pa.Array | None:
    """都不带时区（当作 UTC）或都带时区的字符串；读不懂为 None。"""
    zoned = pa.timestamp("us", tz="UTC")
    for kind in (pa.timestamp("us"), zoned):
        try:
            return times.cast(kind).cast(zoned)
        except pa.ArrowInvalid:
            continue
    return None


def weights_of(table: pa.Table, name: str) -> np.ndarray:
    """(P,) float64 的 weight 列，没有这一列时都是 1。"""
    if "weight" not in table.column_names:
        return np.ones(table.num_rows)
    column = column_of(table, "weight", name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputTypeError(f"{name} column 'weight' has type {column.type}; weights must be numbers")
    weights = column.to_numpy(zero_copy_only=False).astype(np.float64)
    bad = ~(np.isfinite(weights) & (weights > 0))
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"{name} row {row} has weight {weights[row]}; weights must be finite and > 0")
    return weights


def places_of(ids: pa.Array, item_ids: pa.Array, name: str) -> np.ndarray:
    """(n,) int64 各编号在物品表的哪一行，没有的是 −1；整数对字符串是填错了列，报错。"""
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    if pa.types.is_integer(ids.type) != pa.types.is_integer(item_ids.type) or not _is_id(ids.type):
        raise InputTypeError(
            f"{name} has item ids of type {ids.type}, but the catalog has {item_ids.type}; make them agree"
        )
    # 同类的两种宽度（int32 与 int64、string 与 large_string）是同一个编号
    wide = pa.int64() if pa.types.is_integer(ids.type) else pa.large_string()
    found = pc.index_in(ids.cast(wide), value_set=item_ids.cast(wide))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _is_id(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
