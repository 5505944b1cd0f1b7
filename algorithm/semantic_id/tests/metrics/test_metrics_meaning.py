"""语义指标：手算值、与慢而显然的写法相符、改名与重排的不变量、错误信息。"""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.metrics import meaning, neighbours

# 六个物品，两层；L1 组 {0,1,2}、{3,4}、{5}；(L1, L2) 组 {0,1}、{2}、{3,4}、{5}
CODES = np.array([[4, 1], [4, 1], [4, 0], [0, 2], [0, 2], [7, 1]])
LABELS = ["a", "a", "b", "b", "b", "c"]


def test_prefix_groups_by_hand_and_for_codes_too_wide_to_pack():
    assert meaning.prefix_groups(CODES, 1).tolist() == [1, 1, 1, 0, 0, 2]
    assert meaning.prefix_groups(CODES, 2).tolist() == [2, 2, 1, 0, 0, 3]
    wide = CODES.astype(np.int64)[:, [0, 1, 1]] + np.array([0, 2**31 - 9, 2**31 - 9])
    assert meaning.prefix_groups(wide * 2, 3).tolist() == [2, 2, 1, 0, 0, 3]


def test_purity_and_nmi_by_hand():
    groups = meaning.prefix_groups(CODES, 1)
    assert meaning.label_purity(groups, LABELS) == pytest.approx((2 + 2 + 1) / 6)
    assert meaning.label_purity(groups, ["x"] * 6) == 1.0
    # 两边的件数都是 3、2、1（标签 b、a、c）：H = −(½ ln ½ + ⅓ ln ⅓ + ⅙ ln ⅙)
    entropy = -(math.log(1 / 2) / 2 + math.log(1 / 3) / 3 + math.log(1 / 6) / 6)
    # 非空的格子：(组 1, a) 2 件、(组 1, b) 1、(组 0, b) 2、(组 2, c) 1；期望为 3·2/6、3·3/6、2·3/6、1·1/6
    information = (2 * math.log(2 / 1) + math.log(1 / 1.5) + 2 * math.log(2 / 1) + math.log(6)) / 6
    assert meaning.normalized_mutual_information(groups, LABELS) == pytest.approx(information / entropy)


def test_nmi_agrees_with_published_values():
    # scikit-learn 1.9 normalized_mutual_info_score（默认 arithmetic），抄录其结果
    first, second = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]
    assert meaning.normalized_mutual_information(first, second) == pytest.approx(0.5158037429793888, abs=1e-12)
    first, second = [1, 1, 2, 2, 3, 3, 3, 3], [1, 2, 1, 2, 1, 1, 2, 2]
    assert meaning.normalized_mutual_information(first, second) == pytest.approx(0.0, abs=1e-12)
    assert meaning.normalized_mutual_information([3, 3], ["a", "a"]) == 1.0
    assert meaning.normalized_mutual_information([3, 3], ["a", "b"]) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25), st.randoms())
def test_purity_and_nmi_ignore_names_and_row_order(rows, random):
    groups, labels = (np.array(column) for column in zip(*rows, strict=True))
    names = random.sample(range(100), 4)
    order = np.array(random.sample(range(len(rows)), len(rows)))
    for figure in (meaning.label_purity, meaning.normalized_mutual_information):
        value = figure(groups, labels)
        assert 0 <= value <= 1
        assert figure(np.array(names)[groups], [f"类{label}" for label in labels]) == pytest.approx(value, abs=1e-12)
        assert figure(groups[order], labels[order]) == pytest.approx(value, abs=1e-12)
    nmi = meaning.normalized_mutual_information
    assert nmi(groups, labels) == pytest.approx(nmi(labels, groups), abs=1e-12)  # 对称


def brute_neighbours(x, count):
    distances = np.square(x[:, None] - x[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def test_neighbours_agree_with_brute_force_where_ties_abound(monkeypatch):
    x = np.random.default_rng(3).integers(0, 3, (60, 4)).astype(np.float32)  # 并列与逐位相同的行到处都是
    expected = brute_neighbours(x.astype(np.float64), 7)
    assert (neighbours.exact_neighbours(x, 7) == expected).all()
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 8 * 60 * 3)  # 每块三行
    assert (neighbours.exact_neighbours(x, 7) == expected).all()
    assert (neighbours.exact_neighbours(x, 7, queries=[58, 0, 7]) == expected[[58, 0, 7]]).all()


def test_neighbours_far_from_the_origin_are_still_exact():
    # 内积公式在这里分不清远近：1e7 处的平方是 1e14，float64 的间隔 0.016，而相邻两行的距离平方不到 0.01
    x = np.random.default_rng(5).permutation(np.cumsum(np.linspace(0.01, 0.09, 40)))[:, None] + 1e7
    assert neighbours.exact_neighbours(x, 3).tolist() == brute_neighbours(x - 1e7, 3).tolist()


def test_neighbour_share_and_chance_by_hand():
    near = [[1, 2], [0, 3], [1, 0], [4, 5], [3, 5], [4, 0]]
    # L1 同组：2、1、2、1、1、0；(L1, L2) 同组：1、1、0、1、1、0
    assert meaning.neighbour_share(CODES, near) == pytest.approx([7 / 12, 4 / 12])
    assert meaning.neighbour_share(CODES, near[1:3], queries=[1, 2]) == pytest.approx([3 / 4, 1 / 4])
    # 15 个无序对里：L1 同组 3 + 1，(L1, L2) 同组 1 + 1
    assert meaning.prefix_chance(CODES) == pytest.approx([4 / 15, 2 / 15])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=12))
