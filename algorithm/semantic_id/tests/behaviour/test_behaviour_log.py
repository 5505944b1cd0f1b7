"""日志的读者：三种形状、切在哪里、次序不算数、坏数据在门口。"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.behaviour.log import Log
from algorithm.semantic_id.behaviour.reader import Cut, read_held_out, read_log

ITEMS = pa.array([10, 20, 30, 40])  # 行号 0…3


def rows(users: List[Any], items: List[Any], times: List[Any]) -> pa.Table:
    return pa.table({"user_id": users, "item_id": items, "timestamp": times})


def sequences(log: Log) -> List[List[int]]:
    """各人的串，排成能比较的次序。"""
    return sorted(log.items[a:b].tolist() for a, b in zip(log.starts[:-1], log.starts[1:], strict=True))


def test_rows_are_sorted_by_time_and_ties_go_to_the_lower_item() -> None:
    table = rows([7, 7, 7, 5, 5], [30, 20, 10, 40, 10], [3, 1, 3, 2, 1])
    log = read_log(table, ITEMS)
    assert sequences(log) == [[0, 3], [1, 0, 2]]  # 用户 5：10、40；用户 7：20，然后 10 与 30 同时，小的在前
    assert (log.num_users, log.num_unknown, log.num_capped, log.cut) == (2, 0, 0, "all rows")


@pytest.mark.parametrize("kind", ["rows", "lists", "pairs"])
def test_order_of_the_rows_changes_no_byte(kind: str) -> None:
    rng = np.random.default_rng(3)
    items = rng.integers(1, 5, 60) * 10
    tables: Dict[str, pa.Table] = {
        "rows": rows(rng.integers(0, 9, 60).tolist(), items.tolist(), rng.integers(0, 4, 60).tolist()),
        "lists": pa.table({"train_items": items.reshape(12, 5).tolist()}),
        "pairs": pa.table({"a": items[:30], "b": items[30:], "weight": rng.random(30)}),
    }
    table = tables[kind]
    first = read_log(table, ITEMS)
    second = read_log(table.take(pa.array(rng.permutation(table.num_rows))), ITEMS)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_names_of_the_users_and_order_of_the_catalog_do_not_change_the_digest() -> None:
    table = rows(["a", "a", "b", "b"], [10, 20, 30, 10], [1, 2, 1, 2])
    renamed = rows(["z", "z", "b", "b"], [10, 20, 30, 10], [1, 2, 1, 2])
    log = read_log(table, ITEMS)
    assert read_log(renamed, ITEMS).sha256 == log.sha256
    assert read_log(table, ITEMS.take(pa.array([3, 1, 0, 2]))).sha256 == log.sha256
    assert read_log(rows(["a", "a", "b", "b"], [20, 10, 30, 10], [1, 2, 1, 2]), ITEMS).sha256 != log.sha256


def test_lists_read_the_training_part_only() -> None:
    def table(held: int) -> pa.Table:
        return pa.table({"train_items": [[10, 20], [30]], "valid_item": [held, held], "test_item": [held, held]})

    log, other = read_log(table(40), ITEMS), read_log(table(10), ITEMS)
    assert sequences(log) == [[0, 1], [2]]
    assert log.cut == "train_items of every user"
    assert log.sha256 == other.sha256


def test_leave_last_takes_nothing_from_the_held_out_rows() -> None:
    users, times = [1, 1, 1, 1, 2, 2], [1, 2, 3, 4, 1, 2]
    log = read_log(rows(users, [10, 20, 30, 40, 10, 20], times), ITEMS, cut=Cut(leave_last=2))
    other = read_log(rows(users, [10, 20, 10, 20, 40, 30], times), ITEMS, cut=Cut(leave_last=2))
    assert sequences(log) == [[0, 1]]  # 用户 2 只有两次，全留作考题
    assert log.sha256 == other.sha256
    assert log.cut == "all rows without the last 2 of every user"


@pytest.mark.parametrize(
    ("times", "until"),
    [
        ([1, 2, 3], 2),
        ([1.0, 2.0, 3.5], "2"),
        ([datetime(2024, 1, day) for day in (1, 2, 3)], "2024-01-02"),
        (["2024-01-01", "2024-01-02", "2024-01-03T00:00:00"], datetime(2024, 1, 2)),
        (["2024-01-01T00:00:00Z", "2024-01-02T01:00:00+01:00", "2024-01-02T00:00:01Z"], "2024-01-02T00:00:00Z"),
    ],
)
def test_until_keeps_rows_up_to_that_time(times: List[Any], until: Any) -> None:
    log = read_log(rows([1, 1, 1], [10, 20, 30], times), ITEMS, cut=Cut(until=until))
    assert sequences(log) == [[0, 1]]
    assert log.cut == f"rows with timestamp <= {until}"


def test_unknown_items_are_counted_and_leave_their_neighbours_adjacent() -> None:
    log = read_log(rows([1, 1, 1, 1], [10, 99, 20, 98], [1, 2, 3, 4]), ITEMS)
    assert (sequences(log), log.num_unknown) == ([[0, 1]], 2)


def test_the_cap_keeps_the_most_recent() -> None:
    log = read_log(pa.table({"train_items": [[10, 20, 30, 40], [10]]}), ITEMS, max_per_user=3)
    assert (sequences(log), log.num_capped) == ([[0], [1, 2, 3]], 1)


def test_pairs_have_no_direction_and_a_weight() -> None:
    log = read_log(pa.table({"x": [20, 10, 30, 99], "y": [10, 20, 30, 10], "weight": [0.5, 2.0, 9.0, 1.0]}), ITEMS)
    assert log.pairs.tolist() == [[0, 1], [0, 1]]
    assert (log.weights.tolist(), log.num_unknown, log.num_users) == ([0.5, 2.0], 1, 0)
    assert log.counts.tolist() == [2.5, 2.5, 0.0, 0.0]
    plain = read_log(np.array([[10, 20], [20, 30]]), ITEMS)
    assert (plain.pairs.tolist(), plain.weights.tolist()) == ([[0, 1], [1, 2]], [1.0, 1.0])


def test_files_and_wider_ids_are_the_same_log(tmp_path: Path) -> None:
    table = rows([1, 1, 2, 2], [10, 20, 30, 40], [1, 2, 1, 2])
    pq.write_table(table, tmp_path / "log.parquet")
    narrow = ITEMS.cast(pa.int16())
    assert read_log(tmp_path / "log.parquet", narrow).sha256 == read_log(table, ITEMS).sha256
    np.save(tmp_path / "pairs.npy", np.array([[10, 20]]))
    assert read_log(tmp_path / "pairs.npy", ITEMS).pairs.tolist() == [[0, 1]]
    names = pa.array(["a", "b"])
    shelf = pa.table({"train_items": pa.array([["b", "a"]], pa.list_(pa.large_string()))})
    assert sequences(read_log(shelf, names)) == [[1, 0]]


@pytest.mark.parametrize(
    ("table", "error", "text"),
    [
        (rows([], [], []), ValueError, "interactions is empty"),
        (rows([1, None], [10, 20], [1, 2]), ValueError, "'user_id' has 1 nulls, the first in row 1"),
        (rows([1, 1], [None, 20], [1, 2]), ValueError, "'item_id' has 1 nulls, the first in row 0"),
        (rows([1, 1], [10, 20], [1, None]), ValueError, "'timestamp' has 1 nulls"),
        (rows([1, 1], [10, 20], ["2024-01-01", "yesterday"]), ValueError, "row 1 has timestamp 'yesterday'"),
        (rows([1, 1], [10, 20], [1.0, float("nan")]), ValueError, "row 1 has timestamp nan"),
        (rows([1, 1], [10, 20], [True, False]), TypeError, "'timestamp' has type bool"),
        (rows([1.5, 1.5], [10, 20], [1, 2]), TypeError, "user ids must be integers or strings"),
        (rows([1, 1], ["10", "20"], [1, 2]), TypeError, "the catalog has int64"),
        (rows([1, 1], [[10.0], [20.0]], [1, 2]), TypeError, "give one item id a row"),
        (rows([1, 1], [98, 99], [1, 2]), ValueError, "name no item of the catalog \\(2 unknown ids\\)"),
        (pa.table({"user_id": [1], "item_id": [10]}), ValueError, "no timestamp"),
        (pa.table({"train_items": [[10, None]]}), ValueError, "'train_items' has 1 nulls"),
        (pa.table({"train_items": [10]}), TypeError, "a list of item ids is needed"),
        (pa.table({"a": [10], "b": [20], "weight": [0.0]}), ValueError, "row 0 has weight 0.0"),
        (pa.table({"a": [10], "b": [20], "weight": ["x"]}), TypeError, "weights must be numbers"),
        (pa.table({"a": [10], "b": [20], "c": [1]}), ValueError, "columns a, b, c"),
        (np.zeros((3, 3), dtype=np.int64), ValueError, "shape \\(P, 2\\)"),
        (np.zeros((3, 2)), TypeError, "got float64"),
    ],
)
def test_a_bad_log_is_named_at_the_door(table: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read_log(table, ITEMS)


@pytest.mark.parametrize(
    ("table", "cut", "text"),
    [
        (rows([1, 1], [10, 20], [5, 6]), Cut(until=4), "no row with timestamp <= 4"),
        (rows([1, 1], [10, 20], [5, 6]), Cut(until="May"), "until='May' is no time of interactions"),
        (rows([1, 1], [10, 20], [datetime(2024, 1, 1)] * 2), Cut(until=7), "until=7 is no time"),
        (rows([1, 1], [10, 20], [5, 6]), Cut(leave_last=2), "name no item of the catalog"),
        (rows([1, 1], [10, 20], [5, 6]), Cut(leave_last=0), "leave_last=0 is out of range"),
        (pa.table({"train_items": [[10, 20]]}), Cut(leave_last=1), "train_items is already the part before"),
        (pa.table({"a": [10], "b": [20]}), Cut(until=4), "pairs have no time"),
    ],
)
def test_a_cut_that_cannot_be_made_is_an_error(table: pa.Table, cut: Cut, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_log(table, ITEMS, cut=cut)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_log(tmp_path / "none.parquet", ITEMS)
    (tmp_path / "log.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"log\.parquet is not a readable Parquet"):
        read_log(tmp_path / "log.parquet", ITEMS)
    (tmp_path / "log.csv").write_text("a,b")
    with pytest.raises(ValueError, match="unknown extension"):
        read_log(tmp_path / "log.csv", ITEMS)


def test_held_out_pairs_of_lists() -> None:
    table = pa.table(
        {"train_items": [[40, 10], [20], [], [30]], "valid_item": [20, 99, 10, 30], "test_item": [30, 10, 10, 10]}
    )
    valid = read_held_out(table, ITEMS)
    assert valid.pairs.tolist() == [[0, 1]]  # 第二人的考题不在物品表里，第三人没有过去，第四人的是同一个物品
    assert (valid.num_users, valid.num_unknown) == (4, 1)
    assert valid.population == "pairs (last of train_items, valid_item)"
    test = read_held_out(table, ITEMS, pairs_of="test")
    assert test.pairs.tolist() == [[1, 2], [2, 0]]
    assert test.population == "pairs (valid_item, test_item)"


def test_held_out_pairs_of_rows_are_what_leave_last_leaves_out() -> None:
    table = rows([1, 2, 1, 1, 1, 2], [40, 10, 10, 20, 30, 20], [4, 1, 1, 2, 3, 2])
    assert read_held_out(table, ITEMS).pairs.tolist() == [[1, 2]]  # 用户 1：10 20 30 40；用户 2 不够三个
    assert read_held_out(table, ITEMS, pairs_of="test").pairs.tolist() == [[0, 1], [2, 3]]
    assert read_held_out(table, ITEMS).population == "pairs (third last, second last) of every user"
    assert sequences(read_log(table, ITEMS, cut=Cut(leave_last=2))) == [[0, 1]]


@pytest.mark.parametrize(
    ("table", "pairs_of", "text"),
    [
        (rows([1], [10], [1]), "all", "pairs_of='all' is unknown"),
        (rows([1, 1], [10, 20], [1, 2]), "valid", "hold no two different items of the catalog \\(0 of 0"),
        (pa.table({"train_items": [[10]], "valid_item": [20]}), "test", "has no test pairs"),
        (pa.table({"train_items": [[10]], "valid_item": pa.array([None], pa.int64())}), "valid", "has 1 nulls"),
        (pa.table({"a": [10], "b": [20]}), "valid", "has no valid pairs"),
    ],
)
def test_held_out_pairs_that_are_not_there(table: pa.Table, pairs_of: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_held_out(table, ITEMS, pairs_of=pairs_of)
