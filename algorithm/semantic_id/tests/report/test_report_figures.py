"""报告里的数字：太大就少放物品、关键数字、没有判断的、并排比较、两种语言同样的词。"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.report import figures as report_figures
from algorithm.semantic_id.report import page as report
from algorithm.semantic_id.report.data import thin_items
from algorithm.semantic_id.report.runs import read_runs
from algorithm.semantic_id.tests.report.report_runs_made import (
    VERDICTS,
    make_evaluation,
    make_items,
    make_run,
)
from algorithm.semantic_id.tests.report.test_report import PAGE, written


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
