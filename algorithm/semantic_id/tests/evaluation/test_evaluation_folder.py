"""评估目录：往返、坏的认得出、写到一半被杀不会被当成完整的。"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.errors import InputError, InputTypeError
from algorithm.semantic_id.evaluation import folder as ef
from algorithm.semantic_id.files.durable import one_writer

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


def write(folder, evaluation, items, codewords) -> None:
    """写，允许替换。"""
    ef.EvaluationTarget(folder, overwrite=True).write(evaluation, items, codewords)


@pytest.mark.parametrize("suffix", [False, True])
def test_round_trip(tmp_path, suffix):
    items, codewords = items_table(suffix), codewords_table()
    write(tmp_path / "a" / "b", EVALUATION, items, codewords)
    evaluation, got_items, got_codewords = ef.read_evaluation_folder(tmp_path / "a" / "b")
    assert {key: evaluation[key] for key in EVALUATION} == EVALUATION
    assert (evaluation["schema_version"], evaluation["sealed"]) == (2, True)
    assert got_items.equals(items)
    assert got_codewords.equals(codewords)
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["codewords.parquet", "evaluation.json", "items.parquet"]


def test_damage_is_noticed(tmp_path):
    write(tmp_path, EVALUATION, items_table(), codewords_table())
    good = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(ValueError, match="items.parquet does not match its SHA-256"):
        ef.read_evaluation_folder(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="items.parquet is missing"):
        ef.read_evaluation_folder(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"schema_version": 9}')
    with pytest.raises(ValueError, match="schema_version=9; this semid reads 1 and 2"):
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
            items_table().set_column(3, "l1", pa.array([0, 2], pa.int32())),
            codewords_table(),
            ValueError,
            r"column l1 must hold codes in \[0, 2\)",
        ),
        (
            EVALUATION,
            items_table().set_column(4, "l2", pa.array([-1, 0], pa.int32())),
            codewords_table(),
            ValueError,
            r"column l2 must hold codes in \[0, 1\)",
        ),
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
            write(folder, evaluation, items, codewords)
    assert not folder.exists()


def test_door_protects_other_files(tmp_path):
    ef.EvaluationTarget(tmp_path / "none", overwrite=False)
    ef.EvaluationTarget(tmp_path, overwrite=False)
    write(tmp_path, EVALUATION, items_table(), codewords_table())
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        ef.EvaluationTarget(tmp_path, overwrite=False)
    ef.EvaluationTarget(tmp_path, overwrite=True)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'mine.txt'"):
        ef.EvaluationTarget(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        ef.EvaluationTarget(tmp_path / "mine.txt", overwrite=True)


@pytest.mark.parametrize("name", ["items.parquet", "codewords.parquet", "evaluation.json"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "parquet"])
def test_a_stranger_of_the_same_name_is_left_alone(tmp_path, name, kind):
    path = tmp_path / "out" / name
    path.parent.mkdir()
    if kind == "file":
        path.write_text('{"my": "notes"}')
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        write(tmp_path / "real", EVALUATION, items_table(), codewords_table())
        path.symlink_to(tmp_path / "real" / name)
    else:
        pq.write_table(pa.table({"item_id": ["a"], "title": ["b"]}), path)
    before = os.lstat(path)
    with pytest.raises(FileExistsError, match=f"holds '{name}', which no evaluation of ours wrote"):
        ef.EvaluationTarget(path.parent, overwrite=True)
    assert os.lstat(path).st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("appeared", ["notes.txt", "items.parquet", "evaluation.json", "another evaluation"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_while_it_runs_is_left_alone(tmp_path, appeared, overwrite):
    folder = tmp_path / "out"
    if overwrite:
        write(folder, EVALUATION, items_table(), codewords_table())
    target = ef.EvaluationTarget(folder, overwrite)
    folder.mkdir(exist_ok=True)
    if appeared == "another evaluation":
        write(folder, {**EVALUATION, "name": "theirs"}, items_table(), codewords_table())
    else:
        (folder / appeared).write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=re.escape(repr(str(folder)))):
        target.write(EVALUATION, items_table(), codewords_table())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_two_writers_do_not_meet(tmp_path):
    folder = tmp_path / "out"
    targets = [ef.EvaluationTarget(folder, overwrite=True) for _ in range(2)]
    with one_writer(folder), pytest.raises(FileExistsError, match="another process is writing"):
        targets[0].write(EVALUATION, items_table(), codewords_table())
    assert not folder.exists()
    targets[0].write(EVALUATION, items_table(), codewords_table())
    with pytest.raises(FileExistsError, match="was changed while this command ran"):
        targets[1].write({**EVALUATION, "name": "second"}, items_table(), codewords_table())
    assert ef.read_evaluation_folder(folder)[0]["name"] == "e"


@pytest.mark.parametrize("name", ["evaluation.json", "items.parquet", "codewords.parquet"])
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path, name):
    write(tmp_path, EVALUATION, items_table(), codewords_table())
    good = ef.read_evaluation_folder(tmp_path)
    path, harmless = tmp_path / name, 0
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = ef.read_evaluation_folder(tmp_path)
        except InputError as error:
            assert name in str(error), (position, str(error))  # noqa: PT017
        else:
            harmless += 1
            assert found[0] == good[0]
            assert (found[1].equals(good[1]), found[2].equals(good[2])) == (True, True)
    assert harmless <= (data.count(b" ") if name == "evaluation.json" else 0)  # 只有缩进里的空白翻得成别的空白


def test_the_first_version_had_no_checksum_and_is_still_read(tmp_path):
    write(tmp_path, EVALUATION, items_table(), codewords_table())
    path = tmp_path / "evaluation.json"
    old = json.loads(path.read_text())
    del old["self_sha256"]
    path.write_text(json.dumps({**old, "schema_version": 1}))
    evaluation = ef.read_evaluation_folder(tmp_path)[0]
    assert (evaluation["sealed"], evaluation["name"]) == (False, "e")
    path.write_text(json.dumps(old))  # 第二版丢了校验和
    with pytest.raises(InputError, match=r"evaluation.json lost its checksum 'self_sha256'"):
        ef.read_evaluation_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"codebook_sizes": [True, 1]}, "must hold ints >= 1"),
        ({"codebook_sizes": []}, "must hold ints >= 1"),
        ({"metrics": {"gini": [0.1]}}, "metric 'gini' has 1 values, but there are 2 levels"),
        ({"metrics": {"mse": {"a": 1}}}, "metric 'mse' holds"),
        ({"metrics": {"gini": ["a", "b"]}}, "metric 'gini' holds"),
        ({"metrics": {"relative_mse": "0.5"}}, "metric 'relative_mse' holds"),
        ({"metrics": {"collision_rate": [0.5, 0.5]}}, "metric 'collision_rate' holds"),
        ({"metrics": {"utilization": 0.5}}, "metric 'utilization' holds"),
        ({"verdicts": [{"zh": "x"}]}, "entry of 'verdicts' without code, severity"),
        ({"verdicts": ["x"]}, "entry of 'verdicts' without"),
        ({"legend": [{"key": "mse"}]}, "entry of 'legend' without key, zh"),
        ({"files": "x"}, "does not list items.parquet"),
        ({"files": [{"name": "items.parquet"}]}, "does not list items.parquet"),
        ({"metrics": []}, "'metrics' has type list"),
    ],
)
def test_a_strangers_manifest_is_refused_by_name(tmp_path, change, text):
    write(tmp_path, EVALUATION, items_table(), codewords_table())
    path = tmp_path / "evaluation.json"
    old = json.loads(path.read_text())
    del old["self_sha256"]
    path.write_text(json.dumps({**old, "schema_version": 1, **change}))
    with pytest.raises((InputError, InputTypeError), match=text) as caught:
        ef.read_evaluation_folder(tmp_path)
    assert "evaluation.json" in str(caught.value)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[]", b""])
def test_no_json_is_one_line(tmp_path, data):
    (tmp_path / "evaluation.json").write_bytes(data)
    with pytest.raises(InputError, match="evaluation.json"):
        ef.read_evaluation_folder(tmp_path)


def test_found_inside_a_training_run(tmp_path):
    assert ef.find_evaluation(tmp_path) is None
    write(tmp_path / "evaluation", EVALUATION, items_table(), codewords_table())
    assert ef.find_evaluation(tmp_path) == tmp_path / "evaluation"
    assert ef.find_evaluation(tmp_path / "evaluation") == tmp_path / "evaluation"


@pytest.mark.parametrize("step", range(10))
def test_killed_at_any_step_it_is_old_new_or_unfinished(tmp_path, step):
    # 第 step 次落盘动作（fsync、改名、链接、撤清单）之前进程被杀；十次够走完全程
    write(tmp_path, EVALUATION, items_table(), codewords_table())
    code = f"""
import os, signal
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
target = ef.EvaluationTarget({os.fspath(tmp_path)!r}, True)
for name in ("replace", "link", "fsync"):
    setattr(os, name, deadly(getattr(os, name)))
target.write({{**t.EVALUATION, "name": "new"}}, t.items_table(), t.codewords_table())
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode in (-9, 0), ended.stderr
    try:
        found = ef.read_evaluation_folder(tmp_path)[0]["name"]
    except FileNotFoundError:
        found = "unfinished"
    if ended.returncode == 0:
        assert found == "new"
    else:
        assert found in ("unfinished", "new" if step else "e")
    write(tmp_path, {**EVALUATION, "name": "again"}, items_table(), codewords_table())
    assert ef.read_evaluation_folder(tmp_path)[0]["name"] == "again"
    assert sorted(os.listdir(tmp_path)) == ["codewords.parquet", "evaluation.json", "items.parquet"]  # 残余清掉了
