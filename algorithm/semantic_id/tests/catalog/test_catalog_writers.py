"""两个写者相遇、运行途中目录里出现了别的东西、读者打开着的时候被整个换掉：没有一份结果悄悄丢掉，也没有一个错误的 ID。

两个进程的先后由管道里的文件定，不靠等：第一个写者在编码途中（或就位之前）停下来，等测试放行。
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.catalog import Catalog, CatalogError, decode_codes_file, encode_catalog
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.catalog.exchange.index_json import export_index_json, import_index_json
from algorithm.semantic_id.catalog.format import publish
from algorithm.semantic_id.files.run_folder import new_folder
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_catalog import X, digest, write
from algorithm.semantic_id.tests.catalog.test_update import MODEL, SPOT, WORLD, source_of, start
from algorithm.semantic_id.tests.fake_model import FakeModel

HELD = """
import sys
import numpy as np, pyarrow as pa
from algorithm.semantic_id.catalog import decode_codes_file, encode_catalog
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.fake_model import FakeModel

class Held(FakeModel):
    # 第一次用到模型时说一声，然后等放行
    def _wait(self):
        if not hasattr(self, "told"):
            self.told = True
            print("started", flush=True)
            sys.stdin.readline()

    def encode_codes(self, features):
        self._wait()
        return super().encode_codes(features)

    def decode_codes(self, codes):
        self._wait()
        return super().decode_codes(codes)

kind, folder = sys.argv[1:3]
if kind == "encode":
    x = np.load(sys.argv[3])
    encode_catalog(Held(), open_vectors(x), folder, overwrite=True)
elif kind == "update":
    update_catalog(Held((2, 2, 32), 3), folder, open_vectors(sys.argv[3]))
else:
    decode_codes_file(Held(), sys.argv[3], folder, overwrite=True)
