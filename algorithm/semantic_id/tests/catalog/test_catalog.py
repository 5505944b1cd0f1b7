"""物品表：往返、与分块无关、任何时刻被杀都不留半成品、任何改动都被发现。"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.interfaces import SemanticIDModel
from algorithm.semantic_id.catalog import Catalog, CatalogError, encode_catalog
from algorithm.semantic_id.catalog.encoding import shards
from algorithm.semantic_id.catalog.format import publish
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.fake_model import FakeModel

N = 11
X = np.stack([np.arange(N) % 4, np.arange(N) % 3, np.ones(N)], axis=1).astype(np.float32)  # (N, 3)


def write(folder, **kwargs):
    return encode_catalog(FakeModel(), open_vectors(kwargs.pop("features", X)), folder, **kwargs)


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_fake_satisfies_the_protocol():
    assert isinstance(FakeModel(), SemanticIDModel)


def test_round_trip_by_hand(tmp_path):
    summary = write(tmp_path / "cat", rows_per_part=4)
    assert (summary["num_items"], summary["num_parts"], summary["codebook_sizes"]) == (N, 3, [4, 3])
    assert sorted(os.listdir(tmp_path)) == ["cat"]
    catalog = Catalog.open(tmp_path / "cat")
    got = catalog.read()
    assert got.column("item_id").to_pylist() == list(range(N))
    assert got.column("l1").to_pylist() == [i % 4 for i in range(N)]
    assert got.column("l2").to_pylist() == [i % 3 for i in range(N)]
    assert (got.schema.field("item_id").type, got.schema.field("l1").type) == (pa.int64(), pa.int32())
    assert (catalog.num_items, catalog.codebook_sizes, catalog.fingerprint) == (N, (4, 3), "f" * 64)
    assert catalog.manifest["unique"] == "none"
    assert [part["rows"] for part in catalog.manifest["parts"]] == [4, 4, 3]


@pytest.mark.parametrize("id_type", [pa.string(), pa.int32(), pa.large_string()])
def test_id_type_survives(id_type, tmp_path):
    ids = pa.array([str(i) for i in range(N)]).cast(id_type)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    pq.write_table(pa.table({"item_id": ids, "embedding": rows}), tmp_path / "x.parquet")
    write(tmp_path / "cat", features=tmp_path / "x.parquet", rows_per_part=5)
    got = Catalog.open(tmp_path / "cat").read().column("item_id")
    assert got.type == id_type
    assert got.to_pylist() == ids.to_pylist()


def test_bytes_do_not_depend_on_block_rows(tmp_path):
    for name, rows in (("a", 1), ("b", 3), ("c", 100)):
        write(tmp_path / name, block_rows=rows, rows_per_part=4)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


def test_manifest_names_no_path_and_no_time(tmp_path):
    np.save(tmp_path / "x.npy", X)
    write(tmp_path / "cat", features=tmp_path / "x.npy")
    text = (tmp_path / "cat" / "MANIFEST.json").read_text()
    assert str(tmp_path) not in text
    assert "x.npy (11 x 3 float32)" in text


def test_progress_counts_to_the_total(tmp_path):
    seen = []
    write(tmp_path / "cat", block_rows=4, progress=lambda *pair: seen.append(pair))
    assert seen == [(4, N), (8, N), (11, N)]


def test_an_empty_folder_may_be_used_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    write(tmp_path / "deep" / "er" / "cat")
    assert digest(tmp_path / "empty") == digest(tmp_path / "deep" / "er" / "cat")


# ---- 验收 ----


def test_existing_output_needs_overwrite_and_is_replaced_whole(tmp_path):
    write(tmp_path / "cat", rows_per_part=2)
    before = digest(tmp_path / "cat")
    with pytest.raises(FileExistsError, match=r"exists; pass --overwrite"):
        write(tmp_path / "cat", features=X[:3])
    assert digest(tmp_path / "cat") == before
    write(tmp_path / "cat", features=X[:3], overwrite=True)
    assert Catalog.open(tmp_path / "cat").num_items == 3
    index = [f"index-00000-{role}.npy" for role in ("blocks", "codes", "items", "keys", "positions")]
    assert sorted(os.listdir(tmp_path / "cat")) == ["MANIFEST.json", *index, "part-00000.parquet"]
    assert os.listdir(tmp_path) == ["cat"]


def test_overwrite_never_removes_strangers_files(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"holds 'thesis\.txt'"):
        write(tmp_path / "home", overwrite=True)
    write(tmp_path / "cat")
    (tmp_path / "cat" / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes\.md'"):
        write(tmp_path / "cat", overwrite=True)
    (tmp_path / "cat" / "notes.md").unlink()
    (tmp_path / "cat.old").mkdir()
    (tmp_path / "cat.old" / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'diary\.txt'"):
        write(tmp_path / "cat", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"
    assert (tmp_path / "cat.old" / "diary.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        write(tmp_path / "file", overwrite=True)


def test_a_link_as_output_keeps_pointing(tmp_path):
    write(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", features=X[:2], overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert Catalog.open(tmp_path / "real").num_items == 2


def test_bad_input_leaves_nothing_behind(tmp_path):
    bad = X.copy()
    bad[9, 1] = np.nan
    with pytest.raises(ValueError, match="row 9 has nan"):
        write(tmp_path / "cat", features=bad, block_rows=2, rows_per_part=2)
    rows = pa.table({"item_id": ["a", "b", "a"], "embedding": pa.array([[1.0, 1, 1]] * 3, pa.list_(pa.float32()))})
    pq.write_table(rows, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="item_id 'a' appears more than once"):
        write(tmp_path / "cat", features=tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"width 2, but the model was built with embedding_dim=3"):
        write(tmp_path / "cat", features=X[:, :2])
    with pytest.raises(ValueError, match="rows_per_part=0"):
        write(tmp_path / "cat", rows_per_part=0)
    assert os.listdir(tmp_path) == ["x.parquet"]


def test_failed_overwrite_keeps_the_old_catalog(tmp_path):
    write(tmp_path / "cat")
    before = digest(tmp_path / "cat")
    with pytest.raises(ValueError, match="nan"):
        write(tmp_path / "cat", features=np.full((2, 3), np.nan, np.float32), overwrite=True)
    assert digest(tmp_path / "cat") == before
    assert os.listdir(tmp_path) == ["cat"]


def test_codes_out_of_range_are_never_written(tmp_path):
    class Broken(FakeModel):
        def encode_codes(self, features):
            return super().encode_codes(features) + 1

    with pytest.raises(CatalogError, match=r"codes row 2 has L2 code 3; codes must be in \[0, 3\)"):
        encode_catalog(Broken(), open_vectors(X), tmp_path / "cat", block_rows=2)
    assert os.listdir(tmp_path) == []


def test_rows_lost_by_the_source_are_noticed(tmp_path):
    source = open_vectors(X)
    source.num_rows = N + 1
    source.blocks = lambda rows, start, stop: open_vectors(X).blocks(rows)
    with pytest.raises(CatalogError, match=r"read 11 rows, but .* promised 12"):
        encode_catalog(FakeModel(), source, tmp_path / "cat")
    assert os.listdir(tmp_path) == []


def test_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left while writing .*free some space") as caught:
        write(tmp_path / "cat", rows_per_part=2)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


# ---- 被杀 ----

KILLED = """
import os, signal, sys
import numpy as np
from algorithm.semantic_id.catalog import encode_catalog
from algorithm.semantic_id.tests.fake_model import FakeModel
from algorithm.semantic_id.files.vectors import open_vectors

