"""查找索引与外部排序：与字典一致、各种编号类型、多字的 ID、散列碰撞、分桶与内存排序相同。"""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id import code_keys
from algorithm.semantic_id.catalog import Catalog, CatalogError, encode_catalog
from algorithm.semantic_id.catalog.format.external_sort import key_table, keys_of, sort_rows
from algorithm.semantic_id.catalog.format.id_keys import hash_bytes, ids_to_bytes
from algorithm.semantic_id.catalog.index import blocks
from algorithm.semantic_id.code_keys import Packing, comparable
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.fake_model import FakeModel

N = 200


def build(tmp_path, ids, sizes=(5, 4, 6), unique="suffix", name="cat", **kwargs):
    rng = np.random.default_rng(0)
    x = (rng.random((len(ids), len(sizes))) * sizes).astype(np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), len(sizes))
    pq.write_table(pa.table({"item_id": ids, "embedding": rows}), tmp_path / "x.parquet")
    model = FakeModel(sizes, len(sizes))
    source = open_vectors(tmp_path / "x.parquet")
    encode_catalog(model, source, tmp_path / name, unique=unique, rows_per_part=64, **kwargs)
    return Catalog.open(tmp_path / name)


def pairs(catalog):
    table = catalog.read()
    columns = [table.column(column).to_pylist() for column in catalog.id_columns]
    return dict(zip(table.column("item_id").to_pylist(), zip(*columns, strict=True), strict=True))


