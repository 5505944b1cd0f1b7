"""一代又一代：已有的不变、退役的保留、再来的拿回原来的、被杀时是旧的或新的一代、与增量的行序无关。"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.catalog import Catalog, CatalogError, encode_catalog
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_catalog import digest
from algorithm.semantic_id.tests.fake_model import FakeModel

MODEL = FakeModel((2, 2, 32), 3)
RETIRE = pa.array(["a", "c"])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def source_of(folder, vectors):
    """{item_id: 向量} → 来源，行序即字典的先后。"""
    x = np.array(list(vectors.values()), np.float32).reshape(len(vectors), 3)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)
    pq.write_table(pa.table({"item_id": list(vectors), "embedding": rows}), folder / "delta.parquet")
    return open_vectors(folder / "delta.parquet")


def start(folder, vectors, unique):
    encode_catalog(MODEL, source_of(folder, vectors), folder / "cat", unique=unique, rows_per_part=3)


def update(folder, vectors, retire=(), **kwargs):
    source = source_of(folder, vectors) if vectors else None
    ids = pa.array(list(retire), pa.string()) if retire else None
    return update_catalog(MODEL, folder / "cat", source, retire=ids, **kwargs)


def ids_of(folder):
    catalog = Catalog.open(folder / "cat")
    table = catalog.read()
    columns = [table.column(column).to_pylist() for column in catalog.id_columns]
    rows = zip(*columns, strict=True) if table.num_rows else []
    known = dict(zip(table.column("item_id").to_pylist(), rows, strict=True))
    items = list(known)
    assert [tuple(row) for row in catalog.find(pa.array(items, pa.string())).tolist()] == list(known.values())
    return known


SPOT = [0.1, 0.2, 5.0]
WORLD = {"a": SPOT, "b": SPOT, "c": SPOT, "d": [1, 1, 9], "e": [1, 0, 3]}


def test_by_hand_with_suffixes(tmp_path):
    start(tmp_path, WORLD, "suffix")
    before = ids_of(tmp_path)
    assert before == {
        "a": (0, 0, 5, 0), "b": (0, 0, 5, 1), "c": (0, 0, 5, 2), "d": (1, 1, 9, 0), "e": (1, 0, 3, 0)
    }  # fmt: skip
    # d 的向量变了，ID 不变；n、m 是新的，在同码的组里接着排
    result = update(tmp_path, {"n": SPOT, "d": [0, 0, 1], "m": SPOT, "e": [1, 0, 3]}, ["b"])
    assert {key: result[key] for key in ("generation", "num_items", "num_added", "num_kept", "num_retired")} == {
        "generation": 1, "num_items": 6, "num_added": 2, "num_kept": 2, "num_retired": 1
    }  # fmt: skip
    assert (result["num_readded"], result["num_reserved"], result["drifted_rate"]) == (0, 1, 0.5)
    after = ids_of(tmp_path)
    assert after == {
        "a": (0, 0, 5, 0), "c": (0, 0, 5, 2), "d": (1, 1, 9, 0), "e": (1, 0, 3, 0), "m": (0, 0, 5, 3), "n": (0, 0, 5, 4)
    }  # fmt: skip
    # b 的 1 号保留着；b 再来拿回 1 号
    assert update(tmp_path, {"b": [1, 1, 1], "k": SPOT})["num_readded"] == 1
    assert (ids_of(tmp_path)["b"], ids_of(tmp_path)["k"]) == ((0, 0, 5, 1), (0, 0, 5, 5))
    history = Catalog.open(tmp_path / "cat").manifest["history"]
    assert [entry["generation"] for entry in history] == [0, 1, 2]
    Catalog.open(tmp_path / "cat").verify()


def test_new_suffixes_fill_the_gaps_in_order(tmp_path):
    start(tmp_path, WORLD, "suffix")
    update(tmp_path, {}, ["b"])  # 空出 1 号
    update(tmp_path, {f"n{i}": SPOT for i in range(5)}, reuse_after=1)
    after = ids_of(tmp_path)
    assert [after[f"n{i}"][-1] for i in range(5)] == [1, 3, 4, 5, 6]


def test_reuse_after_counts_generations(tmp_path):
    start(tmp_path, WORLD, "suffix")
    update(tmp_path, {}, ["a"])  # 第 1 代退役
    update(tmp_path, {"p": SPOT}, reuse_after=2)  # 第 2 代：才过一代
    assert ids_of(tmp_path)["p"] == (0, 0, 5, 3)
    update(tmp_path, {"q": SPOT}, reuse_after=2)  # 第 3 代：满两代
    assert ids_of(tmp_path)["q"] == (0, 0, 5, 0)
    # a 的 ID 给了 q，再来只能拿新的
    assert update(tmp_path, {"a": SPOT})["num_added"] == 1
    assert ids_of(tmp_path)["a"] == (0, 0, 5, 4)


def test_a_retired_id_is_never_reused_by_default(tmp_path):
    for unique in ("suffix", "nearest-free"):
        (tmp_path / unique).mkdir()
        start(tmp_path / unique, WORLD, unique)
        before = ids_of(tmp_path / unique)
        update(tmp_path / unique, {}, ["a", "d"])
        update(tmp_path / unique, {"p": SPOT, "q": [1, 1, 9]})
        after = ids_of(tmp_path / unique)
        assert not {after["p"], after["q"]} & set(before.values())


def test_nearest_free_never_takes_a_live_or_a_reserved_code(tmp_path):
    start(tmp_path, WORLD, "nearest-free")
    before = ids_of(tmp_path)
    assert len(set(before.values())) == 5
    update(tmp_path, {}, ["b"])
    update(tmp_path, {"n": SPOT, "m": SPOT, "o": [1, 1, 20]})
    after = ids_of(tmp_path)
    assert len(set(after.values())) == 7
    assert after["o"] == (1, 1, 20)
    assert not {after["n"], after["m"]} & set(before.values())
    assert {after["n"][0], after["m"][0]} == {0}


def test_doors(tmp_path):
    start(tmp_path, WORLD, "suffix")
    before = digest(tmp_path / "cat")
    for args, error, text in (
        (({"z": SPOT}, ["nope"]), ValueError, "--retire names item_id 'nope', which is not in the catalog"),
        (({"a": SPOT}, ["a"]), ValueError, "item_id 'a' is in the features and in --retire"),
        (({}, []), ValueError, "nothing to do"),
        (({"z": [np.nan, 0, 0]}, []), ValueError, "has nan"),
    ):
        with pytest.raises(error, match=text):
            update(tmp_path, *args)
    with pytest.raises(ValueError, match="reuse_after=0"):
        update(tmp_path, {"z": SPOT}, reuse_after=0)
    with pytest.raises(TypeError, match="item ids must be of type string"):
        update_catalog(MODEL, tmp_path / "cat", open_vectors(np.ones((2, 3), np.float32)))
    other = FakeModel((2, 2, 32), 3)
    other.fingerprint = lambda: "0" * 64
    with pytest.raises(CatalogError, match=r"written by another model .*semid migrate"):
        update_catalog(other, tmp_path / "cat", source_of(tmp_path, {"z": SPOT}))
    (tmp_path / "cat" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes\.txt'"):
        update(tmp_path, {"z": SPOT})
    (tmp_path / "cat" / "notes.txt").unlink()
    assert digest(tmp_path / "cat") == before


def test_everything_may_retire_and_come_back(tmp_path):
    start(tmp_path, WORLD, "nearest-free")
    before = ids_of(tmp_path)
    update(tmp_path, {}, list(WORLD))
    catalog = Catalog.open(tmp_path / "cat")
    assert (catalog.num_items, catalog.read().num_rows, catalog.with_prefix(()).num_rows) == (0, 0, 0)
    assert (catalog.find(["a"]) == -1).all()
    update(tmp_path, WORLD)
    assert ids_of(tmp_path) == before


def test_a_reader_of_the_last_generation_can_finish(tmp_path):
    start(tmp_path, WORLD, "suffix")
    reader = Catalog.open(tmp_path / "cat")
    update(tmp_path, {"n": SPOT}, ["a", "d"])
    assert set(reader.read().column("item_id").to_pylist()) == set(WORLD)
    update(tmp_path, {"m": SPOT}, ["e"])
    assert set(reader.read().column("item_id").to_pylist()) == set(WORLD)  # 换下来的文件再留两次更新
    update(tmp_path, {"o": SPOT})
    with pytest.raises(CatalogError, match="moved on to a later generation"):
        reader.read()
    with pytest.raises(CatalogError, match="moved on to a later generation"):
        reader.find(["a"])  # 索引这时才第一次映射
    names = {entry["name"] for entry in Catalog.open(tmp_path / "cat").manifest["parts"]}
    assert "part-00000.parquet" not in names
    assert not (tmp_path / "cat" / "part-00000.parquet").exists()


@pytest.mark.parametrize("unique", ["suffix", "nearest-free", "none"])
def test_the_order_of_a_delta_does_not_matter(unique, tmp_path):
    delta = {f"n{i}": [0.1 * (i % 3), 0.2, 5 + i % 4] for i in range(12)} | {"a": SPOT}
    results = []
    for name, items in (("x", list(delta)), ("y", list(delta)[::-1])):
        (tmp_path / name).mkdir()
        start(tmp_path / name, WORLD, unique)
        update(tmp_path / name, {item: delta[item] for item in items}, ["b"], block_rows=5 if name == "y" else 100)
        results.append(ids_of(tmp_path / name))
    assert results[0] == results[1]


# ---- 随机的加入与退役 ----

ITEMS = [f"i{k}" for k in range(9)]
STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(ITEMS), st.tuples(st.integers(0, 1), st.just(0), st.integers(0, 1))),
        st.sets(st.sampled_from(ITEMS)),
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["suffix", "nearest-free"]), st.sampled_from([None, 1, 2]), STEPS)
def test_any_sequence_of_adding_and_retiring_keeps_the_promises(unique, reuse_after, steps):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(folder, {"first": [0, 0, 1], "i0": [0, 0, 1]}, unique)
        live, buried = ids_of(folder), {}  # 退役的：编号 → (ID, 哪一代)
        for delta, wanted in steps:
            generation = Catalog.open(folder / "cat").generation + 1
            retire = sorted(item for item in wanted if item in live and item not in delta)
            if not delta and not retire:
                continue
            update(folder, {item: [*x[:2], x[2] + 0.1] for item, x in delta.items()}, retire, reuse_after=reuse_after)
            now = ids_of(folder)
            assert set(now) == (set(live) - set(retire)) | set(delta)
            assert len(set(now.values())) == len(now)
            for item, code in live.items():
                assert item in retire or now[item] == code
            for item, (code, since) in list(buried.items()):
                owners = [other for other, own in now.items() if own == code]
                if item in now:
                    assert now[item] == code
                    del buried[item]
                elif owners:
                    assert reuse_after is not None
                    assert generation - since >= reuse_after
                    del buried[item]
            buried |= {item: (live[item], generation) for item in retire}
            live = now


# ---- 被杀 ----

KILLED = """
import os, signal, sys
import pyarrow as pa
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.tests.fake_model import FakeModel
from algorithm.semantic_id.files.vectors import open_vectors
os.fsync = lambda descriptor: None