print("done")
"""


class Other:
    """另一个进程里的写者，停在半路。"""

    def __init__(self, *arguments):
        command = [sys.executable, "-c", HELD, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "started\n", self.process.stderr.read()

    def finish(self):
        out, err = self.process.communicate("go\n")
        return out, err.strip().splitlines()[-1] if err.strip() else ""


BUSY = r"another process is writing .*; wait for it or choose another output"


def test_two_encodes_the_later_one_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", X)
    write(tmp_path / "cat", features=X[:3])
    first = Other("encode", tmp_path / "cat", tmp_path / "x.npy")
    with pytest.raises(FileExistsError, match=BUSY):
        write(tmp_path / "cat", features=X[:5], overwrite=True)
    assert Catalog.open(tmp_path / "cat").num_items == 3
    assert first.finish() == ("done\n", "")
    assert Catalog.open(tmp_path / "cat").num_items == len(X)
    assert sorted(os.listdir(tmp_path)) == ["cat", "x.npy"]


def test_update_beside_encode_overwrite_and_two_updates(tmp_path):
    start(tmp_path, WORLD, "suffix")
    delta = source_of(tmp_path, {"n": SPOT})
    np.save(tmp_path / "x.npy", X)
    first = Other("encode", tmp_path / "cat", tmp_path / "x.npy")
    with pytest.raises(FileExistsError, match=BUSY):
        update_catalog(MODEL, tmp_path / "cat", delta)
    assert first.finish()[0] == "done\n"
    (tmp_path / "two").mkdir()
    start(tmp_path / "two", WORLD, "suffix")
    first = Other("update", tmp_path / "two" / "cat", tmp_path / "delta.parquet")
    with pytest.raises(FileExistsError, match=BUSY):
        update_catalog(MODEL, tmp_path / "two" / "cat", None, retire=pa.array(["a"]))
    with pytest.raises(FileExistsError, match=BUSY):
        write(tmp_path / "two" / "cat", overwrite=True)
    assert first.finish()[0] == "done\n"
    assert Catalog.open(tmp_path / "two" / "cat").generation == 1


def test_two_decodes_two_migrations_two_imports(tmp_path):
    np.save(tmp_path / "codes.npy", np.zeros((4, 2), np.int32))
    first = Other("decode", tmp_path / "out.npy", tmp_path / "codes.npy")
    with pytest.raises(FileExistsError, match=BUSY):
        decode_codes_file(FakeModel(), tmp_path / "codes.npy", tmp_path / "out.npy", overwrite=True)
    assert first.finish()[0] == "done\n"
    (tmp_path / "in.json").write_text('{"a": ["<a_1>"]}')
    with publish.one_writer(tmp_path / "cat"), pytest.raises(FileExistsError, match=BUSY):
        import_index_json(tmp_path / "in.json", tmp_path / "cat")
    with (
        new_folder(tmp_path / "moved", ("model",)),
        pytest.raises(FileExistsError, match=BUSY),
        new_folder(tmp_path / "moved", ("model",)),
    ):
        pass
    write(tmp_path / "cat")
    with publish.one_writer(tmp_path / "x.json"), pytest.raises(FileExistsError, match=BUSY):
        export_index_json(Catalog.open(tmp_path / "cat"), tmp_path / "x.json")


# ---- 运行途中目录里出现了什么 ----


def _notes(folder):
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("mine")


def _another_catalog(folder):
    write(folder.with_name("aside"), features=X[:2])
    if folder.exists():
        os.rename(folder, folder.with_name("was"))
    os.rename(folder.with_name("aside"), folder)


def _rewritten(folder):
    path = folder / "MANIFEST.json"
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("existed", "meanwhile"),
    [(False, _notes), (False, _another_catalog), (True, _notes), (True, _another_catalog), (True, _rewritten)],
)
def test_whatever_appears_while_encoding_is_kept_and_so_is_the_result(existed, meanwhile, tmp_path):
    if existed:
        write(tmp_path / "cat", features=X[:3])
    np.save(tmp_path / "x.npy", X)
    first = Other("encode", tmp_path / "cat", tmp_path / "x.npy")
    meanwhile(tmp_path / "cat")
    before = digest(tmp_path / "cat")
    out, last = first.finish()
    assert out == ""
    assert "changed while this command ran, so it is left as it is; the new catalog is whole in" in last
    assert digest(tmp_path / "cat") == before
    # 写好的那一份还在；让出地方之后 --resume 不必重新编码就能就位
    assert Catalog.open(tmp_path / "cat.partial").num_items == len(X)
    os.rename(tmp_path / "cat", tmp_path / "theirs")
    encode_catalog(FakeModel(), open_vectors(X), tmp_path / "cat", resume=True)
    assert Catalog.open(tmp_path / "cat").num_items == len(X)
    assert digest(tmp_path / "theirs") == before
    assert not (tmp_path / "cat.partial").exists()


@pytest.mark.parametrize("moment", ["before", "between"])
def test_what_appears_in_the_last_moment_is_not_removed_either(moment, tmp_path, monkeypatch):
    write(tmp_path / "cat", features=X[:3])
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(target)
        if moment == "before" and len(calls) == 1:  # 看过之后、挪开之前
            (tmp_path / "cat" / "notes.txt").write_text("mine")
        real(source, target)
        if moment == "between" and len(calls) == 1:  # 挪开之后、就位之前
            _notes(tmp_path / "cat")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(publish.TargetChangedError, match="is left as it is"):
        write(tmp_path / "cat", overwrite=True)
    assert (tmp_path / "cat" / "notes.txt").read_text() == "mine"
    old = tmp_path / ("cat" if moment == "before" else "cat.old")
    assert Catalog.open(old).num_items == 3
    assert Catalog.open(tmp_path / "cat.partial").num_items == len(X)


def test_an_output_file_that_appears_while_decoding_is_kept(tmp_path):
    np.save(tmp_path / "codes.npy", np.zeros((4, 2), np.int32))
    first = Other("decode", tmp_path / "out.npy", tmp_path / "codes.npy")
    (tmp_path / "out.npy").write_bytes(b"theirs")
    assert "appeared while this command ran" in first.finish()[1]
    assert (tmp_path / "out.npy").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["codes.npy", "out.npy"]


def test_leftovers_of_dead_runs_go_with_the_next_successful_run(tmp_path):
    start(tmp_path, WORLD, "suffix")
    cat, old = tmp_path / "cat", tmp_path / "cat.old"
    old.mkdir()
    (old / "part-00000.parquet").write_bytes(b"half removed")
    (cat / "staging").mkdir()
    (cat / "staging" / "scratch-keys").write_bytes(b"x")
    (cat / "part-00009.parquet").write_bytes(b"x")
    (cat / ".MANIFEST.json.0123abcd.tmp").write_bytes(b"x")
    update_catalog(MODEL, cat, source_of(tmp_path, {"n": SPOT}))
    listed = {entry["name"] for entry in publish_files(cat)} | {"MANIFEST.json"}
    assert set(os.listdir(cat)) == listed | set(Catalog.open(cat).manifest["previous"])
    assert sorted(os.listdir(tmp_path)) == ["cat", "delta.parquet"]


@pytest.mark.parametrize("moment", range(1, 12, 2))
def test_a_full_disk_at_any_moment_of_an_update_keeps_the_old_generation(moment, tmp_path, monkeypatch):
    start(tmp_path, WORLD, "suffix")
    delta, before, calls = source_of(tmp_path, {"n": SPOT}), digest(tmp_path / "cat"), []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == moment:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        update_catalog(MODEL, tmp_path / "cat", delta, retire=pa.array(["a"]))
    assert caught.value.errno == errno.ENOSPC
    assert digest(tmp_path / "cat") == before
    assert sorted(os.listdir(tmp_path)) == ["cat", "delta.parquet"]


def publish_files(folder):
    from algorithm.semantic_id.catalog.format.manifest import files_of

    return files_of(Catalog.open(folder).manifest)


# ---- 读者 ----


class Retrained(FakeModel):
    """重新训练过的模型：同样的物品，第二层的编号不同。"""

    def fingerprint(self):
        return "9" * 64

    def encode_codes(self, features):
        codes = super().encode_codes(features)
        codes[:, 1] = (codes[:, 1] + 1) % 3
        return codes


QUESTIONS = {
    "find": lambda catalog: catalog.find(list(range(11))).tolist(),
    "items_of": lambda catalog: catalog.items_of([[0, 0], [1, 1]]).to_pylist(),
    "items_under": lambda catalog: catalog.items_under([[0], [3]]).to_pylist(),
    "with_prefix": lambda catalog: catalog.with_prefix((1,)).to_pylist(),
    "count": lambda catalog: catalog.count((1, 1)),
    "read": lambda catalog: catalog.read().to_pylist(),
    "rest": lambda catalog: [table.to_pylist() for table in catalog.half],
}


@pytest.mark.parametrize("warm", ["cold", "find", "read", "items_under"])
@pytest.mark.parametrize("rows", [4, 100])
def test_a_reader_never_gets_an_id_of_the_model_that_replaced_his(warm, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    write(tmp_path / "cat", rows_per_part=rows)

    def opened():
        catalog = Catalog.open(tmp_path / "cat")
        catalog.half = catalog.tables()
        next(catalog.half)  # 读到一半
        return catalog

    right = {name: question(opened()) for name, question in QUESTIONS.items()}
    reader = opened()
    if warm != "cold":
        QUESTIONS[warm](reader)
    encode_catalog(Retrained(), open_vectors(X), tmp_path / "cat", overwrite=True, rows_per_part=rows)
    stays, complaints = set(), []
    for name, question in QUESTIONS.items():
        try:
            assert question(reader) == right[name], name
            stays.add(name)
        except CatalogError as error:
            complaints.append(str(error))
    assert all("was replaced" in text and "open it again" in text for text in complaints)
    if warm in ("find", "items_under"):  # 索引已经映射：照旧
        assert {"find", "items_of", "items_under", "with_prefix", "count"} <= stays
    assert reader.fingerprint == "f" * 64
    with pytest.raises(CatalogError, match=r"was replaced|open it again"):
        reader.verify()
    with pytest.raises(CatalogError, match="open it again"):
        export_index_json(reader, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
    fresh = Catalog.open(tmp_path / "cat")
    assert fresh.fingerprint == "9" * 64
    assert fresh.find([0]).tolist() == [[0, 1]]


def test_a_reader_of_a_generation_keeps_it_while_a_new_one_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    start(tmp_path, WORLD, "suffix")
    reader = Catalog.open(tmp_path / "cat")
    update_catalog(MODEL, tmp_path / "cat", source_of(tmp_path, {"n": SPOT}), retire=pa.array(["a"]))
    assert reader.find(["a", "n"]).tolist() == [[0, 0, 5, 0], [-1] * 4]
    assert set(reader.read().column("item_id").to_pylist()) == set(WORLD)
    assert reader.items_under([[0, 0, 5]]).to_pylist() == [["a", "b", "c"]]
    assert pq.read_table(tmp_path / "delta.parquet").num_rows == 1
