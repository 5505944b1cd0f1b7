"""特征来源：每种输入得到同样的块；每扇门的错误都点出字段、值、行与出路。"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.files.vectors import check_unique_ids, open_vectors

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
    (tmp_path / ".a.parquet.crc").write_bytes(b"crc")
    (tmp_path / "README.md").write_text("说明")
    assert drain(open_vectors(tmp_path))[1] == ["a", "b", "c", "d"]


def test_everything_in_a_folder_is_read(tmp_path):
    # 根上的、Hive 分区里的、没有扩展名的、别的扩展名的：同名也各算各的
    parts = {"part-0.parquet": "a", "dt=2026-02/part-0.parquet": "b", "dt=2026-01/000000_0": "c", "x.snappy.PQ": "d"}
    for name, item in parts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table(X[:3], [f"{item}{i}" for i in range(3)]), tmp_path / name)
    source = open_vectors(tmp_path)
    assert source.num_rows == 12
    assert [item[0] for item in drain(source)[1]][::3] == ["c", "b", "a", "d"]  # 相对路径的字典序
    assert [entry.split(":")[0] for entry in source.stamp.split(";")] == [
        "dt=2026-01/000000_0", "dt=2026-02/part-0.parquet", "part-0.parquet", "x.snappy.PQ"
    ]  # fmt: skip
    assert drain(open_vectors(tmp_path / "dt=2026-01" / "000000_0"))[1] == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("items.csv", b"a,b", "'items.csv', which cannot be read: it is no Parquet file"),
        ("b.parquet", b"", "'b.parquet', which cannot be read: it is no Parquet file"),
        ("dt=1/x.npy", b"\x93NUMPY", "'dt=1/x.npy', which cannot be read: it is no Parquet file"),
        ("_x.parquet", None, "'_x.parquet', which cannot be read: its name marks a file that another program hides"),
        ("_temporary/0/p.parquet", None, "'_temporary/0/p.parquet', which cannot be read: its name marks a file"),
        ("_delta_log/0.json", b"{}", "'_delta_log', which cannot be read: it belongs to a Delta Lake table"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name, content, reason, tmp_path):
    pq.write_table(table(X[:2], ["c", "d"]), tmp_path / "a.parquet")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        pq.write_table(table(X[:2], ["e", "f"]), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_vectors(tmp_path)


def test_a_folder_that_links_back_to_itself(tmp_path):
    pq.write_table(table(X[:2], ["c", "d"]), tmp_path / "a.parquet")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="'loop', which cannot be read: it is a link back"):
        open_vectors(tmp_path)


def test_other_column_names_and_a_source_given_twice(tmp_path):
    pq.write_table(table().rename_columns(["title", "sku", "vec"]), tmp_path / "x.parquet")
    source = open_vectors(tmp_path / "x.parquet", id_column="sku", vector_column="vec")
    assert open_vectors(source, expected_dim=D) is source
    with pytest.raises(ValueError, match=r"width 4, but the model was built with embedding_dim=5"):
        open_vectors(source, expected_dim=5)