def run(folder, moment):
    left = [moment]
    def guarded(a, b, real=os.replace):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        real(a, b)
    os.replace = guarded
    update_catalog(
        FakeModel((2, 2, 32), 3), folder, open_vectors(sys.argv[1]), retire=pa.array(["a", "c"]), rows_per_part=2
    )

for moment, folder in enumerate(sys.argv[2:]):
    child = os.fork()
    if child == 0:
        run(folder, moment)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_at_any_moment_readers_see_the_old_generation_or_the_new(tmp_path):
    rooms = [tmp_path / f"r{i}" for i in range(16)]
    for room in rooms:
        room.mkdir()
        start(room, WORLD, "nearest-free")
    delta = source_of(tmp_path, {"n": SPOT, "m": SPOT, "b": SPOT})
    update_catalog(MODEL, rooms[-1] / "cat", delta, retire=RETIRE, rows_per_part=2)
    old, new = ids_of(rooms[0]), ids_of(rooms[-1])
    whole = digest(rooms[-1] / "cat")
    folders = [str(room / "cat") for room in rooms[:-1]]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "delta.parquet"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = done.stdout.split()
    survived = codes.index("0")
    assert survived >= 8, done.stderr
    for i, room in enumerate(rooms[:-1]):
        assert ids_of(room) == (old if i < survived else new)
        if i < survived:  # 重跑：结果与没被杀过逐字节相同，残骸也没了
            update_catalog(MODEL, room / "cat", delta, retire=RETIRE, rows_per_part=2)
        assert digest(room / "cat") == whole
