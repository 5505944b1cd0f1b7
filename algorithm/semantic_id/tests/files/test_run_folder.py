"""输出目录：只动自己写的东西，自己被打断留下的都认得。（真的训练与 kill -9 在 training/test_interrupted.py。）"""

from __future__ import annotations

import os

import pytest

from algorithm.semantic_id.files.run_folder import check_demo_folder, open_run_folder


def test_only_folders_made_by_the_demo_are_replaced(tmp_path):
    check_demo_folder(tmp_path / "new")
    check_demo_folder(tmp_path)  # 空目录
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="was not made by `semid demo`"):
        check_demo_folder(tmp_path)
    (tmp_path / "demo.json").write_text("{}")
    for name in (".model.lock", ".catalog.lock", ".demo.json.0123abcd.tmp"):  # 被杀的演示留下的
        (tmp_path / name).write_text("")
    check_demo_folder(tmp_path)
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="was not made by"):
        check_demo_folder(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        check_demo_folder(tmp_path / "thesis.txt")


def opened(path, *, resume=False, overwrite=False):
    return open_run_folder(path, resume=resume, overwrite=overwrite)


def epoch(folder, number):
    made = folder / "checkpoints" / f"epoch-{number:06d}"
    made.mkdir(parents=True)
    (made / "state.json").write_text("{}")
    return made


def test_traces_of_a_failed_start_are_removed_but_checkpoints_stay(tmp_path):
    fresh, kept, old = tmp_path / "fresh", tmp_path / "kept", tmp_path / "old"
    old.mkdir()
    for path in (fresh, kept, old):
        with pytest.raises(ZeroDivisionError), opened(path) as folder:
            folder.begin()
            (folder.checkpoints / "rows.f32").write_bytes(b"half")
            (folder.checkpoints / ".epoch-000000.0123abcd.tmp").mkdir()  # 断点写到一半，不算断点
            (path / "tensorboard").mkdir()
            (path / "tensorboard" / "events.out.tfevents.1").write_bytes(b"")
            if path == kept:
                epoch(path, 1)
            raise ZeroDivisionError
    assert not fresh.exists()
    assert os.listdir(old) == []
    assert sorted(os.listdir(kept)) == ["checkpoints", "tensorboard"]
    assert not (kept / "checkpoints" / "rows.f32").exists()
    assert [path.name for path in tmp_path.glob(".*")] == []  # 锁也不留


@pytest.mark.parametrize(
    "names",
    [
        [".metrics.jsonl.0123abcd.tmp"],
        ["metrics.jsonl.tmp", "tensorboard/events.out.tfevents.1"],  # 从前的版本留下的
        ["tensorboard/events.out.tfevents.1"],
        ["checkpoints/rows.f32", ".config.json.tmp"],
        ["checkpoints/epoch-000003.tmp/state.json", "metrics.jsonl"],
        ["checkpoints/.epoch-000003.0123abcd.tmp/state.json"],
    ],
)
def test_every_trace_of_our_own_run_can_be_resumed_or_replaced(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for choice in ({"resume": True}, {"overwrite": True}):
        with opened(tmp_path, **choice) as folder:
            assert not folder.finished
            assert folder.epochs() == []


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "README.md", "tensorboard/mine.txt", "checkpoints/best.pt", "config.json", "checkpoints/epoch-1.txt"],
)
def test_what_is_not_ours_is_refused_and_stays(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"architectures": ["BertModel"]}')
    for choice in ({"resume": True}, {"overwrite": True}, {}):
        with (
            pytest.raises(FileExistsError, match="which is no training run; choose another folder"),
            opened(tmp_path, **choice),
        ):
            pytest.fail("entered")
    assert (tmp_path / name).read_text() == '{"architectures": ["BertModel"]}'


def test_a_second_writer_is_refused_at_once(tmp_path):
    with opened(tmp_path / "m") as folder:
        folder.begin()
        epoch(folder.path, 1)
        for choice in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(FileExistsError, match="another process is writing"), opened(tmp_path / "m", **choice):
                pytest.fail("entered")
        assert [path.name for path in folder.epochs()] == ["epoch-000001"]


def test_finishing_takes_only_what_the_run_wrote(tmp_path):
    with opened(tmp_path) as folder:
        folder.begin()
        epoch(tmp_path, 2)
        (tmp_path / ".config.json.0123abcd.tmp").write_text("half")
        (tmp_path / ".thesis.txt.0123abcd.tmp").write_text("of another tool")
        (tmp_path / "notes.txt").write_text("mine")
        (folder.checkpoints / "notes.txt").write_text("mine")
        folder.finish()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == [".thesis.txt.0123abcd.tmp", "checkpoints", "checkpoints/notes.txt", "notes.txt"]
