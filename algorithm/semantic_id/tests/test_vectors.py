"""特征来源：每种输入得到同样的块；每扇门的错误都点出字段、值、行与出路。"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id import vectors
from algorithm.semantic_id.vectors import check_unique_ids, open_vectors

N, D = 23, 4
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)  # (N, D)
IDS = [f"item-{i}" for i in range(N)]


def table(x=X, ids=IDS, kind="fixed", dtype=np.float32, id_type=None):
    """一张 item_id + embedding 的表；kind 为列表的种类。"""
    x = np.asarray(x, dtype=dtype)
    values, width = pa.array(x.ravel()), x.shape[1]
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(values, width)
    else:
        maker = pa.ListArray if kind == "list" else pa.LargeListArray
        column = maker.from_arrays(np.arange(len(x) + 1) * width, values)
    return pa.table({"title": ["t"] * len(x), "item_id": pa.array(ids, id_type), "embedding": column})


def lists(rows, ids=None):
    """逐行给出的（可能坏的）变长列表。"""
    column = pa.array(rows, pa.list_(pa.float32()))
    return pa.table({"item_id": pa.array(ids or [f"i{n}" for n in range(len(rows))]), "embedding": column})


def drain(source, block_rows=7):
    """读完，并在路上核对块的约定。"""
    blocks = list(source.blocks(block_rows))
    assert [b.start for b in blocks] == list(range(0, source.num_rows, block_rows))
    for block in blocks:
        rows = min(block_rows, source.num_rows - block.start)
        assert block.vectors.shape == (rows, source.dim)
        assert block.vectors.dtype == np.float32
        assert block.vectors.flags.c_contiguous
        assert block.vectors.flags.writeable
        assert len(block.ids) == rows
    assert pa.chunked_array(list(source.id_blocks(5))).to_pylist() == [i for b in blocks for i in b.ids.to_pylist()]
    return np.concatenate([b.vectors for b in blocks]), [i for b in blocks for i in b.ids.to_pylist()]


def test_bound_is_the_one_of_the_model():
    from algorithm.semantic_id import checks

    assert vectors.MAX_ABS_FEATURE == checks.MAX_ABS_FEATURE


@pytest.mark.parametrize("kind", ["array", "float64", "float16", "view", "memmap", "tensor", "bfloat16"])
def test_arrays_and_tensors(kind, tmp_path):
    import torch

    np.save(tmp_path / "x.npy", X)
    features = {
        "array": lambda: X,
        "float64": lambda: X.astype(np.float64),
        "float16": lambda: X.astype(np.float16),
        "view": lambda: np.repeat(X, 2, axis=1)[:, ::2],
        "memmap": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
        "tensor": lambda: torch.from_numpy(X).clone().requires_grad_(),
        "bfloat16": lambda: torch.from_numpy(X).bfloat16(),
    }[kind]()
    source = open_vectors(features)
    assert (source.num_rows, source.dim, source.has_ids) == (N, D, False)
    got, ids = drain(source)
    expected = {"float16": X.astype(np.float16), "bfloat16": torch.from_numpy(X).bfloat16().float().numpy()}
    np.testing.assert_array_equal(got, expected.get(kind, X).astype(np.float32))
    assert ids == list(range(N))


def test_a_block_is_never_the_callers_memory():
    mine = X.copy()
    next(open_vectors(mine).blocks()).vectors[:] = 0
    np.testing.assert_array_equal(mine, X)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files(dtype, order, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array(X.astype(dtype), order=order))
    source = open_vectors(path)
    got, ids = drain(source)
    np.testing.assert_array_equal(got, X.astype(dtype).astype(np.float32))
    assert ids == list(range(N))
    assert pa.chunked_array(list(source.id_blocks())).type == pa.int64()
    assert str(tmp_path) not in source.description


def test_npy_format_version_2(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, X, version=(2, 0))
    np.testing.assert_array_equal(drain(open_vectors(tmp_path / "x.npy"))[0], X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
def test_parquet_columns(kind, dtype, tmp_path):
    pq.write_table(table(kind=kind, dtype=dtype), tmp_path / "x.parquet", row_group_size=5)
    got, ids = drain(open_vectors(str(tmp_path / "x.parquet"), expected_dim=D))
    np.testing.assert_array_equal(got, X.astype(dtype).astype(np.float32))
    assert ids == IDS


@pytest.mark.parametrize("id_type", [pa.int32(), pa.uint64(), pa.int64(), pa.large_string(), pa.binary(), pa.binary(2)])
def test_id_type_is_kept(id_type, tmp_path):
    integer = pa.types.is_integer(id_type)
    ids = list(range(N)) if integer else [f"{i:02d}" for i in range(N)]
    ids = ids if integer or pa.types.is_large_string(id_type) else [i.encode() for i in ids]
    pq.write_table(table(ids=ids, id_type=id_type), tmp_path / "x.parquet")
    source = open_vectors(tmp_path / "x.parquet")
    assert next(source.blocks()).ids.type == id_type
    assert drain(source)[1] == ids
    check_unique_ids(source)


def test_dictionary_ids_become_their_value_type(tmp_path):
    ids = pa.array(IDS).dictionary_encode()
    pq.write_table(table().set_column(1, "item_id", ids), tmp_path / "x.parquet", row_group_size=4)
    block = next(open_vectors(tmp_path / "x.parquet").blocks(9))
    assert block.ids.type == pa.string()
    assert block.ids.to_pylist() == IDS[:9]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 12), st.integers(1, 12))
def test_blocks_do_not_depend_on_files_or_row_groups(tmp_path_factory, lengths, row_group, block_rows):
    folder = tmp_path_factory.mktemp("parts")
    n = sum(lengths)
    x = np.arange(n * 2, dtype=np.float32).reshape(n, 2)
    start = 0
    for i, rows in enumerate(lengths):  # 空文件也允许
        part = table(x[start : start + rows].reshape(rows, 2), list(range(start, start + rows)), id_type=pa.int64())
        pq.write_table(part, folder / f"part-{i}.parquet", row_group_size=row_group)
        start += rows
    got, ids = drain(open_vectors(folder), block_rows)
    np.testing.assert_array_equal(got, x)
    assert ids == list(range(n))


def test_folder_order_is_by_name_and_ignores_markers(tmp_path):
    pq.write_table(table(X[:2], ["c", "d"]), tmp_path / "b.parquet")
    pq.write_table(table(X[2:4], ["a", "b"]), tmp_path / "a.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".x.parquet").write_text("junk")
    assert drain(open_vectors(tmp_path))[1] == ["a", "b", "c", "d"]


def test_other_column_names_and_a_source_given_twice(tmp_path):
    pq.write_table(table().rename_columns(["title", "sku", "vec"]), tmp_path / "x.parquet")
    source = open_vectors(tmp_path / "x.parquet", id_column="sku", vector_column="vec")
    assert open_vectors(source, expected_dim=D) is source
    with pytest.raises(ValueError, match=r"width 4, but the model was built with embedding_dim=5"):
        open_vectors(source, expected_dim=5)


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


@pytest.mark.parametrize(
    ("name", "content", "kind", "text"),
    [
        ("x.csv", b"1,2", ValueError, "unknown extension '.csv'; use .npy"),
        ("x.npy", b"no numpy here", ValueError, "not a readable .npy file"),
        ("x.npy", b"", ValueError, "not a readable .npy file"),
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
