"""评估的新数字：与蛮力一致、手算、与分块无关；抽样的说清抽了多少。"""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.evaluation import passes, tables
from algorithm.semantic_id.evaluation.measure import figures_of
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.metrics import additive_means, neighbours
from algorithm.semantic_id.metrics import behaviour as metrics_behaviour
from algorithm.semantic_id.metrics import codes as metrics
from algorithm.semantic_id.metrics import prefix_means as means_room
from algorithm.semantic_id.metrics.additive_means import additive_errors
from algorithm.semantic_id.metrics.neighbours import NearestSoFar, exact_neighbours
from algorithm.semantic_id.metrics.prefix_means import prefix_mean_errors
from algorithm.semantic_id.metrics.records.measured import Labels, Measured
from algorithm.semantic_id.tests.fake_model import FakeModel
from algorithm.semantic_id.training import advise

RNG = np.random.default_rng(0)
X = RNG.normal(5.0, 1.0, (60, 4)).astype(np.float32)
CODES = RNG.integers(0, 3, (60, 3)).astype(np.int32)
MEAN = X.astype(np.float64).mean(axis=0)


def test_doctests():
    for module in (metrics_behaviour, neighbours, advise):
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0


@pytest.mark.parametrize("block", [1, 7, 60])
@pytest.mark.parametrize("unit", [False, True])
def test_streamed_neighbours_agree_with_brute_force(block, unit):
    rows = np.array([0, 3, 17, 59])
    x = X / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True) if unit else X
    near = NearestSoFar(X[rows], rows, 5, unit=unit)
    for start in range(0, 60, block):
        near.look(X[start : start + block], start)
    assert near.result().tolist() == exact_neighbours(x, 5, rows).tolist()


def test_streamed_neighbours_ties_go_to_the_lowest_row_and_too_few_is_an_error():
    x = np.zeros((6, 2), np.float32)
    near = NearestSoFar(x[[2]], [2], 3)
    near.look(x[:4], 0)
    near.look(x[4:], 4)
    assert near.result().tolist() == [[0, 1, 3]]
    with pytest.raises(ValueError, match="num_neighbours=9 needs more rows"):
        short = NearestSoFar(x[[2]], [2], 9)
        short.look(x, 0)
        short.result()


@pytest.mark.parametrize("block_rows", [7, 60])
def test_prefix_means_by_brute_force(block_rows):
    got = prefix_mean_errors(open_vectors(X), CODES, MEAN, block_rows=block_rows)
    for length, result in enumerate(got, 1):
        error, alone = 0.0, 0
        for prefix in np.unique(CODES[:, :length], axis=0):
            members = X[(CODES[:, :length] == prefix).all(axis=1)].astype(np.float64)
            error += np.square(members - members.mean(axis=0)).sum()
            alone += len(members) == 1
        assert result.error_sum == pytest.approx(error, rel=1e-9)
        assert result.alone_rate == alone / 60
        assert result.sampled_groups is None


def test_prefix_means_on_a_sample_of_groups_say_so(monkeypatch):
    monkeypatch.setattr(means_room, "MAX_SUM_BYTES", 4 * 8 * 2)
    exact = prefix_mean_errors(open_vectors(X), CODES, MEAN)[0]
    assert exact.sampled_groups == 2
    monkeypatch.undo()
    assert exact.error_sum == pytest.approx(prefix_mean_errors(open_vectors(X), CODES, MEAN)[0].error_sum, rel=0.3)


@pytest.mark.parametrize("block_rows", [7, 60])
def test_additive_errors_by_brute_force(block_rows):
    sums, errors = additive_errors(open_vectors(X), CODES, (3, 3, 4), MEAN, block_rows=block_rows)
    left = X - MEAN
    for level in range(3):
        for code in range(3):
            mine = CODES[:, level] == code
            left[mine] -= left[mine].mean(axis=0)
        assert sums[level] == pytest.approx(np.square(left).sum(), rel=1e-9)
    assert errors == pytest.approx(np.square(left).sum(axis=1), rel=1e-5)


