"""体检：每条结论在低的一头、高的一头、分不清的中间各说什么；没有定义的数字绝不变成「没有问题」。数字都是手写的。"""

from __future__ import annotations

import math
import re
from typing import Any, Dict, List, Tuple

import pytest

from algorithm.semantic_id.evaluation.verdicts import SEVERITIES, UNDEFINED, judge_health
from algorithm.semantic_id.metrics import records
from algorithm.semantic_id.metrics.records import behaviour, collisions, error, meaning, unseen, usage
from algorithm.semantic_id.metrics.records.base import Sentence

HEALTHY: Dict[str, Any] = {
    "num_items": 1000, "codebook_sizes": [16, 256], "utilization": [1.0, 1.0], "perplexity": [12.0, 200.0],
    "collision_rate": 0.005, "max_collision": 2, "relative_mse": 0.4, "duplicate_rate": 0.0,
    "level_relative_mse": [0.7, 0.4], "neighbour_share": [0.6, 0.1], "prefix_chance": [0.07, 0.001],
    "label_purity": [0.8, 0.9], "label_purity_chance": [0.3, 0.5], "num_labels": 5, "co_consumption_lift": [4.0, 9.0],
    "co_consumption_expected": [0.1, 0.01], "num_pairs": 5000,
    "embedding_hit_rate_10": 0.06, "embedding_hit_rate_10_chance": 0.01, "reconstruction_hit_rate_10": 0.05,
    "unseen_relative_mse": 0.42, "generalisation_ratio": 1.05, "unseen_num_items": 500,
    "assigned_collision_rate": 0.0, "num_not_in_catalog": 0, "training_holdout_relative_mse": 0.4,
}  # fmt: skip
BIG = {"codebook_sizes": [256, 256], "utilization": [1.0, 1.0], "perplexity": [200.0, 200.0]}
NAN = float("nan")
ALL_KEYS = set(records.by_key())

