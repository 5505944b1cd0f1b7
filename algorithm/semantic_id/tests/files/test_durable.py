"""落盘的动作：临时文件独占地新建、原子地换上、没有查看过的东西绝不替换、一个输出一个写者。"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from algorithm.semantic_id.files import durable
from algorithm.semantic_id.files.durable import FileTarget, is_temporary, one_writer, replacing, write_atomically


def test_content_is_old_or_new(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_symlink_lying_at_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(durable.secrets, "token_hex", lambda n: "0" * (2 * n))
    (tmp_path / ".a.json.00000000.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a.json", b"x")
    durable.write_synced(tmp_path / ".a.json.00000000.tmp", b"y")  # 固定名字的临时文件：链接自己被换掉
    assert victim.read_bytes() == b"precious"


def test_leftovers_of_the_dead_go_and_files_of_the_living_stay(tmp_path):
    dead, other = tmp_path / ".a.json.0123abcd.tmp", tmp_path / ".b.json.0123abcd.tmp"
    mine = tmp_path / ".a.json.notes.tmp"  # 不是我们的写法
    for path in (dead, other, mine):
        path.write_bytes(b"half")
    with replacing(tmp_path / "a.json") as file:
        file.write(b"1")
        (living,) = [name for name in os.listdir(tmp_path) if is_temporary(name) and name != other.name]
        write_atomically(tmp_path / "a.json", b"2")
        assert living in os.listdir(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([mine.name, other.name, "a.json"])
    assert (tmp_path / "a.json").read_bytes() == b"1"


def test_a_file_target_never_replaces_what_it_did_not_see(tmp_path):
    path = tmp_path / "out.npy"
    target = FileTarget(path, overwrite=True)  # 现在还没有
    with pytest.raises(FileExistsError, match="appeared while this command ran"), target.writing() as file:
        file.write(b"ours")
        path.write_bytes(b"notes of somebody")
    assert path.read_bytes() == b"notes of somebody"
    with pytest.raises(FileExistsError, match=r"exists; pass --overwrite"):
        FileTarget(path, overwrite=False)
    target = FileTarget(path, overwrite=True)
    with pytest.raises(FileExistsError, match="was changed while this command ran"), target.writing() as file:
        file.write(b"ours")
        path.write_bytes(b"other notes, longer")
    assert path.read_bytes() == b"other notes, longer"
    with FileTarget(path, overwrite=True).writing() as file:
        file.write(b"ours")
    assert path.read_bytes() == b"ours"
    assert os.listdir(tmp_path) == ["out.npy"]
    with pytest.raises(FileExistsError, match="is a folder"):
        FileTarget(tmp_path, overwrite=True)


def test_without_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def no_links(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(durable.os, "link", no_links)
    with FileTarget(tmp_path / "a", overwrite=False).writing() as file:
        file.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    target = FileTarget(tmp_path / "b", overwrite=False)
    with pytest.raises(FileExistsError), target.writing():
        (tmp_path / "b").write_bytes(b"theirs")
    assert (tmp_path / "b").read_bytes() == b"theirs"


def test_one_output_has_one_writer(tmp_path):
    target = tmp_path / "model"
    with one_writer(target):
        with pytest.raises(FileExistsError, match="another process is writing"), one_writer(target):
            pass
        (tmp_path / "link").symlink_to(tmp_path)
        same = tmp_path / "link" / "model"
        with (
            pytest.raises(FileExistsError, match="another process is writing"),
            one_writer(same),
        ):
            pass
        with one_writer(tmp_path / "other"):
            pass
    assert [name for name in os.listdir(tmp_path) if name != "link"] == []


def test_a_folder_whose_parent_cannot_be_written_is_locked_itself(tmp_path, monkeypatch):
    real, target = os.open, tmp_path / "catalog"
    target.mkdir()

    def no_files_beside(path, *arguments, **keywords):
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(durable.os, "open", no_files_beside)
    with one_writer(target), pytest.raises(FileExistsError, match="another process is writing"), one_writer(target):
        pass
    with one_writer(target):
        pass
    with pytest.raises(PermissionError), one_writer(tmp_path / "not-there"):
        pass


HOLDER = """
import os, signal, sys
from pathlib import Path
from algorithm.semantic_id.files.durable import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_holds_nothing(tmp_path):
    target = tmp_path / "model"
    command = [sys.executable, "-c", HOLDER, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FileExistsError, match="another process is writing"), one_writer(target):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / ".model.lock").exists()
    with one_writer(target):
        pass
    assert os.listdir(tmp_path) == []


def test_names_of_ours():
    assert is_temporary(".MANIFEST.json.0123abcd.tmp")
    assert is_temporary(".model.lock")
    for name in ("MANIFEST.json", "a.tmp", ".a.tmp", ".a.XYZ.tmp", "notes.lock", ".lock"):
        assert not is_temporary(name), name