def test_additive_errors_recover_residual_codebooks_and_expose_random_codes():
    books = [RNG.normal(0, 4, (4, 8)), RNG.normal(0, 0.5, (4, 8))]
    codes = RNG.integers(0, 4, (2000, 2))
    x = (books[0][codes[:, 0]] + books[1][codes[:, 1]]).astype(np.float32)
    mean = x.astype(np.float64).mean(axis=0)
    total = np.square(x - mean).sum()
    assert additive_errors(open_vectors(x), codes, (4, 4), mean)[0][-1] / total < 0.01
    random = RNG.integers(0, 1000, (2000, 2))  # 几乎人人独占 ID，「同 ID 平均」会给出 0
    assert additive_errors(open_vectors(x), random, (1000, 1000), mean)[0][-1] / total > 0.2
    assert prefix_mean_errors(open_vectors(x), random, mean)[1].error_sum / total < 0.01
    with pytest.raises(ValueError, match="renumber the codes"):
        additive_errors(open_vectors(x), codes, (2**27, 4), mean)
    assert additive_means.MAX_TABLE_BYTES == 2**30


def test_labels_beside_shuffled_labels():
    codes = np.repeat(np.arange(10), 30)[:, None]
    rows = np.arange(299)  # 最后一个没有标签
    got = figures_of(Measured(codes, (10,), labels=Labels(rows, rows // 60)))
    assert got["label_purity"] == [1.0]
    assert 0.2 < got["label_purity_chance"][0] < 0.5
    assert got["nmi"][0] > 0.8 > 0.2 > got["nmi_chance"][0]
    assert "mse" not in got  # 没有量的不在结果里


def test_second_pass_by_brute_force():
    model = FakeModel(sizes=(4, 3), dim=4, mean=[0.0] * 4)
    source = open_vectors(X)
    encoded = passes.encode_all(model, source, block_rows=7)
    pairs = np.array([[0, 1], [1, 2], [5, 9]])
    rows, partners = metrics_behaviour.co_consumed(pairs, 60, passes.NUM_QUERIES, 0)
    around = passes.look_around(encoded, source, model=model, hit_rows=rows, block_rows=7)
    assert around.neighbours.tolist() == exact_neighbours(X, 10).tolist()
    unit = X / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    near = exact_neighbours(unit, 59, rows)
    assert around.hits["features"].tolist() == near.tolist()
    hits = around.hits["features"]
    figures = figures_of(Measured(encoded.codes, (4, 3), pairs=pairs, partners=partners, near_features=hits))
    want = np.mean([len(set(near[i, :10]) & set(mine)) / len(mine) for i, mine in enumerate(partners)])
    assert figures["embedding_hit_rate_10"] == pytest.approx(want)
    assert figures["embedding_hit_rate_10_chance"] == 10 / 59
    assert figures["embedding_hit_rate_100"] is None  # 只有 59 个别的物品
    assert "reconstruction_hit_rate_10" not in figures
    centred = X - MEAN
    values, axes = np.linalg.eigh(centred.T @ centred)
    for axis in (0, 1):  # 符号定死：每个方向绝对值最大的分量为正，地图不会翻转
        direction = axes[:, -1 - axis] * np.sign(axes[np.abs(axes[:, -1 - axis]).argmax(), -1 - axis])
        assert around.plane[:, axis] == pytest.approx(centred @ direction, abs=1e-4)
    assert encoded.own_deviation == pytest.approx(np.square(centred).sum(), rel=1e-9)


def test_duplicates_are_counted_byte_for_byte():
    x = np.concatenate([X, X[:5], X[:1] + 1e-3]).astype(np.float32)
    encoded = passes.take_codes(np.zeros((66, 1), np.int32), open_vectors(x), block_rows=7)
    assert encoded.duplicates == 5


def test_chosen_items_hold_the_worst_and_the_crowded():
    codes = np.stack([np.arange(1000) % 500, np.arange(1000) % 500], axis=1)
    codes[:4] = 499, 3
    errors = np.linspace(0, 1, 1000)
    errors[5] = np.nan
    rows, how = tables.choose_items(codes, errors, limit=400)
    assert len(rows) == 400
    assert set(range(4)) <= set(rows)
    assert set(range(800, 1000)) <= set(rows)
    assert "sample of 400" in how["how"]
    again = [tables.choose_items(codes, None, limit=400)[0].tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert tables.choose_items(codes, errors)[1] == {"rows": 1000, "how": "all"}
    for limit in (1, 50, 120, 999):  # 一定要留的比 limit 还多，也不超
        assert len(np.unique(tables.choose_items(codes, errors, limit=limit)[0])) == limit


def test_codeword_table_by_hand():
    codes = np.array([[0, 1], [0, 0], [2, 0]], np.int32)
    plane = np.array([[0, 2], [2, 4], [5, 6]], np.float32)
    got = tables.codeword_table(codes, (3, 2), plane, pa.array(["a", "b", "b"])).to_pylist()
    assert [(r["level"], r["code"], r["count"], r["label"], r["map_x"], r["map_y"]) for r in got] == [
        (1, 0, 2, "a", 1.0, 3.0), (1, 1, 0, None, None, None), (1, 2, 1, "b", 5.0, 6.0),
        (2, 0, 2, "b", None, None), (2, 1, 1, "a", None, None),
    ]  # fmt: skip


def test_id_gini_is_gini_over_used_ids_only():
    codes = [[0, 0]] * 3 + [[7, 7]]
    assert metrics_behaviour.id_gini(codes) == metrics.gini([1, 3]) == 0.25
    with pytest.raises(ValueError, match="k=3 is out of range"):
        metrics_behaviour.embedding_hit_rate([[1, 2]], [np.array([1])], 3)
    rows, partners = metrics_behaviour.co_consumed([[0, 1], [2, 3], [4, 5]], 6, 2, 0)
    assert len(rows) == len(partners) == 2


def mixture(num_items, clusters, dim=16):
    rng = np.random.default_rng(1)
    return (rng.normal(0, 5, (clusters, dim))[rng.integers(0, clusters, num_items)]
            + rng.normal(0, 0.05, (num_items, dim))).astype(np.float32)  # fmt: skip


def test_advice_shrinks_when_doubling_stops_helping():
    # 只有 16 个真正的簇：起点 L1 是 64，多出来的码字在留出行上只是在背噪声
    got = advise.advise_sizes(open_vectors(mixture(4000, 16)), num_levels=2)
    first = got["levels"][0]
    assert (first["rule"], first["decision"]) == (64, "shrink")
    assert 16 <= first["size"] < 64
    assert first["removed"] > 0.99
    assert got == advise.advise_sizes(open_vectors(mixture(4000, 16)), num_levels=2)
    assert got["capacity_ratio"] == np.prod(got["codebook_sizes"]) / 4000


def test_advice_on_a_sample_keeps_the_rows_per_codeword(monkeypatch):
    x = RNG.normal(size=(5000, 4)).astype(np.float32)
    monkeypatch.setattr(advise, "MAX_SAMPLE", 625)
    (level,) = advise.advise_sizes(open_vectors(x), num_levels=1)["levels"]
    assert (level["rule"], level["measured_at"] * level["rule"] // level["size"]) == (128, 16)
    assert {figures["size"] for figures in level["tried"]} >= {8, 16}


@pytest.mark.parametrize(
    ("num_items", "sizes"),
    [
        (100, [8, 8, 8]),  # √100 = 10；100 / 48 养不起更多
        (4000, [64, 64, 64]),  # 4000 / 48 = 83
        (12_101, [256, 256, 256]),  # √N = 110，但 N / 48 = 252 养得起
        (117_791, [256, 1024, 2048]),  # √N = 343，N / 48 = 2454：下限 256 不起作用
        (1_000_000, [1024, 4096, 16384]),
    ],
)
def test_no_level_is_smaller_than_256_where_the_rows_can_feed_it(num_items, sizes):
    assert advise.rule_sizes(num_items, 3) == sizes


def test_advice_doors():
    for bad, text in (
        (np.zeros((200, 2), np.float32), "same vector"),
        (np.zeros((20, 2), np.float32), "at least 100"),
    ):
        with pytest.raises(ValueError, match=text):
            advise.advise_sizes(open_vectors(bad))
    with pytest.raises(ValueError, match=r"use 1\.\.8"):
        advise.advise_sizes(open_vectors(X), num_levels=0)
