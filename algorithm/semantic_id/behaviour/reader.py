"""行为日志的读者：三种形状，一个门；切在哪里由调用者说，切掉的一个字节也不影响结果。

    一行一次行为    user_id、item_id、timestamp，行序不限
    一行一个用户    train_items 列表，由旧到新；valid_item、test_item 只有评估读
    物品对          两列编号，可以再有一列 weight；也可以是 (P, 2) 的数组或 `.npy`

学（`read_log`）：先切（until、leave_last），再去掉物品表里没有的，最后每人取最近的 `MAX_PER_USER` 次。时间相同的以编号
小的在前。考（`read_held_out`）：每人倒数第二步（valid）或最后一步（test）的一对物品。
"""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..limits import check_int
from .log import Log, log_of_pairs, log_of_steps, name_keys
from .tables import Cut, column_of, flatten_lists, open_table, places_of, sort_rows, weights_of

__all__ = ["MAX_PER_USER", "PAIRS_OF", "Cut", "HeldOut", "read_held_out", "read_log"]

MAX_PER_USER = 1000  # 再多的多半是机器人或转售；近的更能说明问题
PAIRS_OF = {
    "valid": ("train_items", "valid_item"),
    "test": ("valid_item", "test_item"),
}  # 考题 → 一行一个用户时要的两列


class HeldOut(NamedTuple):
    """考题：每人一对，左边是最近已知的，右边是下一个。

    Attributes:
        pairs: (P, 2) int64 行号，两个不同的物品；按行号排好。
        population: 英文短语：这些对是哪些，写进结果。
        num_users: 用户数，含没有考题的。
        num_unknown: 考题里物品表没有的编号出现的次数；牵涉到的对不算。
    """

    pairs: np.ndarray
    population: str
    num_users: int
    num_unknown: int


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
    table, name = open_table(source)
    cut = cut or Cut()
    columns = set(table.column_names)
    if table.num_rows == 0:
        raise InputError(f"{name} is empty; at least one interaction is needed")
    if "train_items" in columns:
        _refuse(cut, name, "train_items is already the part before valid_item and test_item")
        owners, ids = flatten_lists(table, "train_items", name)
        log = _steps(owners, ids, item_ids, name, max_per_user)._replace(cut="train_items of every user")
    elif {"user_id", id_column} <= columns:
        owners, ids, phrase = sort_rows(table, name, id_column, cut)
        log = _steps(owners, ids, item_ids, name, max_per_user)._replace(cut=phrase)
    elif table.num_columns == 2 or (table.num_columns == 3 and "weight" in columns):
        _refuse(cut, name, "pairs have no time and no user")
        log = _pairs(table, name, item_ids)._replace(cut="all pairs")
    else:
        raise InputError(
            f"{name} has columns {', '.join(table.column_names)}; give user_id, {id_column} and timestamp (one row an "
            "interaction), train_items (one row a user), or two columns of item ids and an optional weight (pairs)"
        )
    if len(log.items) + len(log.pairs) == 0:
        raise InputError(
            f"{name}: {log.cut} name no item of the catalog ({log.num_unknown} unknown ids); "
            "give the log of the same catalog, or a later cut"
        )
    return log


def read_held_out(source: Any, item_ids: pa.Array, *, pairs_of: str = "valid", id_column: str = "item_id") -> HeldOut:
    """每人一对考题。

    Args:
        source: 同 `read_log`；物品对没有先后，不能当考题。
        item_ids: (N,) 物品表的编号。
        pairs_of: "valid" 是倒数第三步到倒数第二步，"test" 是倒数第二步到最后一步；一行一个用户时是（train_items 的最后
            一个，valid_item）与（valid_item, test_item）。挑做法只看 valid。
        id_column: 一行一次行为时的物品编号列。

    Raises:
        ValueError: pairs_of 不认识、列不齐、有空值，或没有一对两个不同的物品都在物品表里。
    """
    if pairs_of not in PAIRS_OF:
        raise InputError(f"pairs_of={pairs_of!r} is unknown; use {' or '.join(PAIRS_OF)}")
    table, name = open_table(source)
    columns = set(table.column_names)
    if set(PAIRS_OF[pairs_of]) <= columns:
        population = (
            "pairs (last of train_items, valid_item)" if pairs_of == "valid" else "pairs (valid_item, test_item)"
        )
        left, right = _sides_of_lists(table, pairs_of, name)
        num_users = table.num_rows
    elif {"user_id", id_column} <= columns:
        owners, ids, _ = sort_rows(table, name, id_column, Cut())
        steps = "third last, second last" if pairs_of == "valid" else "second last, last"
        population = f"pairs ({steps}) of every user"
        left, right = _sides_of_rows(owners, ids, 1 if pairs_of == "test" else 2)
        num_users = len(np.unique(owners))
    else:
        raise InputError(
            f"{name} has no {pairs_of} pairs: give {' and '.join(PAIRS_OF[pairs_of])} (one row a user), or user_id, "
            f"{id_column} and timestamp (one row an interaction); columns present: {', '.join(table.column_names)}"
        )
    both = np.stack([places_of(side, item_ids, name) for side in (left, right)], axis=1)
    pairs = both[(both >= 0).all(axis=1) & (both[:, 0] != both[:, 1])]
    num_unknown = int((both < 0).sum())
    if len(pairs) == 0:
        raise InputError(
            f"{name}: {population} hold no two different items of the catalog ({num_unknown} of {both.size} ids are "
            "unknown); give the log of the same catalog"
        )
    return HeldOut(pairs[np.lexsort([pairs[:, 1], pairs[:, 0]])], population, num_users, num_unknown)


def _sides_of_lists(table: pa.Table, pairs_of: str, name: str) -> Tuple[pa.Array, pa.Array]:
    """train_items 为空的人没有 valid 的考题。"""
    if pairs_of == "test":
        return column_of(table, "valid_item", name), column_of(table, "test_item", name)
    owners, flat = flatten_lists(table, "train_items", name)
    ends = np.flatnonzero(np.diff(owners, append=-1))
    return flat.take(pa.array(ends)), column_of(table, "valid_item", name).take(pa.array(owners[ends]))


def _sides_of_rows(owners: np.ndarray, ids: pa.Array, back: int) -> Tuple[pa.Array, pa.Array]:
    """每人倒数第 back 步：从倒数第 back + 1 个到倒数第 back 个。"""
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    right = np.append(starts[1:], len(owners)) - back
    right = pa.array(right[right > starts])
    return ids.take(pc.subtract(right, 1)), ids.take(right)


def _pairs(table: pa.Table, name: str, item_ids: pa.Array) -> Log:
    """两列编号与可选的 weight。"""
    sides = [one for one in table.column_names if table.num_columns == 2 or one != "weight"]
    rows = np.stack([places_of(column_of(table, side, name), item_ids, name) for side in sides], axis=1)
    return log_of_pairs(rows, weights_of(table, name), name_keys(item_ids.to_pylist()), len(item_ids))


def _steps(owners: np.ndarray, ids: pa.Array, item_ids: pa.Array, name: str, cap: int) -> Log:
    rows = places_of(ids, item_ids, name)
    return log_of_steps(rows, owners, name_keys(item_ids.to_pylist()), cap, len(item_ids))


def _refuse(cut: Cut, name: str, why: str) -> None:
    """切不了的形状不装作切过。"""
    if cut.until is not None or cut.leave_last is not None:
        raise InputError(f"{name} cannot be cut: {why}; give rows of user_id, item_id and timestamp, or no cut")
