"""搬到另一个模型上：同一个模型什么也不变；换了模型，编码没变的不动，退役的 ID 接着休息。"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.catalog import Catalog, encode_catalog
from algorithm.semantic_id.catalog.changes.carry import carry_over, survey, write_moves
from algorithm.semantic_id.catalog.changes.retired import read_retired
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.tests.catalog.test_catalog import digest
from algorithm.semantic_id.tests.catalog.test_update import MODEL, SPOT, ids_of, source_of
from algorithm.semantic_id.tests.fake_model import FakeModel


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Moved(FakeModel):
    """换了的模型：第三维大于 20 的物品，第三层的编号大一。"""

    def __init__(self):
        super().__init__((2, 2, 32), 3)

    def fingerprint(self):
        return "a" * 64

    def encode_codes(self, features):
        codes = super().encode_codes(features)
        codes[:, 2] += (features[:, 2] > 20).long()
        return codes


def world(count=60):
    rng = np.random.default_rng(5)
    return {f"i{k:03d}": [float(k % 2), float(k % 3 == 0), float(v)] for k, v in enumerate(rng.integers(0, 30, count))}


def start(folder, vectors, unique):
    encode_catalog(MODEL, source_of(folder, vectors), folder / "cat", unique=unique, rows_per_part=16)


def migrate(folder, model, vectors):
    before, source = Catalog.open(folder / "cat"), source_of(folder, vectors)
    seen = survey(model, before, source, 7)
    (folder / "out").mkdir()
    carry_over(model, before, source, folder / "out" / "cat", seen, seen.new, block_rows=7)
    assert sorted(os.listdir(folder / "out")) == ["cat"]
    after = Catalog.open(folder / "out" / "cat")
    after.verify()
    return before, after


@pytest.mark.parametrize("unique", ["none", "suffix", "nearest-free"])
def test_migrating_to_the_same_model_changes_nothing(unique, tmp_path):
    items = world()
    start(tmp_path, items, unique)
    gone = list(items)[::7]
    update_catalog(MODEL, tmp_path / "cat", source_of(tmp_path, {"late": SPOT}), retire=pa.array(gone))
    kept = {item: items.get(item, SPOT) for item in [*items, "late"] if item not in gone}
    before, after = migrate(tmp_path, MODEL, dict(reversed(kept.items())))
    assert {name: value for name, value in digest(before.folder).items() if name in digest(after.folder)} == digest(
        after.folder
    )
    assert (after.fingerprint, after.generation) == (before.fingerprint, before.generation)
    assert ids_of(tmp_path) == ids_of(tmp_path / "out")


@pytest.mark.parametrize("unique", ["suffix", "nearest-free"])
def test_what_comes_and_goes_on_the_same_model(unique, tmp_path):
    items = world()
    start(tmp_path, items, unique)
    was = ids_of(tmp_path)
    update_catalog(MODEL, tmp_path / "cat", None, retire=pa.array(["i000", "i007"]))
    # i007 回来，i001 不再有，三个新的
    now = {item: x for item, x in items.items() if item not in ("i000", "i001")} | {f"n{k}": SPOT for k in range(3)}
    _, after = migrate(tmp_path, MODEL, now)
    ids = ids_of(tmp_path / "out")
    assert set(ids) == set(now)
    assert all(ids[item] == was[item] for item in now if item in was)
    assert not {ids[f"n{k}"] for k in range(3)} & set(was.values())  # i000、i001 的 ID 在休息
    assert sorted(read_retired(after).items.to_pylist()) == ["i000", "i001"]


@pytest.mark.parametrize("unique", ["suffix", "nearest-free"])
def test_another_model_moves_only_what_it_must_and_retired_ids_keep_their_rest(unique, tmp_path):
    items = world()
    start(tmp_path, items, unique)
    was = ids_of(tmp_path)
    gone = [f"i{k:03d}" for k in range(0, 60, 5)]
    update_catalog(MODEL, tmp_path / "cat", None, retire=pa.array(gone))
    live = ids_of(tmp_path)
    before, after = migrate(tmp_path, Moved(), items)  # 退役的也在新特征里
    ids = ids_of(tmp_path / "out")
    assert set(ids) == set(items)
    assert len(set(ids.values())) == len(items)
    stable = [item for item in live if items[item][2] <= 20 and was[item][:3] == tuple(map(int, items[item]))]
    assert len(stable) > 20
    assert all(ids[item] == was[item] for item in stable)
    for item in gone:  # 休息着的 ID 只可能是原主的
        assert [other for other, own in ids.items() if own == was[item]] in ([], [item])
        if items[item][2] <= 20 and was[item][:3] == tuple(map(int, items[item])):
            assert ids[item] == was[item]
    assert (after.generation, after.fingerprint) == (before.generation + 1, "a" * 64)
    assert after.manifest["reference"] != before.manifest["reference"]
    assert after.manifest["history"][-1]["migrated_from"] == before.fingerprint
    moves = write_moves(before, after, tmp_path / "moves.parquet")
    table = pq.read_table(tmp_path / "moves.parquet")
    assert moves["num_changed"] == sum(ids[item] != live[item] for item in live) == sum(table["changed"].to_pylist())
    # 搬过去的表照常更新，退役的年限接着算
    update_catalog(Moved(), after.folder, source_of(tmp_path, {"late": SPOT}), reuse_after=1)
    assert ids_of(tmp_path / "out").keys() == {*items, "late"}


def test_nothing_in_common(tmp_path):
    start(tmp_path, world(9), "suffix")
    was = ids_of(tmp_path)
    _, after = migrate(tmp_path, Moved(), {"x": SPOT, "y": SPOT})
    ids = ids_of(tmp_path / "out")
    assert set(ids) == {"x", "y"}
    assert not set(ids.values()) & set(was.values())
    assert len(read_retired(after).items) == 9
