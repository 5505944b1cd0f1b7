"""报告的数据与文字：装进去又拿得出来、标题变不成标记、每扇门、每句话的来处。页面本身在 test_report/assets.py。"""

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
from algorithm.semantic_id.report import figures as report_figures
from algorithm.semantic_id.report import page as report
from algorithm.semantic_id.report.data import embedded_json, pack_runs, thin_items
from algorithm.semantic_id.report.runs import read_runs
from algorithm.semantic_id.tests.report.report_runs_made import (
    NASTY,
    SIZES,
    VERDICTS,
    make_evaluation,
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


def test_a_page_too_large_shows_fewer_items_but_the_worst(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(0x4E00, 0x9FA0, 60))) for _ in range(5000)]
    items = make_items(5000)
    items = items.set_column(1, "title", pa.array(["worst of all", *words[1:]]))
    run = make_run(tmp_path / "run", items=items, num_items=5000)
    full = len(written([run], tmp_path).encode())
    monkeypatch.setattr(report, "MAX_PAGE_BYTES", int(full * 0.6))
    result = report.write_report([run], tmp_path / "page.html", overwrite=True)
    assert result["bytes"] <= full * 0.6
    assert 1000 < result["runs"][0]["items_shown"] < 5000
    kept = read_runs([run])[0].items
    assert kept.num_rows == 5000  # 目录没有动


def test_thinning_keeps_the_worst_and_the_crowded():
    items = make_items(3000)
    crowded = pa.array(np.where(np.arange(3000) < 40, 3, items.column("l1").to_numpy()).astype(np.int32))
    for name in ("l1", "l2"):
        items = items.set_column(items.column_names.index(name), name, crowded)
    items = items.set_column(
        items.column_names.index("l3"),
        "l3",
        pa.array(np.where(np.arange(3000) < 40, 0, 5 + np.arange(3000) % 1500), pa.int32()),
    )
    thin = thin_items(items, 3, 500)
    assert thin.num_rows == 500
    assert thin_items(items, 3, 500).equals(thin)
    error = np.nan_to_num(items.column("error").to_numpy().astype(np.float32), nan=-1)
    kept = set(thin.column("item_id").to_pylist())
    assert {f"id-{i}" for i in range(5)} <= kept  # 四十个同 ID 的留五个：50 组至多占一半
    assert {f"id-{i}" for i in np.argsort(-error, kind="stable")[:125]} <= kept
    assert thin_items(items, 3, 3000) is items


def test_tiles_by_hand():
    tiles = {tile.metric: tile for tile in report_figures.figure_tiles(make_evaluation())}
    assert tiles["relative_mse"].value == "60%"
    assert tiles["relative_mse"].severity == "watch"
    assert tiles["relative_mse"].verdicts == [("L3 闲着。", "L3 idles.")]
    assert tiles["collision_rate"][2:5] == (
        "12.5%",
        ("40 个物品与别人共用 ID，最挤的 ID 上 7 个", "40 items share an ID, at most 7 on one"),
        "bad",
    )
    assert tiles["perplexity"].value == "80%"
    assert "L1 0.97 · L2 0.93 · L3 0.80" in tiles["perplexity"].detail[0]
    assert tiles["label_purity"].severity == "none"
    assert "generalisation_ratio" not in tiles
    assert report_figures.overall(list(tiles.values()))[1][1] == "fix 1 of these before training a recommender"


def test_what_was_not_judged_is_not_called_fine():
    evaluation = make_evaluation()
    unknown = {"code": "x", "severity": "unknown", "zh": "没有判断。", "en": "not judged.", "metric": "neighbour_share"}
    evaluation["verdicts"] = [VERDICTS[0], unknown]
    tiles = report_figures.figure_tiles(evaluation)
    assert {tile.metric: tile.severity for tile in tiles}["neighbour_share"] == "unknown"
    assert report_figures.overall(tiles) == (
        "unknown",
        ("没有发现问题，但有 1 处没法判断", "nothing to worry about found, but 1 could not be judged"),
    )


def test_half_an_evaluation_still_makes_a_page(tmp_path):
    whole = make_evaluation()["metrics"]
    for key in whole:
        evaluation = make_evaluation()
        evaluation["metrics"] = {k: v for k, v in whole.items() if k != key}
        report_figures.figure_tiles(evaluation)
        evaluation["metrics"] = {k: v if k != key else None for k, v in whole.items()}
        report_figures.figure_tiles(evaluation)


def test_no_verdict_is_lost():
    evaluation = make_evaluation()
    extra = {"code": "x", "severity": "strange", "zh": "别的", "en": "other", "metric": "some_new_metric"}
    evaluation["verdicts"] = [*VERDICTS, extra]
    tiles = report_figures.figure_tiles(evaluation)
    assert sorted(v[1] for tile in tiles for v in tile.verdicts) == sorted(v["en"] for v in evaluation["verdicts"])
    assert tiles[-1].severity == "watch"  # 认不出的档宁可多看一眼


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("relative_mse", 0.40456, "0.4046"),
        ("collision_rate", 0.0291, "2.91%"),
        ("label_purity", 0.8243, "82.4%"),
        ("prefix_chance", 2e-6, "<0.01%"),
        ("prefix_chance", 0.0, "0.00%"),
        ("max_collision", 12345, "12,345"),
        ("perplexity", 2815.7, "2,816"),
        ("co_consumption_lift", 6.7134, "6.713"),
        ("mse", None, "–"),
    ],
)
def test_how_figures_are_written(key, value, text):
    assert report_figures.format_metric(key, value) == text


def test_comparison_marks_the_best():
    first = make_evaluation(relative_mse=0.3, utilization=[0.5, 1.0, 1.0])
    rows = report_figures.compare_rows([first, None, make_evaluation()])
    table = {row["name"][1]: row for row in rows}
    assert table["relative MSE"]["best"] == [True, False, False]
    assert table["relative MSE"]["cells"] == ["0.3", "–", "0.4"]
    assert table["utilization L1"]["best"] == [False, False, True]
    assert table["collision rate before assignment"]["best"] == [False] * 3  # 一样
    assert table["prefix shared at random L1"]["best"] == [False] * 3  # 不评好坏
    assert "label purity L1–L2" in table
    assert table["relative MSE"]["main"]
    assert not table["Gini of codewords L1"]["main"]


def test_colours_of_style_and_canvas_agree():
    style, paint = (PAGE / "style.css").read_text(), (PAGE / "paint.js").read_text()
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    for scheme, name in zip(schemes, ("light", "dark"), strict=True):
        block = re.search(rf"{name}: \{{(.*?)\n  \}}", paint, re.DOTALL)[1]
        for colour in ("page", "card", "ink", "soft", "line"):
            in_style = re.search(rf"--{colour}: (#\w+)", scheme)[1]
            assert re.search(rf'\b{colour}: "(#\w+)"', block)[1] == in_style, (name, colour)


def test_both_languages_have_the_same_words():
    text = (PAGE / "text.js").read_text()
    zh, en = (re.search(rf"  {lang}: \{{(.*?)\n  \}}", text, re.DOTALL)[1] for lang in ("zh", "en"))
    keys = [re.findall(r"(\w+): \"", part) for part in (zh, en)]
    assert sorted(keys[0]) == sorted(keys[1])
    used = set(re.findall(r'say\("(\w+)"', "".join(p.read_text() for p in PAGE.glob("*.js"))))
    assert used <= set(keys[0])
    holes = [dict(re.findall(r'(\w+): "([^"]*)"', part)) for part in (zh, en)]
    assert all(holes[0][key].count("{}") == holes[1][key].count("{}") for key in keys[0])