os.fsync = lambda descriptor: None  # SIGKILL 不丢页缓存，这里不必等磁盘

def run(folder, moment):
    # 每次改名都是一个「之前没有、之后就有」的时刻；在第 moment 次之前用 SIGKILL 杀掉自己
    left = [moment]
    for name in ("replace", "rename"):
        def guarded(a, b, real=getattr(os, name)):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            real(a, b)
        setattr(os, name, guarded)
    features = np.load(sys.argv[1])
    encode_catalog(FakeModel(), open_vectors(features), folder, rows_per_part=4, overwrite=True, unique=sys.argv[2])

run(sys.argv[3], 1000)  # 先走一遍：该加载的都加载了，分出去的进程才轻
for moment, folder in enumerate(sys.argv[4:]):
    child = os.fork()
    if child == 0:
        run(folder, moment)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def kill_at_each_moment(tmp_path, folders, unique):
    """第 i 个目录的编码在第 i 次改名之前被杀；给出第几个起没有被杀。"""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "x.npy"), unique]
    command += [str(tmp_path / "first"), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = done.stdout.split()
    survived = codes.index("0")
    assert codes == ["-9"] * survived + ["0"] * (len(folders) - survived), done.stderr
    return survived


def test_killed_at_any_moment_readers_see_the_old_or_the_new_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    np.save(tmp_path / "x.npy", X)
    write(tmp_path / "new", rows_per_part=4)
    old = [tmp_path / f"old{i}" / "cat" for i in range(16)]
    for folder in old:
        write(folder, features=X[:5], rows_per_part=4)
    before, after = digest(old[0]), digest(tmp_path / "new")
    # 计划、三个编码途中的分片、三个正式分片、五个索引、清单、挪走旧表、就位
    survived = kill_at_each_moment(tmp_path, old, "none")
    assert survived == 15
    for folder in old[: survived - 1]:
        assert digest(folder) == before
        assert Catalog.open(folder).read().num_rows == 5
    # 写到一半的目录（有分片、没有清单）不是物品表
    with pytest.raises(CatalogError, match=r"has no MANIFEST\.json.*never finished"):
        Catalog.open(old[9].with_name("cat.partial"))
    between = old[survived - 1]
    assert digest(between.with_name("cat.old")) == before  # 两次改名之间：旧表完整地在 .old
    with pytest.raises(FileExistsError, match="--overwrite"):
        write(between)  # 下一次运行先把旧表放回来，于是照常要求 --overwrite
    assert digest(between) == before
    # 残骸不妨碍重跑，结果逐字节相同，残骸也没了
    for folder in old:
        write(folder, rows_per_part=4, overwrite=True)
        assert digest(folder) == after
        assert os.listdir(folder.parent) == ["cat"]


@pytest.mark.parametrize("unique", ["suffix", "nearest-free"])
def test_killed_at_any_moment_resume_skips_what_is_done_and_gives_the_same_bytes(unique, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    np.save(tmp_path / "x.npy", X)
    source = open_vectors(np.load(tmp_path / "x.npy"))
    write(tmp_path / "whole", features=source, rows_per_part=4, unique=unique)
    after = digest(tmp_path / "whole")
    fresh = [tmp_path / f"fresh{i}" / "cat" for i in range(17)]
    survived = kill_at_each_moment(tmp_path, fresh, unique)
    assert survived >= 13
    encoded = []
    monkeypatch.setattr(
        shards, "encode_block", lambda model, block, real=shards.encode_block: encoded.append(1) or real(model, block)
    )
    for moment, folder in enumerate(fresh[:survived]):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            Catalog.open(folder)
        encoded.clear()
        write(folder, features=source, rows_per_part=4, unique=unique, resume=True)
        assert len(encoded) == min(max(4 - moment, 0), 3)  # 第 0 次改名是计划，之后三次是三个分片
        assert digest(folder) == after
        assert os.listdir(folder.parent) == ["cat"]


def test_resume_refuses_another_run_and_keeps_what_is_there(tmp_path):
    np.save(tmp_path / "x.npy", X)
    bad = X.copy()
    bad[9, 1] = np.nan
    np.save(tmp_path / "y.npy", bad)
    with pytest.raises(ValueError, match="row 9 has nan"):
        write(tmp_path / "cat", features=tmp_path / "y.npy", rows_per_part=4, resume=True)
    staged = tmp_path / "cat.partial" / "staging"
    assert sorted(os.listdir(staged)) == ["PLAN.json", "shard-00000.parquet", "shard-00001.parquet"]
    with pytest.raises(ValueError, match=r"--resume: the interrupted run had features='y\.npy .*start over"):
        write(tmp_path / "cat", features=tmp_path / "x.npy", rows_per_part=4, resume=True)
    with pytest.raises(ValueError, match=r"had unique='none', this one has 'suffix'"):
        write(tmp_path / "cat", features=tmp_path / "y.npy", rows_per_part=4, resume=True, unique="suffix")
    assert (staged / "shard-00001.parquet").is_file()
    np.save(tmp_path / "y.npy", X)  # 同名同形状，但文件换过
    with pytest.raises(ValueError, match=r"had stamp="):
        write(tmp_path / "cat", features=tmp_path / "y.npy", rows_per_part=4, resume=True)
    (staged / "PLAN.json").write_text("[]")
    with pytest.raises(ValueError, match=r"PLAN\.json' is no plan of an encoding; start over without --resume"):
        write(tmp_path / "cat", features=tmp_path / "y.npy", rows_per_part=4, resume=True)
    write(tmp_path / "cat", features=tmp_path / "y.npy", rows_per_part=4)
    assert not (tmp_path / "cat.partial").exists()


def test_two_writers_do_not_mix(tmp_path):
    with publish.one_writer(tmp_path / "cat"), pytest.raises(FileExistsError, match="another process is writing"):
        write(tmp_path / "cat")
    assert os.listdir(tmp_path) == []


def test_a_strangers_partial_folder_is_left_alone(tmp_path):
    (tmp_path / "cat.partial").mkdir()
    (tmp_path / "cat.partial" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'mine\.txt', not ours"):
        write(tmp_path / "cat")
    assert (tmp_path / "cat.partial" / "mine.txt").exists()
