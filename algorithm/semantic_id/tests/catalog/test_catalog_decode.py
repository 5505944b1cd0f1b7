"""解码编码文件：三种容器同一结果，被拒绝时什么也不留下。"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.catalog import Catalog, CatalogError, decode_codes_file, encode_catalog, table
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_catalog_read import edit_manifest
from algorithm.semantic_id.tests.fake_model import FakeModel

N = 11
X = np.stack([np.arange(N) % 4, np.arange(N) % 3, np.ones(N)], axis=1).astype(np.float32)  # (N, 3)


def write(folder, **kwargs):
    return encode_catalog(FakeModel(), open_vectors(X), folder, **kwargs)


def decode(codes, output, **kwargs):
    return decode_codes_file(FakeModel(), codes, output, **kwargs)


def test_decoding_keeps_row_order_whatever_the_container(tmp_path):
    write(tmp_path / "cat", rows_per_part=4)
    rows = Catalog.open(tmp_path / "cat").read()
    codes = table.codes_of(rows)
    pq.write_table(rows.drop_columns("item_id"), tmp_path / "codes.parquet", row_group_size=3)
    np.save(tmp_path / "codes.npy", codes.astype(np.uint16))
    expected = np.concatenate([codes, np.zeros((N, 1))], axis=1).astype(np.float32)
    for i, name in enumerate(["cat", "codes.parquet", "codes.npy"]):
        summary = decode(tmp_path / name, tmp_path / "out" / f"{i}.npy", block_rows=3)
        got = np.load(tmp_path / "out" / f"{i}.npy")
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)
        assert (summary["num_items"], summary["embedding_dim"]) == (N, 3)
    assert sorted(os.listdir(tmp_path / "out")) == ["0.npy", "1.npy", "2.npy"]


def test_decode_refuses_a_catalog_of_another_model(tmp_path):
    write(tmp_path / "cat")
    edit_manifest(tmp_path / "cat", model_fingerprint="0" * 64)
    with pytest.raises(CatalogError, match=r"another model \(fingerprint 000000000000…, this one is ffffffffffff…\)"):
        decode(tmp_path / "cat", tmp_path / "x.npy")


def test_decode_output_door(tmp_path):
    np.save(tmp_path / "codes.npy", np.zeros((2, 2), np.int32))
    (tmp_path / "x.npy").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="--overwrite"):
        decode(tmp_path / "codes.npy", tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_bytes() == b"precious"
    decode(tmp_path / "codes.npy", tmp_path / "x.npy", overwrite=True)
    assert np.load(tmp_path / "x.npy").shape == (2, 3)
    with pytest.raises(ValueError, match=r"must end in \.npy"):
        decode(tmp_path / "codes.npy", tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "content", "kind", "text"),
    [
        ("c.npy", np.array([[0, 0], [0, 1], [4, 0]]), CatalogError, r"codes row 2 has L1 code 4.*\[0, 4\)"),
        ("c.npy", np.array([[0, 0], [0, -1], [0, 0]]), CatalogError, "codes row 1 has L2 code -1"),
        ("c.npy", np.zeros((2, 3), int), ValueError, "has 3 columns, but the model has 2 levels"),
        ("c.npy", np.zeros((2, 2)), TypeError, "integer dtype, got float64"),
        ("c.npy", np.zeros(2, int), ValueError, r"shape \(N, D\)"),
        ("c.parquet", pa.table({"l1": [0]}), ValueError, r"no column 'l2'.*columns present: l1"),
        ("c.parquet", pa.table({"l1": [0], "l2": [0], "l3": [0]}), ValueError, "extra column 'l3'"),
        ("c.parquet", pa.table({"l1": [0.5], "l2": [0.0]}), TypeError, "type double; codes must be integers"),
        ("c.parquet", pa.table({"l1": [0, 1], "l2": pa.array([0, None])}), ValueError, "'l2' is null at row 1"),
        ("c.parquet", b"junk", ValueError, "not a readable Parquet file"),
        ("c.csv", b"1,2", ValueError, "unknown extension '.csv'"),
    ],
)
def test_decode_doors(name, content, kind, text, tmp_path):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    with pytest.raises(kind, match=text):
        decode(path, tmp_path / "out.npy", block_rows=1)
    assert os.listdir(tmp_path) == [name]  # 什么也没留下
    with pytest.raises(FileNotFoundError, match="does not exist"):
        decode(tmp_path / "nowhere", tmp_path / "out.npy")
