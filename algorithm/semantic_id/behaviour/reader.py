"""行为日志的读者：三种形状，一个门；切在哪里由调用者说，切掉的一个字节也不影响结果。

    一行一次行为    user_id、item_id、timestamp，行序不限
    一行一个用户    train_items 列表，由旧到新；valid_item、test_item 从不读进来
    物品对          两列编号，可以再有一列 weight；也可以是 (P, 2) 的数组或 `.npy`

先切（until、leave_last），再去掉物品表里没有的，最后每人取最近的 `MAX_PER_USER` 次。时间相同的以编号小的在前。
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, List, NamedTuple, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files.source import one_line
from ..limits import check_int
from .log import Log, log_of_pairs, log_of_steps, name_keys

__all__ = ["MAX_PER_USER", "Cut", "read_log"]

MAX_PER_USER = 1000  # 再多的多半是机器人或转售；近的更能说明问题


class Cut(NamedTuple):
    """用日志的哪一部分；都是 None 就是默认：一行一次行为的用全部，一行一个用户的用 train_items。

    Attributes:
        until: 只用 timestamp ≤ 它的行；与那一列同类：数、datetime，或 ISO 8601 的字符串。
        leave_last: 每人最后几次不用。
    """

    until: Any = None
    leave_last: int | None = None


def read_log(
    source: Any,
    item_ids: pa.Array,
    *,
    cut: Cut | None = None,
    id_column: str = "item_id",
    max_per_user: int = MAX_PER_USER,
) -> Log:
    """读一份日志，认出它的形状，对到物品表的行上。

    Args:
        source: Parquet 或 `.npy` 的路径、pyarrow 的表，或 (P, 2) 的数组。
        item_ids: (N,) 物品表的编号，不重复。
        cut: 用哪一部分；只有一行一次行为的日志能切，别的形状已经切好。
        id_column: 一行一次行为时的物品编号列。
        max_per_user: 每人至多用最近几次。

    Returns:
        `Log`。

    Raises:
        FileNotFoundError: 文件不存在。
        TypeError: 编号的类型与物品表的不同，或时间、用户列的类型不对。
        ValueError: 列不齐、有空值、时间读不懂、日志是空的、切过之后什么也不剩，或没有一个认识的物品。
    """
    check_int("max_per_user", max_per_user, 1)
    table, name = _open(source)
    cut = cut or Cut()
    columns = set(table.column_names)
    if table.num_rows == 0:
        raise ValueError(f"{name} is empty; at least one interaction is needed")
    if "train_items" in columns:
        _refuse(cut, name, "train_items is already the part before valid_item and test_item")
        owners, ids = _lists(table, name)
        log = _steps(owners, ids, item_ids, name, max_per_user)._replace(cut="train_items of every user")
    elif {"user_id", id_column} <= columns:
        owners, ids, phrase = _rows(table, name, id_column, cut)
        log = _steps(owners, ids, item_ids, name, max_per_user)._replace(cut=phrase)
    elif table.num_columns == 2 or (table.num_columns == 3 and "weight" in columns):
        _refuse(cut, name, "pairs have no time and no user")
        log = _pairs(table, name, item_ids)._replace(cut="all pairs")
    else:
        raise ValueError(
            f"{name} has columns {', '.join(table.column_names)}; give user_id, {id_column} and timestamp (one row an "
            "interaction), train_items (one row a user), or two columns of item ids and an optional weight (pairs)"
        )
    if len(log.items) + len(log.pairs) == 0:
        raise ValueError(
            f"{name}: {log.cut} name no item of the catalog ({log.num_unknown} unknown ids); "
            "give the log of the same catalog, or a later cut"
        )
    return log


def _open(source: Any) -> Tuple[pa.Table, str]:
    """各种输入 → 表与它在报错里的名字。"""
    if isinstance(source, pa.Table):
        return source, "interactions"
    if not isinstance(source, (str, Path)):
        return _table_of_array(np.asarray(source), "interactions"), "interactions"
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"interactions path {str(path)!r} does not exist; give a .parquet or a .npy file")
    try:
        if path.suffix == ".npy":
            return _table_of_array(np.load(path, allow_pickle=False), path.name), path.name
        if path.suffix == ".parquet":
            return pq.ParquetFile(path, page_checksum_verification=True).read(), path.name
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not readable: {one_line(error)}; write or copy it again") from None
    raise ValueError(f"interactions file {path.name!r} has unknown extension {path.suffix!r}; use .parquet or .npy")


def _table_of_array(array: np.ndarray, name: str) -> pa.Table:
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name} must have shape (P, 2), got {array.shape}; one row is one pair of item ids")
    if array.dtype.kind not in "iuU":
        raise TypeError(f"{name} must hold item ids (ints or strings), got {array.dtype}")
    return pa.table({"left": pa.array(array[:, 0]), "right": pa.array(array[:, 1])})


def _lists(table: pa.Table, name: str) -> Tuple[np.ndarray, pa.Array]:
    """train_items → (各行为的主人 (E,)，编号 (E,))，都由旧到新。"""
    column = table.column("train_items").combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise TypeError(f"{name} column 'train_items' has type {column.type}; a list of item ids is needed")
    _no_nulls(column, name, "train_items")
    flat = pc.list_flatten(column)
    _no_nulls(flat, name, "train_items")
    return pc.list_parent_indices(column).to_numpy().astype(np.int64), flat


def _rows(table: pa.Table, name: str, id_column: str, cut: Cut) -> Tuple[np.ndarray, pa.Array, str]:
    """一行一次行为 → (主人, 编号, 英文短语)：切好，排成每人由旧到新。"""
    if "timestamp" not in table.column_names:
        raise ValueError(
            f"{name} has user_id and {id_column} but no timestamp; add the time of each row, "
            "or give one row a user with train_items in order"
        )
    columns = [table.column(one).combine_chunks() for one in ("user_id", id_column, "timestamp")]
    for column, one in zip(columns, ("user_id", id_column, "timestamp"), strict=True):
        _no_nulls(column, name, one)
    users, ids, times = columns
    if not (_is_id(users.type)):
        raise TypeError(f"{name} column 'user_id' has type {users.type}; user ids must be integers or strings")
    owners = users.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    clock, until = _clock(times, cut.until, name)
    keep = np.ones(len(owners), dtype=bool) if until is None else clock <= until
    if not keep.any():
        raise ValueError(f"{name} has no row with timestamp <= {cut.until}; choose a later --until")
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
            raise ValueError(f"{name} row {int(bad.argmax())} has timestamp {times[int(bad.argmax())]}; give a number")
    elif pa.types.is_date(kind):
        times = times.cast(pa.timestamp("us"))
    elif not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
        raise TypeError(f"{name} column 'timestamp' has type {kind}; use numbers, timestamps, dates or ISO 8601 text")
    bound = None
    if until is not None:
        try:
            bound = pa.array([until if isinstance(until, datetime) else str(until)]).cast(times.type)
        except (pa.ArrowException, TypeError, ValueError):
            raise ValueError(
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
            raise ValueError(f"{name} mixes timestamps with and without a zone; write them all in one way")
        raise ValueError(
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


def _pairs(table: pa.Table, name: str, item_ids: pa.Array) -> Log:
    """两列编号与可选的 weight。"""
    sides = [one for one in table.column_names if table.num_columns == 2 or one != "weight"]
    rows: List[np.ndarray] = []
    for side in sides:
        column = table.column(side).combine_chunks()
        _no_nulls(column, name, side)
        rows.append(_places(column, item_ids, name))
    weights = np.ones(table.num_rows)
    if table.num_columns == 3:
        column = table.column("weight").combine_chunks()
        _no_nulls(column, name, "weight")
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise TypeError(f"{name} column 'weight' has type {column.type}; weights must be numbers")
        weights = column.to_numpy(zero_copy_only=False).astype(np.float64)
        bad = ~(np.isfinite(weights) & (weights > 0))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{name} row {row} has weight {weights[row]}; weights must be finite and > 0")
    return log_of_pairs(np.stack(rows, axis=1), weights, name_keys(item_ids.to_pylist()), len(item_ids))


def _steps(owners: np.ndarray, ids: pa.Array, item_ids: pa.Array, name: str, cap: int) -> Log:
    rows = _places(ids, item_ids, name)
    return log_of_steps(rows, owners, name_keys(item_ids.to_pylist()), cap, len(item_ids))


def _places(ids: pa.Array, item_ids: pa.Array, name: str) -> np.ndarray:
    """(n,) int64 各编号在物品表的哪一行，没有的是 −1；整数对字符串是填错了列，报错。"""
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    if pa.types.is_integer(ids.type) != pa.types.is_integer(item_ids.type) or not _is_id(ids.type):
        raise TypeError(f"{name} has item ids of type {ids.type}, but the catalog has {item_ids.type}; make them agree")
    # 同类的两种宽度（int32 与 int64、string 与 large_string）是同一个编号
    wide = pa.int64() if pa.types.is_integer(ids.type) else pa.large_string()
    found = pc.index_in(ids.cast(wide), value_set=item_ids.cast(wide))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _is_id(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _no_nulls(column: pa.Array, name: str, which: str) -> None:
    if column.null_count:
        row = int(np.asarray(pc.is_null(column)).argmax())
        raise ValueError(f"{name} column {which!r} has {column.null_count} nulls, the first in row {row}; drop them")


def _refuse(cut: Cut, name: str, why: str) -> None:
    """切不了的形状不装作切过。"""
    if cut.until is not None or cut.leave_last is not None:
        raise ValueError(f"{name} cannot be cut: {why}; give rows of user_id, item_id and timestamp, or no cut")