def test_chance_is_the_share_among_all_other_items(rows):
    everyone = [[j for j in range(len(rows)) if j != i] for i in range(len(rows))]
    assert meaning.prefix_chance(rows) == pytest.approx(meaning.neighbour_share(rows, everyone))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.permutations(range(6)).map(lambda p: p[:2]), min_size=2, max_size=5))
def test_expected_co_consumption_is_the_mean_over_all_permutations(pairs):
    pairs = np.array(pairs)
    observed, expected, lift = meaning.co_consumption(CODES, pairs)
    shuffled = [
        np.stack([pairs[:, 0], pairs[list(order), 1]], 1) for order in itertools.permutations(range(len(pairs)))
    ]
    drawn = np.concatenate(shuffled)
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]  # 随机对里也只算两个不同的物品
    for level in range(2):
        shares = [(CODES[p[:, 0], : level + 1] == CODES[p[:, 1], : level + 1]).all(1).mean() for p in (pairs, drawn)]
        assert (observed[level], expected[level]) == pytest.approx(shares)
        assert lift[level] == (pytest.approx(shares[0] / shares[1]) if shares[1] > 0 else None)


def test_a_popular_item_is_no_merit():
    # 0 号物品与谁都一起出现，而它所在的组只是大：提升应为 1
    codes = [[0], [0], [0], [1]]
    pairs = [[0, 1], [0, 2], [0, 3]]
    assert meaning.co_consumption(codes, pairs)[2] == pytest.approx([1.0])


def test_sampled_rows_are_distinct_sorted_and_seeded():
    rows = neighbours.sample_rows(1000, 50, 7)
    assert len(set(rows.tolist())) == 50
    assert (np.diff(rows) > 0).all()
    assert (rows == neighbours.sample_rows(1000, 50, 7)).all()
    assert (rows != neighbours.sample_rows(1000, 50, 8)).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: meaning.prefix_groups(CODES, 3), ValueError, "length=3 is out of range.*use 1..2"),
        (lambda: meaning.prefix_groups(CODES, 0), ValueError, "length=0"),
        (lambda: meaning.prefix_groups(CODES / 2, 1), TypeError, "integer dtype"),
        (lambda: meaning.label_purity([0, 1], ["a"]), ValueError, "groups has 2 rows but labels has 1"),
        (lambda: meaning.label_purity([], []), ValueError, r"shape \(N,\)"),
        (lambda: meaning.label_purity([0.5], ["a"]), TypeError, "groups must hold integers"),
        (lambda: meaning.normalized_mutual_information([0], [None]), TypeError, "drop rows without a label"),
        (lambda: neighbours.exact_neighbours([[0.0], [1.0]], 2), ValueError, "with 2 rows use 1..1"),
        (lambda: neighbours.exact_neighbours([[0.0], [math.nan]], 1), ValueError, "row 1 has NaN"),
        (lambda: neighbours.exact_neighbours([0.0, 1.0], 1), ValueError, r"shape \(N, D\)"),
        (lambda: neighbours.exact_neighbours([[0.0], [1.0]], 1, queries=[2]), ValueError, r"entry 0 is 2.*\[0, 2\)"),
        (lambda: neighbours.sample_rows(5, 0, 0), ValueError, ">= 1"),
        (lambda: meaning.neighbour_share(CODES, [[0]]), ValueError, "Q=6"),
        (lambda: meaning.neighbour_share(CODES, [[9]], queries=[0]), ValueError, "neighbours entry 0 is 9"),
        (lambda: meaning.neighbour_share([1, 2], [[0]]), ValueError, r"shape \(N, L\)"),
        (lambda: meaning.prefix_chance([[1]]), ValueError, "at least two items"),
        (lambda: meaning.co_consumption(CODES, [[0, 1], [2, 2]]), ValueError, "row 1 pairs item 2 with itself"),
        (lambda: meaning.co_consumption(CODES, [[0, 6]]), ValueError, r"\[0, 6\)"),
        (lambda: meaning.co_consumption(CODES, [[0.0, 1.0]]), TypeError, "integer dtype"),
        (lambda: meaning.co_consumption(CODES, np.zeros((0, 2), int)), ValueError, r"shape \(P, 2\)"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("module", [meaning, neighbours])
def test_the_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0
