"""指标：手算值、不变量、与慢而显然的写法相符、错误信息。"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.metrics import codes as metrics

CODES = [[1, 1, 0], [0, 5, 0], [1, 1, 0], [1, 1, 0], [0, 5, 1]]  # 3 个物品挤在 (1, 1, 0)


def test_figures_computed_by_hand():
    assert metrics.collision_rate(CODES) == pytest.approx(1 - 3 / 5)
    assert metrics.collided_item_rate(CODES) == pytest.approx(3 / 5)
    assert metrics.max_collision(CODES) == 3
    counts = metrics.code_counts([0, 0, 0, 2], 4)
    assert counts.tolist() == [3, 0, 1, 0]
    assert metrics.utilization(counts) == 0.5
    assert metrics.perplexity(counts) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    # 升序 0,0,1,3，权 −3,−1,1,3：(1 + 9) / (4 × 4)
    assert metrics.gini(counts) == pytest.approx(10 / 16)
    assert metrics.relative_mse(3.0, 12.0) == 0.25


def test_extremes_of_the_ranges():
    one, even = [0, 0, 7, 0], [3, 3, 3, 3]
    assert (metrics.perplexity(one), metrics.perplexity(even)) == (1.0, pytest.approx(4.0))
    assert metrics.perplexity(even) <= 4
    assert (metrics.gini(one), metrics.gini(even)) == (0.75, 0.0)
    assert metrics.collision_rate([[3, 4]]) == 0.0
    assert metrics.relative_mse(0.0, 0.0) is None


def test_perplexity_does_not_lose_small_classes_at_a_billion_rows():
    counts = np.array([10**9, 1])
    p = 1 / (10**9 + 1)
    expected = math.exp(-(1 - p) * math.log1p(-p) - p * math.log(p))
    assert metrics.perplexity(counts) == pytest.approx(expected, rel=1e-12)


def test_codes_of_more_than_63_bits_are_still_counted_exactly():
    big = 2**31 - 1
    codes = np.array([[big, big, big], [big, big, big - 1], [big, big, big], [0, big, big]], dtype=np.int64)
    assert metrics.group_sizes(codes).tolist() == [1, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.tuples(*[st.one_of(st.integers(0, 3), st.integers(2**31 - 3, 2**31 - 1))] * width),
            min_size=1,
            max_size=30,
        )
    )
)
def test_collisions_agree_with_a_dictionary(rows):
    groups = {row: rows.count(row) for row in rows}
    assert metrics.group_sizes(rows).tolist() == [groups[key] for key in sorted(groups)]
    assert metrics.collision_rate(rows) == pytest.approx(1 - len(groups) / len(rows))
    assert metrics.collided_item_rate(rows) == pytest.approx(sum(n for n in groups.values() if n > 1) / len(rows))
    assert metrics.max_collision(rows) == max(groups.values())
    assert metrics.collision_rate(rows) <= metrics.collided_item_rate(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_spread_figures_ignore_order_and_scale(counts):
    shuffled = [7 * n for n in reversed(counts)]
    for figure in (metrics.perplexity, metrics.gini, metrics.utilization):
        assert figure(shuffled) == pytest.approx(figure(counts), abs=1e-12)
    pairs = sum(abs(a - b) for a in counts for b in counts)  # 基尼系数的另一个定义
    assert metrics.gini(counts) == pytest.approx(pairs / (2 * len(counts) * sum(counts)), abs=1e-12)
    assert 1 <= metrics.perplexity(counts) <= np.count_nonzero(counts) + 1e-9


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: metrics.code_counts([0, 4], 4), ValueError, r"row 1 is 4; codes must be in \[0, 4\)"),
        (lambda: metrics.code_counts([0, -1], 4), ValueError, "row 1 is -1"),
        (lambda: metrics.code_counts([0.5], 4), TypeError, "integer dtype"),
        (lambda: metrics.code_counts([[0]], 4), ValueError, r"shape \(N,\)"),
        (lambda: metrics.utilization([]), ValueError, "K >= 1"),
        (lambda: metrics.perplexity([0, 0]), ValueError, "at least one row"),
        (lambda: metrics.gini([0, 0]), ValueError, "at least one row"),
        (lambda: metrics.gini([1, -1]), ValueError, "negative entry -1"),
        (lambda: metrics.group_sizes([[0, -2]]), ValueError, "negative entry -2"),
        (lambda: metrics.collision_rate(np.zeros((0, 3), int)), ValueError, "N, L >= 1"),
        (lambda: metrics.relative_mse(float("nan"), 1.0), ValueError, "must be >= 0"),
    ],
)
def test_doors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_examples_in_the_docstrings():
    import doctest

    result = doctest.testmod(metrics)
    assert result.attempted >= 10
    assert result.failed == 0
