"""输出目录：只动自己写的东西。（训练目录的门由 test_cli.py 走真命令来试。）"""

from __future__ import annotations

import os

import pytest

from algorithm.semantic_id.files.run_folder import check_demo_folder, remove_traces


def test_only_folders_made_by_the_demo_are_replaced(tmp_path):
    check_demo_folder(tmp_path / "new")
    check_demo_folder(tmp_path)  # 空目录
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="was not made by `semid demo`"):
        check_demo_folder(tmp_path)
    (tmp_path / "demo.json").write_text("{}")
    check_demo_folder(tmp_path)
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="was not made by"):
        check_demo_folder(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        check_demo_folder(tmp_path / "thesis.txt")


def test_traces_of_a_failed_start_are_removed_but_checkpoints_stay(tmp_path):
    fresh, kept, old = tmp_path / "fresh", tmp_path / "kept", tmp_path / "old"
    for folder in (fresh, kept, old):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "rows.f32").write_bytes(b"half")
        (folder / "checkpoints" / "epoch-000000.tmp").mkdir()  # 断点写到一半，不算断点
    (kept / "checkpoints" / "epoch-000001").mkdir()
    remove_traces(fresh, existed=False)
    remove_traces(kept, existed=False)
    remove_traces(old, existed=True)
    assert not fresh.exists()
    assert (kept / "checkpoints" / "rows.f32").exists()
    assert os.listdir(old) == []