# (改哪些数字, 判它的指标, 代号, 档, 句子里该有的数字)；同一指标由低到高
TABLE: List[Tuple[Dict[str, Any], str, str, str, str]] = [
    # 相对误差
    ({"relative_mse": 0.0}, "relative_mse", "relative_mse_ok", "ok", "100%"),
    ({"relative_mse": 0.5}, "relative_mse", "relative_mse_ok", "ok", "50%"),
    ({"relative_mse": 0.64, "training_holdout_relative_mse": 0.6}, "relative_mse", "relative_mse_part", "ok", "36%"),
    ({"relative_mse": 0.75, "training_holdout_relative_mse": 0.7}, "relative_mse", "error_large", "watch", "25%"),
    ({"relative_mse": 0.95, "training_holdout_relative_mse": 0.9}, "relative_mse", "error_high", "bad", "0.95"),
    ({"relative_mse": 1.0, "training_holdout_relative_mse": 0.9}, "relative_mse", "error_above_mean", "bad", "1.00"),
    ({"relative_mse": 3.2, "training_holdout_relative_mse": 3.0}, "relative_mse", "error_above_mean", "bad", "3.20"),
    ({"relative_mse": None}, "relative_mse", "not_judged", "unknown", "relative_mse"),
    ({"relative_mse": NAN}, "relative_mse", "not_judged", "unknown", "relative_mse"),
    # 漂移：恰在线上不算，训练时误差为 0 也判得了，只差一点点不算
    ({"training_holdout_relative_mse": 0.32}, "relative_mse", "relative_mse_ok", "ok", "0.40"),
    ({"training_holdout_relative_mse": 0.3}, "relative_mse", "drift", "watch", "0.30"),
    ({"training_holdout_relative_mse": 0.0}, "relative_mse", "drift", "watch", "0.00"),
    ({"training_holdout_relative_mse": 1e-9, "relative_mse": 1e-3}, "relative_mse", "relative_mse_ok", "ok", "100%"),
    ({"training_holdout_relative_mse": None}, "relative_mse", "relative_mse_ok", "ok", "60%"),
    # 逐层
    ({}, "level_relative_mse", "level_relative_mse_ok", "ok", "0.70 · 0.40"),
    ({"level_relative_mse": [0.4, 0.396]}, "level_relative_mse", "level_idle", "watch", "L2 1.00%"),
    ({"level_relative_mse": [0.99, 0.98]}, "level_relative_mse", "level_idle", "watch", "L1 1.00% · L2 1.01%"),
    ({"level_relative_mse": [0.5, 0.6]}, "level_relative_mse", "level_worse", "watch", "L2 +20.0%"),
    ({"level_relative_mse": [0.0, 0.0]}, "level_relative_mse", "level_idle", "watch", "L2 0.00%"),
    ({"level_relative_mse": None}, "level_relative_mse", "not_judged", "unknown", "level_relative_mse"),
    # 冲突
    ({"collision_rate": 0.0}, "collision_rate", "collision_rate_ok", "ok", "0.00%"),
    ({"collision_rate": 0.05, "max_collision": 7}, "collision_rate", "collisions_some", "ok", "7"),
    ({"collision_rate": 0.1, "max_collision": 7}, "collision_rate", "collisions_some", "ok", "10.0%"),
    ({"collision_rate": 0.25, "max_collision": 7}, "collision_rate", "collisions_high", "watch", "7"),
    ({"collision_rate": 0.5}, "collision_rate", "collisions_high", "bad", "50.0%"),
    ({"collision_rate": 0.25, "duplicate_rate": 0.2}, "collision_rate", "duplicates", "watch", "20.0%"),
    ({"collision_rate": 0.25, "duplicate_rate": 0.12}, "collision_rate", "collisions_high", "watch", "25.0%"),
    ({"collision_rate": 0.9, "duplicate_rate": 0.9}, "collision_rate", "duplicates", "bad", "90.0%"),
    ({"num_items": 1, "collision_rate": 0.0}, "collision_rate", "collisions_unknown", "unknown", ""),
    ({"collision_rate": None}, "collision_rate", "not_judged", "unknown", "collision_rate"),
    # 去重之后
    ({}, "assigned_collision_rate", "assigned_collision_rate_ok", "ok", ""),
    ({"assigned_collision_rate": 1e-6}, "assigned_collision_rate", "catalog_not_unique", "bad", "<0.01%"),
    ({"assigned_collision_rate": 0.03}, "assigned_collision_rate", "catalog_not_unique", "bad", "3.00%"),
    ({"num_not_in_catalog": 7}, "assigned_collision_rate", "catalog_incomplete", "watch", "7"),
    ({"assigned_collision_rate": None}, "assigned_collision_rate", "not_judged", "unknown", ""),
    # 码字使用：用到的、扎堆的、物品比码字少的、一层只有一个编号的
    ({}, "perplexity", "perplexity_ok", "ok", "L1 0.75 · L2 0.78"),
    ({"utilization": [1.0, 0.55]}, "perplexity", "perplexity_ok", "ok", "55.0%"),
    ({"utilization": [1.0, 0.3]}, "perplexity", "utilization_low", "bad", "30.0%"),
    ({"perplexity": [12.0, 12.0]}, "perplexity", "perplexity_low", "bad", "12"),
    ({"perplexity": [12.0, 30.0]}, "perplexity", "perplexity_low", "watch", "L2"),
    ({"perplexity": [12.0, 40.0]}, "perplexity", "perplexity_ok", "ok", "L2 0.16"),
    ({"perplexity": [1.0, 200.0], "utilization": [1 / 16, 1.0]}, "perplexity", "level_constant", "bad", "L1"),
    ({"codebook_sizes": [1, 256], "perplexity": [1.0, 200.0]}, "perplexity", "level_constant", "bad", "L1"),
    # 20 个物品够不着 256 个码字：用到 19 个不是塌缩，用到 2 个是
    ({"num_items": 20, "utilization": [0.6, 19 / 256], "perplexity": [9.0, 18.0]}, "perplexity",
     "fewer_items_than_codewords", "watch", "20"),
    ({"num_items": 20, "utilization": [0.6, 2 / 256], "perplexity": [9.0, 2.0]}, "perplexity",
     "utilization_low", "bad", "L2"),
    # 64 个物品随机落进 32 个码字，期望用到 86%；用到 50% 不算死码字
    ({"num_items": 64, "codebook_sizes": [16, 32], "utilization": [1.0, 0.5], "perplexity": [9.0, 10.0]},
     "perplexity", "perplexity_ok", "ok", "50.0%"),
    ({"perplexity": [NAN, 200.0]}, "perplexity", "not_judged", "unknown", "perplexity"),
    ({"utilization": None}, "perplexity", "not_judged", "unknown", "utilization"),
    # 大小是推出来的：1024 个码字只用 2 个，看起来是 2 个全用上了
    ({"codebook_sizes": [2, 2], "utilization": [1.0, 1.0], "perplexity": [2.0, 2.0], "codebook_sizes_inferred": True},
     "perplexity", "codebook_sizes_inferred", "unknown", "2,2"),
    ({"codebook_sizes": [256, 256], "utilization": [2 / 256, 1.0], "perplexity": [2.0, 200.0],
      "codebook_sizes_inferred": True}, "perplexity", "utilization_low", "bad", "0.78%"),
    # 邻居：随机水平小、中、大、零
    ({"neighbour_share": [0.08, 0.0]}, "neighbour_share", "hierarchy_weak", "bad", "8.00%"),
    ({"neighbour_share": [0.0, 0.0]}, "neighbour_share", "hierarchy_weak", "bad", "0.00%"),
    ({"neighbour_share": [0.15, 0.0]}, "neighbour_share", "hierarchy_some", "watch", "7.00%"),
    ({}, "neighbour_share", "neighbour_share_ok", "ok", "60.0%"),
    ({"neighbour_share": [0.01, 0.0], "prefix_chance": [0.001, 0.0]}, "neighbour_share", "hierarchy_fine", "watch",
     "1.00%"),
    ({"neighbour_share": [0.491, 0.0], "prefix_chance": [0.5, 0.1]}, "neighbour_share", "hierarchy_weak", "bad",
     "49.1%"),
    ({"neighbour_share": [0.7, 0.0], "prefix_chance": [0.5, 0.1]}, "neighbour_share", "hierarchy_some", "watch",
     "70.0%"),
    ({"neighbour_share": [0.98, 0.0], "prefix_chance": [0.5, 0.1]}, "neighbour_share", "neighbour_share_ok", "ok",
     "98.0%"),
    ({"neighbour_share": [0.97, 0.0], "prefix_chance": [0.95, 0.1]}, "neighbour_share", "hierarchy_unknown",
     "unknown", "95.0%"),
    ({"neighbour_share": [1.0, 0.0], "prefix_chance": [1.0, 0.1]}, "neighbour_share", "hierarchy_unknown", "unknown",
     "100.0%"),
    ({"neighbour_share": [0.0, 0.0], "prefix_chance": [0.0, 0.0]}, "neighbour_share", "hierarchy_alone", "watch", ""),
    ({"num_items": 12}, "neighbour_share", "hierarchy_few_items", "unknown", "12"),
    ({"prefix_chance": None}, "neighbour_share", "not_judged", "unknown", "prefix_chance"),
    ({"neighbour_share": [NAN, 0.0]}, "neighbour_share", "not_judged", "unknown", "neighbour_share"),
    # 标签
    ({"label_purity": [0.3, 0.9]}, "label_purity", "labels_ignored", "watch", "30.0%"),
    ({"label_purity": [0.36, 0.9]}, "label_purity", "labels_ignored", "watch", "36.0%"),
    ({"label_purity": [0.38, 0.9]}, "label_purity", "label_purity_ok", "ok", "38.0%"),
    ({"label_purity": [1.0, 1.0]}, "label_purity", "label_purity_ok", "ok", "100.0%"),
    ({"label_purity": [0.94, 1.0], "label_purity_chance": [0.9, 0.9]}, "label_purity", "label_purity_ok", "ok",
     "94.0%"),
    ({"label_purity": [1.0, 1.0], "label_purity_chance": [0.97, 1.0]}, "label_purity", "labels_unknown", "unknown",
     "97.0%"),
    ({"label_purity": [1.0, 1.0], "label_purity_chance": [1.0, 1.0], "num_labels": 1}, "label_purity", "labels_one",
     "unknown", ""),
    ({"label_purity_chance": [None, None]}, "label_purity", "not_judged", "unknown", "label_purity_chance"),
    # 行为
    ({"co_consumption_lift": [0.0, None]}, "co_consumption_lift", "behaviour_weak", "bad", "0.00"),
    ({"co_consumption_lift": [1.05, None]}, "co_consumption_lift", "behaviour_weak", "bad", "1.05"),
    ({"co_consumption_lift": [1.3, 2.0]}, "co_consumption_lift", "behaviour_weak", "watch", "1.30"),
    ({}, "co_consumption_lift", "behaviour_coarse", "ok", "16"),
    ({**BIG, "co_consumption_lift": [5.4, 9.0]}, "co_consumption_lift", "behaviour_thin", "watch", "5.4"),
    ({**BIG, "co_consumption_lift": [16.5, 99.0]}, "co_consumption_lift", "co_consumption_lift_ok", "ok", "16.5"),
    # L1 两个码字：随机就有一半共享，提升度至多 2；1.0 是坏，1.4 走完了四成余地
    ({"co_consumption_lift": [1.0, 1.0], "co_consumption_expected": [0.5, 0.1]}, "co_consumption_lift",
     "behaviour_weak", "bad", "1.00"),
    ({"co_consumption_lift": [1.1, 1.0], "co_consumption_expected": [0.5, 0.1]}, "co_consumption_lift",
     "behaviour_weak", "watch", "1.10"),
    ({"co_consumption_lift": [1.4, 1.0], "co_consumption_expected": [0.5, 0.1]}, "co_consumption_lift",
     "behaviour_coarse", "ok", "1.4"),
    ({"co_consumption_lift": [1.02, 1.0], "co_consumption_expected": [0.95, 0.1]}, "co_consumption_lift",
     "behaviour_unknown", "unknown", "95.0%"),
    ({"num_pairs": 3}, "co_consumption_lift", "behaviour_few_pairs", "unknown", "3"),
    ({"co_consumption_lift": [None, None]}, "co_consumption_lift", "not_judged", "unknown", "co_consumption_lift"),
    # 命中率
    ({"embedding_hit_rate_10": 0.0}, "embedding_hit_rate_10", "features_without_behaviour", "watch", "0.00%"),
    ({"embedding_hit_rate_10": 0.015}, "embedding_hit_rate_10", "features_without_behaviour", "watch", "1.50%"),
    ({"reconstruction_hit_rate_10": 0.02}, "embedding_hit_rate_10", "hit_rate_lost", "watch", "2.00%"),
    ({"reconstruction_hit_rate_10": 0.045}, "embedding_hit_rate_10", "embedding_hit_rate_10_ok", "ok", "6.00%"),
    ({"reconstruction_hit_rate_10": None}, "embedding_hit_rate_10", "embedding_hit_rate_10_ok", "ok", "1.00%"),
    ({"embedding_hit_rate_10": 0.9, "embedding_hit_rate_10_chance": 0.7}, "embedding_hit_rate_10", "hit_rate_unknown",
     "unknown", "70.0%"),
    ({"num_pairs": 99}, "embedding_hit_rate_10", "behaviour_few_pairs", "unknown", "99"),
    ({"embedding_hit_rate_10": None}, "embedding_hit_rate_10", "not_judged", "unknown", "embedding_hit_rate_10"),
    # 泛化
    ({"generalisation_ratio": 0.5, "unseen_relative_mse": 0.2}, "generalisation_ratio", "generalisation_easier",
     "unknown", "0.50"),
    ({}, "generalisation_ratio", "generalisation_ratio_ok", "ok", "1.05"),
    ({"generalisation_ratio": 1.5, "unseen_relative_mse": 0.6}, "generalisation_ratio", "generalisation_gap", "watch",
     "1.50"),
    ({"generalisation_ratio": 2.5, "unseen_relative_mse": 1.0}, "generalisation_ratio", "generalisation_gap", "bad",
     "1.00"),
    ({"generalisation_ratio": 3.0, "relative_mse": 0.001, "unseen_relative_mse": 0.003}, "generalisation_ratio",
     "generalisation_ratio_ok", "ok", "3.00"),
    ({"unseen_num_items": 5}, "generalisation_ratio", "generalisation_few_items", "unknown", "5"),
    ({"generalisation_ratio": None}, "generalisation_ratio", "not_judged", "unknown", "generalisation_ratio"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "metric", "code", "severity", "number"), TABLE)
