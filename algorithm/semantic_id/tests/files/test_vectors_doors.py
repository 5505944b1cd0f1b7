"""特征来源的门：每个错误都点出字段、值、行与出路。"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.files.vectors import check_unique_ids, open_vectors
from algorithm.semantic_id.tests.files.test_vectors import IDS, D, X, drain, lists, table


@pytest.mark.parametrize(
    ("features", "kind", "text"),
    [
        (np.zeros(4, np.float32), ValueError, r"shape \(N, D\), got \(4,\)"),
        (np.zeros((2, 3, 4), np.float32), ValueError, r"got \(2, 3, 4\)"),
        (np.zeros((0, 4), np.float32), ValueError, r"empty: shape \(0, 4\)"),
        (np.zeros((4, 0), np.float32), ValueError, "empty"),
        (np.zeros((2, 4), np.int64), TypeError, "real floating dtype, got int64"),
        (np.zeros((2, 4), np.complex64), TypeError, "got complex64"),
        (np.zeros((2, 4), bool), TypeError, "got bool"),
        (np.array([["a", None]], object), TypeError, "got object"),
        (np.ma.masked_less(X, 0), TypeError, "masked array"),
        ([[1.0, 2.0]], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_doors_of_arrays(features, kind, text):
    with pytest.raises(kind, match=text):
        open_vectors(features)


def test_doors_of_tensors():
    import torch

    with pytest.raises(TypeError, match=r"got torch\.int64; convert with \.float\(\)"):
        open_vectors(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"got torch\.complex64"):
        open_vectors(torch.zeros(2, 4, dtype=torch.complex64))
    with pytest.raises(TypeError, match="dense tensor"):
        open_vectors(torch.zeros(2, 4).to_sparse())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e16, -1e300])
def test_bad_values_name_their_row_and_show_the_original(bad):
    x = X.astype(np.float64)
    x[16, 2] = bad
    blocks = open_vectors(x).blocks(5)
    assert [next(blocks).start for _ in range(3)] == [0, 5, 10]  # 坏行之前的块照常给出
    bound = "absolute values must be <= 1e\\+15" if np.isfinite(bad) else "values must be finite"
    with pytest.raises(ValueError, match=rf"row 16 has {re.escape(str(bad))} at column 2; {bound}"):
        next(blocks)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_infinity_is_caught_in_every_width(dtype):
    # float16 里 1e15 本身就是 inf，直接比较会放行
    x = np.zeros((3, 2), dtype)
    x[1, 1] = np.inf
    with pytest.raises(ValueError, match="row 1 has inf"):
        list(open_vectors(x).blocks())


def test_largest_allowed_value_passes():
    x = np.full((2, 2), 1e15)
    assert drain(open_vectors(x))[0].max() == np.float32(1e15)


def test_bad_value_in_parquet_names_the_item(tmp_path):
    x = X.copy()
    x[17, 3] = np.nan
    pq.write_table(table(x[:10], IDS[:10]), tmp_path / "a.parquet")
    pq.write_table(table(x[10:], IDS[10:]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"row 17 \(item_id 'item-17'\) has nan at column 3"):
        drain(open_vectors(tmp_path))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([[1, 2], [3], [4, 5]], r"row 1 \(item_id 'i1'\) has a vector of length 1, but the first row has 2"),
        ([[1, 2], None], r"row 1 \(item_id 'i1'\) has a null vector"),
        ([None, [1, 2]], r"row 0 \(item_id 'i0'\) has a null vector"),
        ([[1, 2], [3, None]], r"row 1 \(item_id 'i1'\) has a null at column 1"),
        ([[], []], "width 0"),
    ],
)
def test_broken_vectors(rows, text, tmp_path):
    pq.write_table(lists(rows), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=text):
        drain(open_vectors(tmp_path / "x.parquet"))


def test_null_in_a_fixed_size_list(tmp_path):
    column = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"item_id": [1, 2, 3], "embedding": column}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"row 1 \(item_id 2\) has a null vector"):
        drain(open_vectors(tmp_path / "x.parquet"))


def test_null_id(tmp_path):
    pq.write_table(lists([[1.0], [2.0], [3.0]], ["a", "b", None]), tmp_path / "x.parquet")
    for read in (drain, check_unique_ids):
        with pytest.raises(ValueError, match="'item_id' is null at row 2"):
            read(open_vectors(tmp_path / "x.parquet"))


@pytest.mark.parametrize("ids", [["a", "b", "c", "b", "a"], [5, 6, 7, 6, 5], [b"a", b"b", b"c", b"b", b"a"]])
def test_duplicate_ids_across_files(ids, tmp_path):
    pq.write_table(lists([[1.0]] * 2, ids[:2]), tmp_path / "a.parquet")
    pq.write_table(lists([[1.0]] * 3, ids[2:]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=f"item_id {re.escape(repr(ids[0]))} appears more than once: rows 0 and 4"):
        check_unique_ids(open_vectors(tmp_path))


def test_unique_ids_pass():
    check_unique_ids(open_vectors(X))


def make(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, path)
    return path


def npy_header(shape):
    """一个 float32 的 .npy，头里写着 shape。"""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header + bytes(400)


@pytest.mark.parametrize(
    ("name", "content", "kind", "text"),
    [
        ("x.csv", b"1,2", ValueError, "unknown extension '.csv'; use .npy"),
        ("x.npy", b"no numpy here", ValueError, "not a readable .npy file"),
        ("x.npy", b"", ValueError, "not a readable .npy file"),
        ("x.npy", npy_header("(3, True)"), ValueError, r"shape \(3, True\) must hold plain ints"),
        ("x.parquet", b"no parquet here", ValueError, "not a readable Parquet file"),
        ("x.parquet", b"", ValueError, "not a readable Parquet file"),
        ("x.parquet", pa.table({"a": [1], "b": [2]}), ValueError, r"no column 'item_id'.*present: a, b"),
        ("x.parquet", table().drop_columns("embedding"), ValueError, r"no column 'embedding'.*--vector-column"),
        ("x.parquet", table().slice(0, 0), ValueError, "is empty: 0 rows"),
        ("x.parquet", pa.table({"item_id": [1.5], "embedding": [[1.0]]}), TypeError, "type double; item ids must be"),
        ("x.parquet", pa.table({"item_id": [1], "embedding": [[1]]}), TypeError, "float16, float32 or float64"),
        ("x.parquet", pa.table({"item_id": [1], "embedding": [1.0]}), TypeError, "type double"),
    ],
)
def test_doors_of_files(name, content, kind, text, tmp_path):
    with pytest.raises(kind, match=text) as caught:
        open_vectors(make(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_missing_path_empty_folder_and_disagreeing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.npy' does not exist"):
        open_vectors(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match=r"holds no \.parquet file"):
        open_vectors(tmp_path)
    pq.write_table(table(), tmp_path / "a.parquet")
    pq.write_table(table(np.zeros((2, D + 1)), ["x", "y"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet has column types .*\[5\].* but a.parquet has"):
        open_vectors(tmp_path)


def test_npy_that_needs_pickle_is_refused_without_running_it(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[print, 1]], object), allow_pickle=True)
    with pytest.raises(TypeError, match="needs pickle"):
        open_vectors(tmp_path / "x.npy")


def test_npy_cut_short_before_or_during_reading(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    whole = path.read_bytes()
    source = open_vectors(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="cut short: 491 bytes, but its header promises 496"):
        open_vectors(path)
    with pytest.raises(ValueError, match="became shorter while being read"):
        drain(source)


def test_parquet_with_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(table(), path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index(X[11].tobytes()) + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.parquet is damaged near row 0") as caught:
        drain(open_vectors(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_block_rows_door(value, kind, tmp_path):
    pq.write_table(table(), tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", X)
    for features in (X, tmp_path / "x.npy", tmp_path / "x.parquet"):
        with pytest.raises(kind, match="block_rows"):
            next(open_vectors(features).blocks(value))