ID_TYPES = {
    "int64": pa.array(np.random.default_rng(1).permutation(N) * 7 - 300),
    "uint64": pa.array((np.arange(N, dtype=np.uint64) * 2**56)[::-1].copy()),
    "int8": pa.array(np.arange(-100, 100, dtype=np.int8)),
    "string": pa.array([f"物品-{i}" if i % 3 else "x" * i for i in range(N)]),
    "large_string": pa.array([str(i) for i in range(N)], pa.large_string()),
    "binary": pa.array([bytes([0, i % 256, i // 256]) for i in range(N)]),
    "fixed": pa.array([i.to_bytes(4, "little") for i in range(N)], pa.binary(4)),
}


@pytest.mark.parametrize("kind", ID_TYPES)
@pytest.mark.parametrize("rows_in_memory", [1 << 20, 16])
def test_both_directions_agree_with_the_table(kind, rows_in_memory, tmp_path):
    ids = ID_TYPES[kind]
    catalog = build(tmp_path, ids, rows_in_memory=rows_in_memory)
    catalog.verify()
    known = pairs(catalog)
    assert len(set(known.values())) == N
    shuffled = ids.take(pa.array(np.random.default_rng(2).permutation(N)))
    found = catalog.find(shuffled)
    assert [tuple(row) for row in found.tolist()] == [known[item] for item in shuffled.to_pylist()]
    back = catalog.items_of(found)
    assert back.type == ids.type
    assert back.to_pylist() == shuffled.to_pylist()


def test_what_is_not_there_is_minus_one_or_null(tmp_path):
    catalog = build(tmp_path, pa.array([f"i{i}" for i in range(N)]))
    found = catalog.find(["i3", "nope", "", "i30", "i3x"])
    assert (found[[1, 2, 4]] == -1).all()
    assert (found[[0, 3]] >= 0).all()
    ids = np.array([found[0], [4, 3, 5, 999], [-1, 0, 0, 0], found[3]])
    assert catalog.items_of(ids).to_pylist() == ["i3", None, None, "i30"]
    assert catalog.find([]).shape == (0, 4)
    with pytest.raises(TypeError, match="item ids must be of type string"):
        catalog.find([3])
    with pytest.raises(ValueError, match=r"shape \(Q, 4\) for l1, l2, l3, suffix, got int64 \(1, 3\)"):
        catalog.items_of([[1, 2, 3]])


def test_prefixes_give_the_same_items_as_the_table(tmp_path):
    catalog = build(tmp_path, pa.array(range(N)))
    known = pairs(catalog)
    for prefix in ((), (0,), (4,), (2, 3), (2, 3, 5), (0, 0, 0, 0)):
        got = catalog.with_prefix(prefix)
        want = sorted((code, item) for item, code in known.items() if code[: len(prefix)] == prefix)
        assert got.column("item_id").to_pylist() == [item for _, item in want]
        assert list(zip(*(got.column(c).to_pylist() for c in catalog.id_columns), strict=True)) == [c for c, _ in want]
        assert catalog.count(prefix) == len(want)
        assert catalog.with_prefix(prefix, limit=2).num_rows == min(2, len(want))
    with pytest.raises(ValueError, match=r"prefix \(5,\) has l1=5; codes must be in \[0, 5\)"):
        catalog.with_prefix((5,))
    with pytest.raises(ValueError, match="has 5 codes, but an ID has 4"):
        catalog.with_prefix((0,) * 5)


@pytest.mark.parametrize("word_bits", [63, 6])
def test_many_prefixes_at_once_agree_with_one_at_a_time(word_bits, tmp_path, monkeypatch):
    monkeypatch.setattr(code_keys, "_WORD_BITS", word_bits)
    catalog = build(tmp_path, pa.array([f"i{i}" for i in range(N)]))
    for length in range(5):
        every = list(itertools.product(*(range(k) for k in (5, 4, 6, 2)[:length])))
        prefixes = np.random.default_rng(length).permutation(np.array(every, np.int64).reshape(len(every), length))
        for limit in (None, 0, 2):
            got = catalog.items_under(prefixes, limit)
            want = [catalog.with_prefix(tuple(row), limit).column("item_id").to_pylist() for row in prefixes.tolist()]
            assert got.to_pylist() == want
    assert sum(map(len, catalog.items_under(np.arange(5)[:, None]).to_pylist())) == N
    # 批量的查询里，越界的就是没有物品，不连累别人
    own = catalog.with_prefix((4, 0)).column("item_id").to_pylist()
    assert catalog.items_under([[4, 4], [4, 0], [-1, 0], [5, 0], [2**40, 0]]).to_pylist() == [[], own, [], [], []]
    assert catalog.items_under(np.zeros((0, 2), int)).to_pylist() == []
    for bad in ([[0.0]], [0], np.zeros((1, 5), int)):
        with pytest.raises(ValueError, match=r"prefixes must be integers of shape \(Q, 0\.\.4\)"):
            catalog.items_under(bad)
    with pytest.raises(ValueError, match="limit=-1"):
        catalog.items_under([[0]], -1)


def test_without_uniqueness_an_id_gives_its_smallest_item(tmp_path):
    catalog = build(tmp_path, pa.array([f"{i:03d}" for i in range(N)]), sizes=(2, 2, 2), unique="none")
    known = pairs(catalog)
    for code in set(known.values()):
        smallest = min(item for item, other in known.items() if other == code)
        assert catalog.items_of([code]).to_pylist() == [smallest]
    assert catalog.with_prefix((0,)).num_rows == sum(code[0] == 0 for code in known.values())


def test_ids_of_more_than_63_bits_take_two_words(tmp_path):
    catalog = build(tmp_path, pa.array([f"i{i}" for i in range(N)]), sizes=(2,) * 8)
    assert catalog.packing.num_words == 1
    wide = Packing([1 << 20] * 4)
    codes = np.random.default_rng(3).integers(0, 1 << 20, (500, 4))
    assert wide.num_words == 2
    np.testing.assert_array_equal(wide.unpack(wide.pack(codes)), codes)
    order = np.argsort(comparable(wide.pack(codes)), kind="stable")
    np.testing.assert_array_equal(codes[order], sorted(codes.tolist()))


def test_a_catalog_with_two_words_is_searched_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setattr(code_keys, "_WORD_BITS", 6)  # 强迫小码本也切成几个字
    catalog = build(tmp_path, pa.array([f"i{i}" for i in range(N)]))
    assert catalog.packing.num_words == 3
    known = pairs(catalog)
    found = catalog.find(list(known))
    assert [tuple(row) for row in found.tolist()] == list(known.values())
    assert catalog.items_of(found).to_pylist() == list(known)
    assert catalog.with_prefix((2, 3)).num_rows == sum(code[:2] == (2, 3) for code in known.values())


def test_equal_hashes_are_told_apart_by_their_bytes(tmp_path, monkeypatch):
    from algorithm.semantic_id.catalog.index import lookup as index

    monkeypatch.setattr(index, "hash_bytes", lambda offsets, data: np.diff(offsets) % 3)  # 只剩三个散列值
    ids = [f"{i}" * (i % 5 + 1) for i in range(N)]
    catalog = build(tmp_path, pa.array(ids))
    known = pairs(catalog)
    assert [tuple(row) for row in catalog.find(ids).tolist()] == [known[item] for item in ids]
    assert (catalog.find(["nothing"]) == -1).all()


def test_repeated_item_ids_are_refused_by_the_index_too(tmp_path, monkeypatch):
    from algorithm.semantic_id.catalog.encoding import encode

    monkeypatch.setattr(encode, "_CHECK_IDS_FIRST", 0)  # 一亿个编号的路：不先查重
    for ids in (pa.array([*range(N - 1), 5]), pa.array([*(f"i{i}" for i in range(N - 1)), "i5"])):
        with pytest.raises(ValueError, match=r"item_id ('i5'|5) appears more than once"):
            build(tmp_path, ids)
    assert not (tmp_path / "cat").exists()


def test_a_damaged_index_is_noticed(tmp_path):
    catalog = build(tmp_path, pa.array(range(N)))
    path = tmp_path / "cat" / "index-00000-keys.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    with pytest.raises(CatalogError, match=r"index-00000-keys\.npy has \d+ bytes, not"):
        Catalog.open(tmp_path / "cat").find([1])
    path.write_bytes(data[:-1] + b"\x55")
    with pytest.raises(CatalogError, match=r"keys\.npy does not match its SHA-256"):
        Catalog.open(tmp_path / "cat").verify()
    path.write_bytes(data)
    catalog.verify()


@pytest.mark.parametrize("role", ["codes", "keys", "positions", "offsets", "strings"])
def test_a_forged_index_gives_an_error_or_an_answer_but_never_a_crash(role, tmp_path, monkeypatch):
    # 连校验和也配好了的伪造：查到坏处只能是一行错误，不能让 Arrow 读到映射之外去
    monkeypatch.setattr(blocks.BlockArray, "_check", lambda self, wanted: None)
    build(tmp_path, pa.array([f"i{i}" for i in range(N)]))
    path = tmp_path / "cat" / f"index-00000-{role}.npy"
    data = path.read_bytes()
    half = 128 + (len(data) - 128) // 16 * 8  # 中间的一项
    for byte, start, stop in itertools.product((0x01, 0x7F, 0x80, 0xFF), (128, half), (half + 8, len(data))):
        path.write_bytes(data[:start] + bytes([byte]) * (stop - start) + data[stop:])
        for ask in (
            lambda catalog: catalog.find([f"i{i}" for i in range(N)]),
            lambda catalog: catalog.items_of([[2, 3, 5, 0], [0, 0, 0, 0]]),
            lambda catalog: catalog.with_prefix((2,)),
            lambda catalog: catalog.items_under([[0], [4]]),
        ):
            with contextlib.suppress(CatalogError):
                ask(Catalog.open(tmp_path / "cat"))
        alone = Catalog.open(tmp_path / "cat")
        for code in itertools.product(range(5), range(4), range(6)):  # 逐个问：坏的一项不能被别的挡住
            with contextlib.suppress(CatalogError):
                alone.items_under([code], limit=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=30))
def test_the_hash_is_a_function_of_the_bytes_alone(texts):
    together = hash_bytes(*ids_to_bytes(pa.array(texts, pa.binary())))
    for text, value in zip(texts, together, strict=True):
        assert hash_bytes(*ids_to_bytes(pa.array([text], pa.binary())))[0] == value


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**62), 2**62), st.sampled_from("abcdef")), max_size=60), st.integers(1, 20))
def test_sorting_in_buckets_is_sorting(rows, rows_in_memory):
    import tempfile
    from pathlib import Path

    table = key_table(
        np.array([key for key, _ in rows], np.int64).reshape(-1, 1), item_id=pa.array([t for _, t in rows], pa.string())
    )
    with tempfile.TemporaryDirectory() as folder:
        chunks = lambda: (table.slice(i, 7) for i in range(0, len(rows), 7))  # noqa: E731
        parts = list(sort_rows(chunks, Path(folder), tie="item_id", rows_in_memory=rows_in_memory))
        assert list(Path(folder).iterdir()) == []
    got = []
    for part in parts:
        got += zip(keys_of(part)[:, 0].tolist(), part.column("item_id").to_pylist(), strict=True)
    assert got == sorted(rows)
    if len(rows) > rows_in_memory and len({key for key, _ in rows}) > 40:
        assert len(parts) > 1