def test_both_ends_and_the_blind_spot(changes, metric, code, severity, number, monkeypatch):
    monkeypatch.setattr(records, "METRICS", (records.by_key()[metric],))  # 只让它说话
    found = judge_health({**HEALTHY, **changes})
    (verdict,) = [v for v in found if v.code == code]
    assert verdict.severity == severity
    assert number in verdict.zh
    assert number in verdict.en
    assert verdict.metric in ALL_KEYS
    if severity == "unknown":
        assert "ok" not in {v.severity for v in found}  # 弃权的不许再说一句好话
        assert verdict.zh.startswith("没有判断")
        assert verdict.en.startswith("not judged")


FAMILIES = (behaviour, collisions, error, meaning, unseen, usage)
SENTENCES = {v.code: v for m in FAMILIES for v in vars(m).values() if isinstance(v, Sentence)} | {
    UNDEFINED.code: UNDEFINED
}


def test_every_sentence_is_provoked():
    assert {code for _, _, code, _, _ in TABLE} == set(SENTENCES)


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_both_languages_give_the_same_figures_and_end_the_sentence(sentence):
    holes = [sorted(set(re.findall(r"\{(\w+)", text))) for text in (sentence.zh, sentence.en)]
    if sentence is UNDEFINED:  # 名字各用各的语言
        holes = [[hole for hole in part if hole not in ("zh", "en")] for part in holes]
    assert holes[0] == holes[1]
    assert sentence.zh.endswith("。")
    assert sentence.en.endswith(".")


