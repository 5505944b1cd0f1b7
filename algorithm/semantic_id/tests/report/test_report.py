"""报告的数据与文字：装进去又拿得出来、标题变不成标记、每扇门、每句话的来处。页面本身在 test_report_page.py。"""

from __future__ import annotations

import base64
import builtins
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.report import page as report
from algorithm.semantic_id.report.data import embedded_json, pack_runs
from algorithm.semantic_id.report.runs import read_runs
from algorithm.semantic_id.tests.report.report_runs_made import (
    NASTY,
    SIZES,
    make_items,
    make_run,
    make_training,
)

PAGE = Path(report.__file__).with_name("assets")
KINDS = {"Uint8Array": "<u1", "Uint16Array": "<u2", "Uint32Array": "<u4", "Float32Array": "<f4"}


class Scripts(HTMLParser):
    """浏览器会看到的 script 元素：[属性, 内容]，与别的元素的名字。"""

    def __init__(self, page: str):
        super().__init__()
        self.scripts, self.tags, self._open = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append([dict(attributes), ""])
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag != "script"

    def handle_data(self, data):
        if self._open:
            self.scripts[-1][1] += data


def written(runs, tmp_path, **options):
    """写出的页面文字。"""
    report.write_report(runs, tmp_path / "page.html", overwrite=True, **options)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def unpack(spec, blocks):
    """浏览器做的事，用 Python 做一遍。"""
    data = gzip.decompress(base64.b64decode(blocks[spec["block"]]))
    return data.decode().split("\n") if spec["type"] == "text" else np.frombuffer(data, KINDS[spec["type"]])


def test_packed_columns_come_back_sorted_by_code(tmp_path):
    items = make_items(suffix=True)
    data, blocks = pack_runs(read_runs([make_run(tmp_path / "run", items=items)]))
    packed = data["runs"][0]["items"]
    got = [unpack(spec, blocks.encoded) for spec in packed["levels"]]
    wanted = sorted(items.to_pylist(), key=lambda row: (row["l1"], row["l2"], row["l3"], row["suffix"]))
    for level in range(len(SIZES)):
        assert got[level].tolist() == [row[f"l{level + 1}"] for row in wanted]
    assert unpack(packed["ids"], blocks.encoded) == [row["item_id"] for row in wanted]
    assert unpack(packed["titles"], blocks.encoded) == [row["title"].replace("\n", " ") for row in wanted]
    names = ["", *data["labels"]]
    assert [names[n] for n in unpack(packed["label"], blocks.encoded)] == [row["label"] or "" for row in wanted]
    errors = unpack(packed["error"], blocks.encoded)
    assert np.isnan(errors).sum() == 1
    assert np.nanmax(errors) == 9.0
    low, high = packed["frame"][:2]
    x = unpack(packed["x"], blocks.encoded) / 65534 * (high - low) + low
    np.testing.assert_allclose(x, [row["map_x"] for row in wanted], atol=(high - low) / 65534)
    counts = [unpack(spec, blocks.encoded) for spec in data["runs"][0]["codewords"]["counts"]]
    assert [len(c) for c in counts] == list(SIZES)
    assert [int(c.sum()) for c in counts] == [200] * 3


def test_labels_are_numbered_by_size_and_shared_between_runs(tmp_path):
    runs = [make_run(tmp_path / "a", "a"), make_run(tmp_path / "b", "b", make_items(seed=1))]
    data, _ = pack_runs(read_runs(runs))
    rows = make_items().to_pylist()  # 两次运行的标签相同
    counts = {name: sum(row["label"] == name for row in rows) for name in data["labels"]}
    assert data["labels"] == sorted(counts, key=lambda name: (-counts[name], name))
    assert len(set(counts.values())) > 1


def test_equal_columns_are_stored_once(tmp_path):
    one = pack_runs(read_runs([make_run(tmp_path / "a", "a")]))
    both, blocks = pack_runs(read_runs([tmp_path / "a", make_run(tmp_path / "b", "b")]))
    assert both["runs"][0]["items"] == both["runs"][1]["items"]
    assert len(blocks.encoded) == len(one[1].encoded)


