"""共同消费的图、因子与合成：手算的小图、与稠密分解一致、同样的日志同样的字节。"""

from __future__ import annotations

import math
from typing import Any, List

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.behaviour import factors, fuse, graph, recipe
from algorithm.semantic_id.behaviour.log import Log
from algorithm.semantic_id.behaviour.reader import read_log


def dense(sequences: List[List[int]], num_items: int, window: int, decay: float) -> np.ndarray:
    """照定义数一遍。"""
    out = np.zeros((num_items, num_items))
    for one in sequences:
        for a, left in enumerate(one):
            for b in range(a + 1, min(a + window, len(one) - 1) + 1):
                if left != one[b]:
                    out[left, one[b]] += decay ** (b - a - 1)
                    out[one[b], left] += decay ** (b - a - 1)
    return out


def made(seed: int, num_items: int = 30) -> List[List[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, num_items, rng.integers(1, 9)).tolist() for _ in range(60)]


@pytest.mark.parametrize("window", [1, 3, 20])
def test_edges_follow_the_definition(window: int) -> None:
    sequences = made(window)
    edges = graph.co_consumption(Log.of_sequences(sequences, 30), window, 0.6)
    np.testing.assert_allclose(edges.toarray(), dense(sequences, 30, window, 0.6), rtol=1e-6)
    assert edges.has_sorted_indices
    assert edges.dtype == np.float32


def test_a_transition_by_hand() -> None:
    # 0–1 两次，1–2 一次；n = 2, 2, 1。行 1：2 / (√4 + 10) 对 1 / (√2 + 10)
    log = Log.of_sequences([[0, 1], [0, 1, 2]], 4)
    found = graph.to_transition(graph.co_consumption(log, 1), log.counts, 10.0).toarray()
    left, right = 2 / 12, 1 / (math.sqrt(2) + 10)
    np.testing.assert_allclose(found[1], [left / (left + right), 0, right / (left + right), 0], rtol=1e-6)
    np.testing.assert_array_equal(found[0], [0, 1, 0, 0])
    np.testing.assert_array_equal(found[3], 0)  # 没有行为的物品没有邻居，不是 NaN


def test_neighbour_means_by_hand() -> None:
    log = Log.of_sequences([[0, 1, 2]], 4)
    means = graph.neighbour_means(
        graph.to_transition(graph.co_consumption(log, 1), log.counts), np.array([[2.0], [7.0], [4.0], [9.0]])
    )
    assert means.tolist() == [[7.0], [3.0], [7.0], [0.0]]


def test_weighted_pairs_are_edges() -> None:
    table = pa.table({"a": [1, 2, 0], "b": [0, 1, 1], "weight": [0.5, 4.0, 0.25]})
    log = read_log(table, pa.array([0, 1, 2]))
    assert graph.co_consumption(log).toarray().tolist() == [[0, 0.75, 0], [0.75, 0, 4.0], [0, 4.0, 0]]


def test_ppmi_follows_the_definition() -> None:
    edges = graph.co_consumption(Log.of_sequences(made(5), 30), 3)
    a = edges.toarray().astype(np.float64)
    with np.errstate(divide="ignore"):
        expected = np.log(a * a.sum() / np.outer(a.sum(axis=1), a.sum(axis=0)))
    np.testing.assert_allclose(factors.to_ppmi(edges).toarray(), np.maximum(expected, 0), rtol=1e-5, atol=1e-6)


def test_factors_agree_with_a_dense_svd() -> None:
    matrix = factors.to_ppmi(graph.co_consumption(Log.of_sequences(made(7, 23), 24), 3))
    found = factors.factorise(matrix, 8)  # 子空间就是整个空间，所以没有近似
    u, s, _ = np.linalg.svd(matrix.toarray().astype(np.float64))
    expected = factors.unit_rows((u[:, :8] * np.sqrt(s[:8])).astype(np.float32))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    np.testing.assert_array_equal(found[23], 0)  # 没有行为的物品
    np.testing.assert_allclose(np.linalg.norm(found[:23], axis=1), 1, rtol=1e-5)


def test_factors_of_a_large_graph_span_the_leading_space() -> None:
    # 十二群物品，群内的串远多于群间的：前十二个方向说得清，几遍迭代就该找到
    rng = np.random.default_rng(0)
    sequences = [(12 * rng.integers(0, 40, 5) + group % 12).tolist() for group in range(2000)]
    matrix = factors.to_ppmi(graph.co_consumption(Log.of_sequences(sequences, 480), 4))
    found = factors.factorise(matrix, 12)
    together = found @ found.T
    same = np.equal.outer(np.arange(480) % 12, np.arange(480) % 12)
    assert together[same].min() > 0.5 > 0.2 > np.abs(together[~same]).max()


def test_more_factors_than_items_leaves_zero_columns() -> None:
    found = factors.factorise(factors.to_ppmi(graph.co_consumption(Log.of_sequences([[0, 1]], 3))), 5)
    assert found.shape == (3, 5)
    np.testing.assert_array_equal(found[:, 3:], 0)


