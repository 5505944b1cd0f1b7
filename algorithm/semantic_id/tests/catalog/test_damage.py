"""翻转任何文件的任何一个比特：要么是点得出文件名的一种错误，要么答案与原来一样，绝没有悄悄的错误答案。"""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.catalog import Catalog, CatalogError, encode_catalog
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.catalog.index import blocks
from algorithm.semantic_id.decoding import PrefixTrie
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_update import MODEL, SPOT, source_of

ROUNDS = 14  # 每个文件翻几处；文件头与末尾总在其中


def answers(folder):
    """各种问法的答案；每种从头打开，免得一处的错误挡住另一处。"""
    items = [f"i{k}" for k in range(0, 90, 7)] + ["nope"]

    def ask(name, question):
        try:
            return name, question(Catalog.open(folder))
        except CatalogError as error:
            text = str(error)
            assert any(file in text for file in os.listdir(folder)), text  # 点名
            return name, None

    questions = {
        "find": lambda catalog: catalog.find(items).tolist(),
        "items_of": lambda catalog: catalog.items_of([[0, 0, 5, 0], [1, 1, 9, 0], [1, 0, 3, 0]]).to_pylist(),
        "items_under": lambda catalog: catalog.items_under([[0, 0], [1, 1]], limit=5).to_pylist(),
        "with_prefix": lambda catalog: catalog.with_prefix((1,), 9).to_pylist(),
        "count": lambda catalog: catalog.count((0, 0)),
        "read": lambda catalog: catalog.read().to_pylist(),
        "trie": lambda catalog: PrefixTrie.build(catalog).num_items,
    }
    return dict(ask(name, question) for name, question in questions.items())


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    real = os.fsync
    os.fsync = lambda descriptor: None
    try:
        items = {f"i{k}": [k % 2, k % 3 == 0, k % 11] for k in range(90)}
        encode_catalog(MODEL, source_of(folder, items), folder / "cat", unique="suffix", rows_per_part=40)
        update_catalog(MODEL, folder / "cat", source_of(folder, {"late": SPOT}), retire=pa.array(["i1", "i80"]))
    finally:
        os.fsync = real
    kept = {entry["name"] for part in ("parts",) for entry in Catalog.open(folder / "cat").manifest[part]}
    return folder, answers(folder / "cat"), kept


def test_any_flipped_bit_in_any_file_is_noticed_or_harmless(room, tmp_path):
    folder, right, _ = room
    assert all(value is not None for value in right.values())
    rng = random.Random(20)
    noticed = 0
    for path in sorted((folder / "cat").iterdir()):
        data = path.read_bytes()
        places = {0, 7, 60, 130, len(data) // 2, len(data) - 1, *(rng.randrange(len(data)) for _ in range(ROUNDS))}
        for place in sorted(place for place in places if place < len(data)):
            room_here = tmp_path / "cat"
            shutil.copytree(folder / "cat", room_here)
            bad = bytearray(data)
            bad[place] ^= 1 << rng.randrange(8)
            (room_here / path.name).write_bytes(bad)
            got = answers(room_here)
            wrong = {name for name in right if got[name] is not None and got[name] != right[name]}
            assert not wrong, (path.name, place, wrong)
            noticed += any(value is None for value in got.values())
            shutil.rmtree(room_here)
    assert noticed > 100  # 翻转真的到了读者手里


def test_update_never_builds_on_a_damaged_catalog(room, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder, right, _ = room
    listed = [entry["name"] for part in Catalog.open(folder / "cat").manifest["parts"] for entry in [part]]
    for name in ["MANIFEST.json", listed[0], "index-00001-blocks.npy", "index-00001-keys.npy", "retired-00001.parquet"]:
        shutil.copytree(folder / "cat", tmp_path / "cat")
        data = bytearray((tmp_path / "cat" / name).read_bytes())
        data[len(data) // 2] ^= 4
        (tmp_path / "cat" / name).write_bytes(data)
        with pytest.raises(CatalogError, match=name):
            update_catalog(MODEL, tmp_path / "cat", source_of(tmp_path, {"later": SPOT}))
        shutil.rmtree(tmp_path / "cat")


def test_one_lookup_checks_a_few_blocks_not_the_whole_index(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    n = 40_000
    x = np.stack([np.arange(n) % 2, np.arange(n) % 3, np.arange(n) % 32], axis=1).astype(np.float32)
    encode_catalog(MODEL, open_vectors(x), tmp_path / "cat", unique="suffix")
    checked = []
    real = blocks.digest
    monkeypatch.setattr(blocks, "digest", lambda data: checked.append(len(data)) or real(data))
    catalog = Catalog.open(tmp_path / "cat")
    assert checked == []  # 打开只看清单
    first = catalog.find([n // 2])
    total = sum(-(-entry["bytes"] // blocks.BLOCK_BYTES) for entry in catalog.manifest["index"].values())
    assert len(checked) <= 4 + 3 < total  # 四个文件头，再加 keys、positions、codes 各一块
    catalog.find([n // 2])
    assert len(checked) <= 7  # 核对过的不再核对
    # 远处的一块坏了不妨碍这一块，查到它才报错
    path = tmp_path / "cat" / "index-00000-keys.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = Catalog.open(tmp_path / "cat")
    np.testing.assert_array_equal(again.find([n // 2]), first)
    with pytest.raises(CatalogError, match=r"index-00000-keys\.npy: the lookup index of the catalog is damaged"):
        again.find([n - 1])


def test_searching_in_blocks_is_searching(monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    rng = np.random.default_rng(0)
    for size in (1, 7, 8, 9, 100):
        keys = np.sort(rng.integers(0, 60, size))
        array = blocks.BlockArray(tmp_path / "x", keys, None)
        wanted = rng.integers(-5, 70, 200)
        for side in ("left", "right"):
            np.testing.assert_array_equal(array.search(wanted, side), np.searchsorted(keys, wanted, side))