def test_healthy_figures_are_ok_and_behaviour_speaks_first():
    verdicts = judge_health(HEALTHY)
    assert {verdict.severity for verdict in verdicts} == {"ok"}
    judges = [metric.key for metric in records.METRICS if metric.judge is not None]
    assert [verdict.metric for verdict in verdicts] == judges
    assert judges[0] == "co_consumption_lift"


def test_what_was_not_asked_for_is_not_judged():
    few = (
        "num_items",
        "codebook_sizes",
        "utilization",
        "perplexity",
        "collision_rate",
        "max_collision",
        "relative_mse",
    )
    verdicts = judge_health({key: HEALTHY[key] for key in few})
    assert sorted(verdict.metric for verdict in verdicts) == ["collision_rate", "perplexity", "relative_mse"]


@pytest.mark.parametrize("missing", [None, NAN, math.inf, []])
@pytest.mark.parametrize("key", [key for key, value in HEALTHY.items() if isinstance(value, (float, list))])
def test_an_undefined_figure_never_ends_in_a_crash_or_a_good_word_about_itself(key, missing):
    verdicts = judge_health({**HEALTHY, key: missing})
    assert {verdict.severity for verdict in verdicts} <= set(SEVERITIES)
    about = [verdict for verdict in verdicts if verdict.metric == key]
    assert all(verdict.severity == "unknown" for verdict in about), about


def test_the_reason_is_told():
    (verdict,) = [
        v for v in judge_health({**HEALTHY, "relative_mse": None, "relative_mse_reason": "never trained"})
        if v.metric == "relative_mse"
    ]  # fmt: skip
    assert "never trained" in verdict.en


def test_a_bad_level_is_told_although_sizes_were_inferred():
    figures = {**HEALTHY, "utilization": [1.0, 0.1], "codebook_sizes_inferred": True}
    mine = [v.code for v in judge_health(figures) if v.metric in ("utilization", "perplexity")]
    assert mine == ["utilization_low", "codebook_sizes_inferred"]
