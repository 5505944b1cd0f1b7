"""物品表：往返、与分块无关、任何时刻被杀都不留半成品、任何改动都被发现。"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.interfaces import SemanticIDModel
from algorithm.semantic_id.catalog import Catalog, CatalogError, encode, encode_catalog, table
from algorithm.semantic_id.tests.fake_model import FakeModel
from algorithm.semantic_id.vectors import open_vectors

N = 11
X = np.stack([np.arange(N) % 4, np.arange(N) % 3, np.ones(N)], axis=1).astype(np.float32)  # (N, 3)


def write(folder, **kwargs):
    return encode_catalog(FakeModel(), open_vectors(kwargs.pop("features", X)), folder, **kwargs)


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def edit_manifest(folder, **changes):
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest.update(changes)
    path.write_text(json.dumps(manifest))


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


# ---- 门 ----


def test_existing_output_needs_overwrite_and_is_replaced_whole(tmp_path):
    write(tmp_path / "cat", rows_per_part=2)
    before = digest(tmp_path / "cat")
    with pytest.raises(FileExistsError, match=r"exists; pass --overwrite"):
        write(tmp_path / "cat", features=X[:3])
    assert digest(tmp_path / "cat") == before
    write(tmp_path / "cat", features=X[:3], overwrite=True)
    assert Catalog.open(tmp_path / "cat").num_items == 3
    assert sorted(os.listdir(tmp_path / "cat")) == ["MANIFEST.json", "part-00000.parquet"]
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
    source.blocks = lambda rows: open_vectors(X).blocks(rows)
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
from algorithm.semantic_id.vectors import open_vectors

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
    encode_catalog(FakeModel(), open_vectors(features), folder, rows_per_part=4, overwrite=True)

for moment, folder in enumerate(sys.argv[2:]):
    child = os.fork()
    if child == 0:
        run(folder, moment)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_at_any_moment_readers_see_the_old_or_the_new_whole(tmp_path):
    np.save(tmp_path / "x.npy", X)
    write(tmp_path / "new", rows_per_part=4)
    fresh = [tmp_path / f"fresh{i}" / "cat" for i in range(6)]
    old = [tmp_path / f"old{i}" / "cat" for i in range(7)]
    for folder in old:
        write(folder, features=X[:5], rows_per_part=4)
    before, after = digest(old[0]), digest(tmp_path / "new")
    for folders in (fresh, old):  # 3 个分片 + 清单 + 就位（替换时多一次挪走旧表）
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "x.npy"), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["-9"] * (len(folders) - 1) + ["0"], done.stderr
    for folder in fresh[:-1]:
        with pytest.raises(FileNotFoundError, match="does not exist"):
            Catalog.open(folder)
    # 写到一半的目录（有分片、没有清单）不是物品表
    with pytest.raises(CatalogError, match=r"has no MANIFEST\.json.*never finished"):
        Catalog.open(fresh[3].with_name("cat.partial"))
    for folder in old[:5]:
        assert digest(folder) == before
        assert Catalog.open(folder).read().num_rows == 5
    assert digest(old[5].with_name("cat.old")) == before  # 两次改名之间：旧表完整地在 .old
    with pytest.raises(FileExistsError, match="--overwrite"):
        write(old[5])  # 下一次运行先把旧表放回来，于是照常要求 --overwrite
    assert digest(old[5]) == before
    # 残骸不妨碍重跑，结果逐字节相同，残骸也没了
    for folder in (*fresh, *old):
        write(folder, rows_per_part=4, overwrite=True)
        assert digest(folder) == after
        assert os.listdir(folder.parent) == ["cat"]


def test_two_writers_do_not_mix(tmp_path):
    with encode._partial_folder(tmp_path / "cat"), pytest.raises(FileExistsError, match="another process is writing"):
        write(tmp_path / "cat")
    assert not (tmp_path / "cat").exists()


def test_a_strangers_partial_folder_is_left_alone(tmp_path):
    (tmp_path / "cat.partial").mkdir()
    (tmp_path / "cat.partial" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'mine\.txt', not ours"):
        write(tmp_path / "cat")
    assert (tmp_path / "cat.partial" / "mine.txt").exists()


# ---- 读者 ----


def test_open_refuses_what_is_no_catalog(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Catalog.open(tmp_path / "nowhere")
    with pytest.raises(CatalogError, match="has no MANIFEST"):
        Catalog.open(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"format": ')
    with pytest.raises(CatalogError, match="not valid JSON"):
        Catalog.open(tmp_path)
    for text in ("[1]", "{}", '{"format": "other"}'):
        (tmp_path / "MANIFEST.json").write_text(text)
        with pytest.raises(CatalogError, match="not a catalog manifest"):
            Catalog.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "format_version=2; this semid reads 1"),
        ({"num_items": 12}, "says num_items=12, but its parts have 11 rows"),
        ({"num_items": "11"}, "no valid 'num_items'"),
        ({"codebook_sizes": [4, "3"]}, "use ints >= 1"),
        ({"codebook_sizes": [4, 3, 2]}, "contradict its codebook_sizes"),
        ({"parts": ["part-00000.parquet"]}, "malformed part 'part-00000"),
        ({"parts": [{"name": "../../etc/passwd", "rows": 11, "bytes": 1, "sha256": ""}]}, "parts must be plain files"),
        ({"parts": [{"name": "/part-00000.parquet", "rows": 11, "bytes": 1, "sha256": ""}]}, "must be plain files"),
        ({"parts": [{"name": "part-00000.parquet\n", "rows": 11, "bytes": 1, "sha256": ""}]}, "must be plain files"),
        ({"parts": [{"name": "part-00009.parquet", "rows": 11, "bytes": 1, "sha256": ""}]}, "lacks 'part-00009"),
    ],
)
def test_manifest_doors(changes, text, tmp_path):
    write(tmp_path / "cat")
    edit_manifest(tmp_path / "cat", **changes)
    with pytest.raises(CatalogError, match=text):
        Catalog.open(tmp_path / "cat")


def test_a_part_that_links_out_of_the_folder_is_refused(tmp_path):
    write(tmp_path / "cat")
    part = tmp_path / "cat" / "part-00000.parquet"
    shutil.move(part, tmp_path / "outside.parquet")
    part.symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(CatalogError, match="must be plain files"):
        Catalog.open(tmp_path / "cat")


@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_any_change_of_a_part_is_noticed(damage, tmp_path):
    write(tmp_path / "cat", rows_per_part=4)
    part = tmp_path / "cat" / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= damage == "flip"
    part.write_bytes(data[:-1] if damage == "cut" else data + b"x" if damage == "grow" else data)
    tables = Catalog.open(tmp_path / "cat").tables()
    assert next(tables).num_rows == 4
    with pytest.raises(CatalogError, match=r"part-00001\.parquet does not match its SHA-256"):
        next(tables)


def test_page_checksums_are_written_for_other_readers(tmp_path):
    # 别的程序不看我们的清单；页校验和让它们也能发现坏页
    x = np.tile(X, (3000, 1))
    write(tmp_path / "cat", features=x)
    part = tmp_path / "cat" / "part-00000.parquet"
    column = pq.ParquetFile(part).metadata.row_group(0).column(0)
    data = bytearray(part.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc"):
        pq.read_table(part, columns=["item_id"], page_checksum_verification=True)


def test_a_consistent_forgery_with_codes_out_of_range_is_refused(tmp_path):
    write(tmp_path / "cat")
    edit_manifest(tmp_path / "cat", codebook_sizes=[3, 3])
    with pytest.raises(CatalogError, match=r"row 3 has L1 code 3; codes must be in \[0, 3\)"):
        Catalog.open(tmp_path / "cat").read()


def test_more_than_nine_levels_keep_their_order(tmp_path):
    sizes = tuple(range(2, 14))
    x = np.stack([np.arange(12) % 2 + i * 0 for i in range(12)], axis=1).astype(np.float32) * np.arange(12)
    encode_catalog(FakeModel(sizes, 12), open_vectors(x), tmp_path / "cat")
    got = Catalog.open(tmp_path / "cat").read()
    assert got.column_names == ["item_id", *[f"l{i}" for i in range(1, 13)]]
    np.testing.assert_array_equal(table.codes_of(got)[1], np.arange(12))
