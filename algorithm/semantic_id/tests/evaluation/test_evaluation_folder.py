"""评估目录：往返、坏的认得出、写到一半被杀不会被当成完整的。"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from algorithm.semantic_id.evaluation import folder as ef

EVALUATION = {
    "name": "e", "created": "2026-01-01T00:00:00Z", "semid_version": "0", "fingerprint": None, "features": "x",
    "num_items": 2, "codebook_sizes": [2, 1], "sampled": {}, "metrics": {"mse": 0.5}, "verdicts": [], "legend": [],
    "items_in_folder": {"rows": 2, "how": "all"},
}  # fmt: skip


def items_table(suffix: bool = False, rows: int = 2) -> pa.Table:
    columns = {
        "item_id": [str(i) for i in range(rows)], "title": ["<script>", None] * (rows // 2),
        "label": [None, "b"] * (rows // 2), "l1": [1, 0] * (rows // 2), "l2": [0, 0] * (rows // 2), "suffix": [0, 1],
        "error": [0.5, None] * (rows // 2), "map_x": [1.0, 2.0] * (rows // 2), "map_y": [3.0, 4.0] * (rows // 2),
    }  # fmt: skip
    schema = ef.item_schema(2, suffix)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def codewords_table() -> pa.Table:
    columns = {
        "level": [1, 1, 2], "code": [0, 1, 0], "count": [1, 1, 2], "label": ["b", None, "b"],
        "map_x": [0.0, 1.0, None], "map_y": [0.0, 1.0, None],
    }  # fmt: skip
    return pa.table(columns, schema=ef.codeword_schema())


@pytest.mark.parametrize("suffix", [False, True])
def test_round_trip(tmp_path, suffix):
    items, codewords = items_table(suffix), codewords_table()
    ef.write_evaluation_folder(tmp_path / "a" / "b", EVALUATION, items, codewords)
    evaluation, got_items, got_codewords = ef.read_evaluation_folder(tmp_path / "a" / "b")
    assert {key: evaluation[key] for key in EVALUATION} == EVALUATION
    assert evaluation["schema_version"] == 1
    assert got_items.equals(items)
    assert got_codewords.equals(codewords)
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["codewords.parquet", "evaluation.json", "items.parquet"]


def test_damage_is_noticed(tmp_path):
    ef.write_evaluation_folder(tmp_path, EVALUATION, items_table(), codewords_table())
    good = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(ValueError, match="items.parquet does not match its SHA-256"):
        ef.read_evaluation_folder(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="items.parquet is missing"):
        ef.read_evaluation_folder(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"schema_version": 9}')
    with pytest.raises(ValueError, match="schema_version=9; this semid reads 1"):
        ef.read_evaluation_folder(tmp_path)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(FileNotFoundError, match="no finished evaluation"):
        ef.read_evaluation_folder(tmp_path)


def test_bad_tables_write_nothing(tmp_path):
    folder = tmp_path / "new"
    bad = {**EVALUATION, "metrics": {"mse": float("nan")}}
    cases = [
        (bad, items_table(), codewords_table(), ValueError, "not JSON compliant"),
        ({**EVALUATION, "num_items": "2"}, items_table(), codewords_table(), TypeError, "'num_items'"),
        ({"name": "e"}, items_table(), codewords_table(), ValueError, "no key 'created'"),
        (EVALUATION, items_table().drop_columns(["label"]), codewords_table(), ValueError, "has columns"),
        (EVALUATION, items_table(), codewords_table().slice(1), ValueError, "2 rows, but codebook_sizes"),
        (EVALUATION, items_table(rows=100_002), codewords_table(), ValueError, "at most 100000"),
        (
            EVALUATION,
            items_table().set_column(3, "l1", pa.array([0, 1], pa.int64())),
            codewords_table(),
            TypeError,
            "'l1' has type int64, expected int32",
        ),
    ]
    for evaluation, items, codewords, kind, text in cases:
        with pytest.raises(kind, match=text):
            ef.write_evaluation_folder(folder, evaluation, items, codewords)
    assert not folder.exists()


def test_door_protects_other_files(tmp_path):
    ef.check_evaluation_folder(tmp_path / "none", overwrite=False)
    ef.check_evaluation_folder(tmp_path, overwrite=False)
    ef.write_evaluation_folder(tmp_path, EVALUATION, items_table(), codewords_table())
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        ef.check_evaluation_folder(tmp_path, overwrite=False)
    ef.check_evaluation_folder(tmp_path, overwrite=True)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'mine.txt'"):
        ef.check_evaluation_folder(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        ef.check_evaluation_folder(tmp_path / "mine.txt", overwrite=True)


def test_found_inside_a_training_run(tmp_path):
    assert ef.find_evaluation(tmp_path) is None
    ef.write_evaluation_folder(tmp_path / "evaluation", EVALUATION, items_table(), codewords_table())
    assert ef.find_evaluation(tmp_path) == tmp_path / "evaluation"
    assert ef.find_evaluation(tmp_path / "evaluation") == tmp_path / "evaluation"


@pytest.mark.parametrize("step", range(5))
def test_killed_at_any_step_it_is_old_new_or_unfinished(tmp_path, step):
    # 第 step 次落盘动作（两个临时文件、撤清单、两次改名……）时进程被杀
    ef.write_evaluation_folder(tmp_path, EVALUATION, items_table(), codewords_table())
    code = f"""
import os, signal
from algorithm.semantic_id.files import durable
from algorithm.semantic_id.evaluation import folder as ef
from algorithm.semantic_id.tests.evaluation import test_evaluation_folder as t
left = {step}
def deadly(real):
    def inner(*arguments, **keywords):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*arguments, **keywords)
    return inner
ef.write_synced, ef.sync_folder, ef.os.replace = deadly(ef.write_synced), deadly(ef.sync_folder), deadly(os.replace)
ef.write_evaluation_folder({os.fspath(tmp_path)!r}, {{**t.EVALUATION, "name": "new"}},
                           t.items_table(), t.codewords_table())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    try:
        assert ef.read_evaluation_folder(tmp_path)[0]["name"] == "e"
        assert step < 2
    except FileNotFoundError:
        assert step >= 2
    ef.write_evaluation_folder(tmp_path, {**EVALUATION, "name": "again"}, items_table(), codewords_table())
    assert json.loads((tmp_path / "evaluation.json").read_text())["name"] == "again"