def test_missing_titles_labels_errors_and_places(tmp_path):
    items = make_items(labels=False)
    for name in ("title", "error", "map_x"):
        at = items.column_names.index(name)
        items = items.set_column(at, name, pa.nulls(items.num_rows, items.schema.field(name).type))
    data, blocks = pack_runs(read_runs([make_run(tmp_path / "run", items=items)]))
    packed = data["runs"][0]["items"]
    assert (packed["titles"], packed["label"], packed["error"]) == (None, None, None)
    assert set(unpack(packed["x"], blocks.encoded)) == {65535}
    assert "<html" in written([tmp_path / "run"], tmp_path)


def test_titles_never_become_markup(tmp_path):
    run = make_run(tmp_path / "run", '<img src=x onerror="window.pwned=1">')
    page = written([run], tmp_path)
    plain = written([make_run(tmp_path / "plain", "plain", make_items())], tmp_path)
    seen, wanted = Scripts(page), Scripts(plain)
    assert seen.tags == wanted.tags  # 名字与标题没有带来任何元素
    assert "img" not in seen.tags
    assert [attributes.get("id") for attributes, _ in seen.scripts[:2]] == ["data", "block-0"]
    meta = json.loads(seen.scripts[0][1])
    assert meta["runs"][0]["name"] == '<img src=x onerror="window.pwned=1">'
    titles = next(
        text for _, text in (("", gzip.decompress(base64.b64decode(t)).decode("utf-8", "replace"))
                             for a, t in seen.scripts if a.get("id", "").startswith("block-")) if "thing number" in text
    )  # fmt: skip
    assert NASTY[0] in titles
    assert NASTY[0] not in page


def test_control_characters_do_not_reach_the_page(tmp_path):
    nasty = "\x1b]0;owned\x07 \u202egpj.exe \x9b2J\x00"
    items = make_items()
    for name in ("item_id", "title", "label"):
        column = items.column(name).to_pylist()
        column[10] = nasty + name
        items = items.set_column(items.column_names.index(name), name, pa.array(column))
    run = make_run(tmp_path / "run", "run" + nasty, items)
    page = written([run], tmp_path)
    scripts = Scripts(page)
    blocks = [gzip.decompress(base64.b64decode(text)) for a, text in scripts.scripts if a.get("id", "")[:6] == "block-"]
    texts = [data.decode() for data in blocks if b"thing number" in data or b"id-1" in data]
    assert len(texts) == 2
    labels = json.loads(scripts.scripts[0][1])["labels"]
    for text in (page.split("<script>")[0], *texts, *labels):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    shown = r"\x1b]0;owned\x07 \u202egpj.exe \x9b2J\x00"
    assert f"<dd>run{shown}</dd>" in page
    assert any(shown + "title" in text for text in texts)
    assert shown + "label" in labels


def test_a_page_that_appears_while_it_is_made_is_left_alone(tmp_path, monkeypatch):
    run, out = make_run(tmp_path / "run"), tmp_path / "r.html"
    real = report.read_runs
    for overwrite in (False, True):
        out.unlink(missing_ok=True)
        if overwrite:
            report.write_report([run], out)

        def slow(runs, out=out):
            found = real(runs)
            out.write_text("notes of somebody else")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(report, "read_runs", slow)
            with pytest.raises(FileExistsError, match="r.html"):
                report.write_report([run], out, overwrite=overwrite)
        assert out.read_text() == "notes of somebody else"
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_evaluation_without_a_checksum_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    assert "清单没有校验和" not in written([run], tmp_path)
    old = json.loads((run / "evaluation.json").read_text())
    del old["self_sha256"]
    (run / "evaluation.json").write_text(json.dumps({**old, "schema_version": 1}))
    page = written([run], tmp_path)
    assert "清单没有校验和" in page
    assert "changes to it would go unnoticed" in page


