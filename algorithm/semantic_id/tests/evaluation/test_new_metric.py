"""加一个指标只动一处：一条记录加一个函数，评估、图例、体检、命令行的表与报告就都有它（CONTRIBUTING.md 的例子）。"""

from __future__ import annotations

import json

import numpy as np
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.evaluation.folder import read_evaluation_folder
from algorithm.semantic_id.metrics import records
from algorithm.semantic_id.metrics.records.base import Metric, Sentence
from algorithm.semantic_id.report.page import write_report

MANY = Sentence(
    "odd_rate_high",
    "奇数的编码占 {rate:.0%}，太多。" + "这是一句长得终端一行放不下的话，折行的时候一个字也不能丢。" * 3,
    "{rate:.0%} of the codes are odd: too many.",
)


def odd_rates(measured):
    """逐层奇数编码的比例。"""
    return (measured.codes % 2).mean(axis=0).tolist()


LEVELS = Metric(
    key="odd_rate",
    name=("奇数编码", "odd codes"),
    formula=("奇数的编码 / N", "odd codes / N"),
    range="[0, 1]",
    question=("编码是奇数吗？", "Are the codes odd?"),
    better="lower",
    per="level",
    style="share",
    measure=odd_rates,
    judge=lambda f: [MANY.says("watch", rate=f.first("odd_rate"))],
)
WHOLE = Metric(
    key="odd_items",
    name=("全奇的物品", "all-odd items"),
    formula=("各层都是奇数的物品数", "items whose codes are all odd"),
    range="[0, N]",
    question=LEVELS.question,
    unit=("物品", "items"),
    measure=lambda m: int((m.codes % 2).all(axis=1).sum()),
)


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_one_record_and_one_function_reach_every_place(tmp_path, capsys, monkeypatch, lang):
    monkeypatch.setattr(records, "METRICS", (*records.METRICS, LEVELS, WHOLE))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (120, 2))
    np.save(tmp_path / "x.npy", rng.normal(size=(120, 3)).astype(np.float32))
    np.save(tmp_path / "codes.npy", codes)
    arguments = ["evaluate", "--codes", str(tmp_path / "codes.npy"), str(tmp_path / "x.npy"), "--codebook-sizes", "4,4"]
    rates, items = (codes % 2).mean(axis=0), int((codes % 2).all(axis=1).sum())

    assert cli.main([*arguments, "--output", str(tmp_path / "e"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["odd_rate"] == rates.tolist()
    assert result["odd_items"] == items
    (verdict,) = [v for v in result["verdicts"] if v["metric"] == "odd_rate"]
    assert verdict["en"] == f"{rates[0]:.0%} of the codes are odd: too many."

    evaluation = read_evaluation_folder(tmp_path / "e")[0]
    entry = next(entry for entry in evaluation["legend"] if entry["key"] == "odd_rate")
    assert (entry["zh"], entry["unit"], entry["direction"]) == ("奇数编码", "每层一个 / one per level", "lower")
    assert (entry["question_en"], entry["population"]) == ("Are the codes odd?", "全部物品 / all items")

    assert cli.main([*arguments, "--lang", lang]) == 0
    table = capsys.readouterr().out
    for name in (LEVELS.name, WHOLE.name):
        assert name[lang == "en"] in table
    assert f"{rates[1]:.1%}" in table
    assert "".join(verdict[lang].split()) in "".join(table.split())

    write_report([tmp_path / "e"], tmp_path / "r.html", lang=lang)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (*LEVELS.name, *LEVELS.formula, *LEVELS.question, *WHOLE.name, f"{rates[1]:.1%}", verdict["zh"]):
        assert text in page
    assert 'data-metric="odd_rate"' in page