def test_the_same_log_in_another_order_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(1)
    table = pa.table(
        {"user_id": rng.integers(0, 40, 400), "item_id": rng.integers(0, 50, 400), "timestamp": rng.integers(0, 9, 400)}
    )
    results = []
    for order in (np.arange(400), rng.permutation(400)):
        log = read_log(table.take(pa.array(order)), pa.array(np.arange(50)))
        edges = graph.co_consumption(log)
        means = graph.neighbour_means(graph.to_transition(edges, log.counts), np.eye(50))
        results.append((means.tobytes(), factors.factorise(factors.to_ppmi(edges), 8).tobytes()))
    assert results[0] == results[1]


def test_a_fusion_by_hand() -> None:
    content = fuse.Input.centred_on("content", np.array([[0.0, 0.0], [2.0, 0.0]], dtype=np.float32), 2.0)
    assert content.mean.tolist() == [1.0, 0.0]
    fusion = fuse.Fusion((content, fuse.Input.as_given("factors", 2, 0.5)))
    rows = {"content": np.array([[1.0, 0.0], [4.0, 4.0]]), "factors": np.array([[0.0, 3.0], [0.0, 0.0]])}
    np.testing.assert_allclose(fusion(rows), [[0, 0, 0, 0.5], [1.2, 1.6, 0, 0]], rtol=1e-6)
    assert (fusion.width, fusion(rows).dtype) == (4, np.float32)


def test_a_row_of_the_fusion_depends_on_that_row_alone() -> None:
    rng = np.random.default_rng(0)
    rows = {"content": rng.standard_normal((50, 7)).astype(np.float32), "factors": rng.standard_normal((50, 3))}
    fusion = fuse.Fusion((fuse.Input.centred_on("content", rows["content"]), fuse.Input.as_given("factors", 3, 0.7)))
    whole = fusion(rows)
    for row in (0, 49):
        np.testing.assert_array_equal(fusion({k: v[row : row + 1] for k, v in rows.items()})[0], whole[row])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fuse.Fusion(()), "one or more different names"),
        (lambda: fuse.Fusion((fuse.Input.as_given("a", 1), fuse.Input.as_given("a", 1))), "different names"),
        (lambda: fuse.Fusion((fuse.Input.as_given("a", 1, 0.0),)), "weight of input 'a'=0.0 is out of range"),
        (lambda: fuse.Fusion((fuse.Input.as_given("a", 1),))({"b": np.ones((1, 1))}), "exactly the inputs \\['a'\\]"),
        (lambda: fuse.Fusion((fuse.Input.as_given("a", 1),))({"a": np.ones((1, 2))}), "shape \\(N, 1\\)"),
        (
            lambda: fuse.Fusion((fuse.Input.as_given("a", 1), fuse.Input.as_given("b", 1)))(
                {"a": np.ones((1, 1)), "b": np.ones((2, 1))}
            ),
            "must describe the same items",
        ),
    ],
)
def test_a_bad_fusion_is_named(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_scipy_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"semid\[behaviour\]"):
        graph.co_consumption(Log.of_sequences([[0, 1]], 2))


def test_rows_by_hand_and_what_is_fused_of_them() -> None:
    # 0 与 1 相邻，1 与 2 相邻；2 与 3 没有行为上的来往时 3 是零行
    content = np.array([[1, 0], [0, 1], [1, 0], [0, -1]], dtype=np.float32)
    log = Log.of_sequences([[0, 1, 2]], 4)
    chosen = recipe.Recipe(window=1, smoothing=1.0, blend=0.0)
    rows = recipe.learn_rows(content, log, chosen)
    assert (rows.dtype, rows.tolist()) == (np.float16, [[0, 1], [1, 0], [0, 1], [0, 0]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(
        recipe.fuse_rows(content, rows, chosen), [[half, half], [half, half], [half, half], [0, -1]], rtol=1e-6
    )
    twice = recipe.learn_rows(content, log, recipe.Recipe(window=1, smoothing=1.0, blend=0.0, hops=2), np.float32)
    np.testing.assert_allclose(twice[0], [half, half], rtol=1e-6)  # 邻居 1 平滑之后的方向


def test_a_row_of_the_recipe_depends_on_that_row_alone() -> None:
    rng = np.random.default_rng(2)
    content, chosen = factors.unit_rows(rng.standard_normal((30, 5)).astype(np.float32)), recipe.Recipe(num_factors=4)
    rows = recipe.learn_rows(content, Log.of_sequences(made(2), 30), chosen)
    whole = recipe.fuse_rows(content, rows, chosen)
    assert whole.shape == (30, 9)
    for part in (slice(0, 1), slice(7, 20), slice(29, 30)):
        np.testing.assert_array_equal(recipe.fuse_rows(content[part], rows[part], chosen), whole[part])


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("hops", 0), ("num_factors", 0), ("blend", -1.0)])
def test_a_bad_recipe_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        recipe.Recipe(**{name: value})