def test_embedded_json_cannot_end_its_script():
    text = embedded_json({"a": "</script><!--\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028"}
    with pytest.raises(ValueError, match="JSON"):
        embedded_json(float("nan"))


def test_policy_allows_this_script_only(tmp_path):
    page = written([make_run(tmp_path / "run")], tmp_path)
    scripts = [text for attributes, text in Scripts(page).scripts if "type" not in attributes]
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'" in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page.split("<script>")[0])


def test_same_runs_give_the_same_bytes(tmp_path):
    runs = [make_run(tmp_path / "run"), make_training(tmp_path / "train")]
    assert written(runs, tmp_path) == written(runs, tmp_path)


def test_training_folder_and_its_evaluation_are_one_run(tmp_path):
    make_run(make_training(tmp_path / "model") / "evaluation")
    for given in (tmp_path / "model", tmp_path / "model" / "evaluation"):
        (run,) = read_runs([given])
        assert run.evaluation is not None
        assert len(run.curves) == 4
        assert not run.stale
    assert run.curves[0]["utilization"] == [1.0, 0.9, None]  # NaN 不进网页的 JSON
    make_training(tmp_path / "model", fingerprint="0" * 64)
    assert read_runs([tmp_path / "model"])[0].stale
    assert "请重新评估" in written([tmp_path / "model"], tmp_path)


def test_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name, "same") for name in "abc"]
    assert [run.name for run in read_runs(runs)] == ["same", "same (2)", "same (3)"]


def test_half_a_line_is_dropped_and_a_broken_one_is_not(tmp_path):
    log = make_training(tmp_path / "t") / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"epoch": 4, "pha')
    assert len(read_runs([tmp_path / "t"])[0].curves) == 4
    log.write_text('{"epoch": 0, "pha\n' + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 is no training record"):
        read_runs([tmp_path / "t"])
    log.write_text("[" * 100_000 + "\n" + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 is no training record"):
        read_runs([tmp_path / "t"])
    log.write_text('{"epoch": "0"}\n')
    with pytest.raises(ValueError, match="epoch='0', expected an int"):
        read_runs([tmp_path / "t"])
    log.write_text('{"epoch": 0, "loss": ' + "[" * 900 + "]" * 900 + "}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 holds nested values"):
        read_runs([tmp_path / "t"])


def test_every_door(tmp_path, monkeypatch):
    run, out = make_run(tmp_path / "run"), tmp_path / "r.html"

    def refused(error, match, runs=(run,), output=out, **options):
        before = {p: p.read_bytes() for p in tmp_path.glob("*.html")}
        with pytest.raises(error, match=match):
            report.write_report(runs, output, **options)
        assert {p: p.read_bytes() for p in tmp_path.glob("*.html")} == before

    refused(ValueError, "must end in .html", output=tmp_path / "r.txt")
    refused(ValueError, "lang='fr' is not supported", lang="fr")
    refused(ValueError, "at least one RUN", runs=())
    refused(ValueError, "given twice", runs=(run, tmp_path / "run" / "." / "."))
    refused(FileNotFoundError, "is no folder", runs=(tmp_path / "nowhere",))
    refused(FileNotFoundError, "make it first", output=tmp_path / "no" / "r.html")
    (tmp_path / "empty").mkdir()
    refused(ValueError, r"neither evaluation\.json nor metrics\.jsonl", runs=(tmp_path / "empty",))
    (tmp_path / "d.html").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        report.write_report([run], tmp_path / "d.html")
    (tmp_path / "d.html").rmdir()
    out.write_text("old")
    refused(FileExistsError, "pass --overwrite")
    data = bytearray((run / "items.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "items.parquet").write_bytes(data)
    refused(ValueError, "does not match its SHA-256", overwrite=True)
    assert out.read_text() == "old"


def test_without_jinja2_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    code = cli.main(["report", str(make_run(tmp_path / "run")), "--output", str(tmp_path / "r.html")])
    assert (code, capsys.readouterr().err) == (2, "error: the report needs jinja2; pip install 'semid[report]'\n")
    assert not (tmp_path / "r.html").exists()


def test_command_prints_one_object(tmp_path, capsys):
    runs = [str(make_run(tmp_path / "run")), str(make_training(tmp_path / "train"))]
    out = tmp_path / "r.html"
    assert cli.main(["report", *runs, "--output", str(out), "--lang", "en", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "output": str(out), "bytes": out.stat().st_size, "num_runs": 2,
        "runs": [{"name": "mine", "num_items": 200, "items_shown": 200},
                 {"name": "train", "num_items": None, "items_shown": None}],
    }  # fmt: skip
    assert '<html lang="en">' in out.read_text(encoding="utf-8")
    assert cli.main(["report", *runs, "--output", str(out), "--overwrite"]) == 0
    assert str(out) in capsys.readouterr().out
