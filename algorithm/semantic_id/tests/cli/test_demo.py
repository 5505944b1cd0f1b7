"""演示与体检：内置数据真实可用、挑选规则手算、每条结论都有数据能触发它。"""

from __future__ import annotations

import doctest
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.cli.models import demo as command
from algorithm.semantic_id.cli.page import Page
from algorithm.semantic_id.evaluation import showcase
from algorithm.semantic_id.files.run_folder import check_demo_folder

HEALTHY = {
    "num_items": 1000,
    "codebook_sizes": [16, 32],
    "utilization": [1.0, 0.9],
    "perplexity": [12.0, 20.0],
    "collision_rate": 0.02,
    "max_collision": 2,
    "relative_mse": 0.5,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """真正跑一遍演示（约 10 秒），全文件共用。"""
    folder = tmp_path_factory.mktemp("demo") / "semid-demo"
    assert cli.main(["demo", "--output", str(folder), "--quiet"]) == 0
    return folder, json.loads((folder / "demo.json").read_text())


def test_embedded_items_are_real_and_complete():
    items = pq.read_table(showcase.DEMO_ITEMS)
    assert items.num_rows == 8192
    assert {"item_id", "title", "category", "embedding"} <= set(items.column_names)
    assert items.column("embedding").type.list_size == 256
    assert len(set(items.column("item_id").to_pylist())) == 8192
    assert "WordNet" in showcase.DEMO_ITEMS.with_name("LICENSE").read_text()


def test_similar_items_share_prefixes(demo):
    _, result = demo
    assert (result["num_items"], result["codebook_sizes"]) == (8192, list(showcase.DEMO_CODEBOOK_SIZES))
    chance, *agreement = result["prefix_agreement"]
    assert chance < 0.25
    assert agreement == sorted(agreement)  # 共享得越长越相似
    assert agreement[0] > 0.7
    assert min(result["utilization"]) > 0.9
    assert result["collision_rate"] < 0.1
    assert result["relative_mse"] < 0.65
    assert [verdict for verdict in result["verdicts"] if verdict["severity"] != "ok"] == []


def test_demo_shows_titles_in_both_languages(demo, capsys):
    folder, result = demo
    assert sorted(p.name for p in folder.iterdir()) == ["catalog", "demo.json", "model", "report.html"]
    check_demo_folder(folder)  # 再跑一遍 demo 可以替换它
    categories = [group["label"] for group in result["prefixes"]]
    assert categories[:3] == ["artifact", "plant", "animal"]
    title = result["prefixes"][0]["branches"][0]["titles"][0]
    command.show(result, Page("zh"))
    zh = capsys.readouterr().out
    command.show(result, Page("en"))
    en = capsys.readouterr().out
    assert "相似物品共享前缀" in zh
    assert "Similar items share a prefix" in en
    assert title in zh
    assert title in en
    assert f"semid info {result['model']}" in zh
    assert result["report"] == str(folder / "report.html")
    assert all(f"{text} {result['report']}" in out for text, out in (("打开）", zh), ("browser)", en)))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<html lang="zh">' in page
    assert "holdout_relative_mse" in page  # 训练曲线也在
    command.show({**result, "report": None}, Page("zh"))
    assert "pip install 'semid[report]'" in capsys.readouterr().out
    assert not any("一" <= c <= "鿿" for c in en)


def test_titles_with_markup_stay_text(demo, capsys):
    _, result = demo
    forged = json.loads(json.dumps(result))
    forged["prefixes"][0]["branches"][0]["titles"] = ["[red]x[/red]", "[/]"]
    command.show(forged, Page("zh"))
    assert "[red]x[/red] · [/]" in capsys.readouterr().out


def test_selection_rule_by_hand():
    # 类 a 占多数的 L1：0（3 个）、1（1 个）、2（2 个）→ 规模居中的是 2；类 b：3（2 个）、4（4 个）→ 偶数取小的一个
    first = [0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    second = [5, 5, 5, 5, 7, 6, 9, 8, 1, 1, 1, 1]
    labels = ["a", "a", "b", "a", "a", "a", "b", "b", "b", "b", "b", "b"]
    titles = [f"t{i}" for i in range(12)]
    chosen = showcase.choose_prefixes(np.stack([first, second], axis=1), labels, titles, num_branches=1, num_titles=1)
    assert [(g["label"], g["prefix"], g["num_items"], g["purity"]) for g in chosen] == [
        ("b", [3], 2, 1.0),
        ("a", [2], 2, 1.0),
    ]
    assert chosen[1]["branches"] == [{"prefix": [2, 6], "num_items": 1, "titles": ["t5"]}]


def test_prefix_agreement_by_hand_and_by_brute_force():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0]])
    labels = ["a", "b", "a", "c", "c"]
    # L1：0 组 3 对里 1 对同类，1 组 1 对同类 → 2/4；L1、L2：2 对里 1 对；全部 10 对里 2 对
    assert showcase.prefix_agreement(codes, labels, 1) == pytest.approx(2 / 4)
    assert showcase.prefix_agreement(codes, labels, 2) == pytest.approx(1 / 2)
    assert showcase.prefix_agreement(codes, labels, 0) == pytest.approx(2 / 10)
    assert showcase.prefix_agreement(np.array([[0], [1]]), ["a", "a"], 1) is None
    wide = np.repeat(codes, 40, axis=1) * (2**31 - 1)  # 位数超过 63 的路
    assert showcase.prefix_agreement(wide, labels, 80) == pytest.approx(1 / 2)
    assert doctest.testmod(showcase).failed == 0
