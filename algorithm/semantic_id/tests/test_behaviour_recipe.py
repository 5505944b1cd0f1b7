"""行为配方的零件：小生成模型学得会、命中率手算得出、第二份数据不碰测试物品。数据都是造的。"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
if not (BENCHMARKS / "downstream").is_dir():
    pytest.skip("benchmarks/ is not part of an installed wheel", allow_module_level=True)
pytest.importorskip("transformers")
sys.path.insert(0, str(BENCHMARKS))

import bench_behaviour_recipe as bench  # noqa: E402
from downstream import fused, small_generator  # noqa: E402
from downstream.data import Interactions  # noqa: E402

from algorithm.semantic_id.behaviour.recipe import Recipe  # noqa: E402


def data_of(features: np.ndarray, histories: list[list[int]], valid: list[int]) -> Interactions:
    held = np.array(valid)
    return Interactions(features, [np.array(one) for one in histories], held, held, "made")


def test_small_generator_learns_what_follows_what() -> None:
    # 下一个物品总是上一个加一：学会之后第一名几乎总是它，随机是 1/24
    rng = np.random.default_rng(0)
    histories = [(start + np.arange(8)) % 24 for start in rng.integers(0, 24, 600)]
    table = torch.tensor([[item // 4, item % 4] for item in range(24)])
    model = small_generator.train(histories, table, (6, 4), seed=0)
    found = small_generator.recommend(model, [np.array([item]) for item in range(24)], table, num_beams=8)
    assert (found[:, 0] == (np.arange(24) + 1) % 24).mean() > 0.9
    again = small_generator.train(histories, table, (6, 4), seed=0)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_examples_by_hand() -> None:
    past, mask, targets = small_generator.examples([np.array([5, 6, 7]), np.array([8]), np.array([9, 4])], 2)
    assert past.tolist() == [[5, 0], [6, 5], [9, 0]]
    assert mask.tolist() == [[True, False], [True, True], [True, False]]
    assert targets.tolist() == [6, 7, 4]


def test_hit_rate_by_hand() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.1], [0.0, 1.0]])
    # 查询 0 的前一名是 1 与 2 同分，各算一半；3 最远
    hits = [fused.hit_rate(vectors, np.array([0]), np.array([target]), k=1) for target in (1, 2, 3)]
    assert hits == [0.5, 0.5, 0.0]
    assert fused.hit_rate(vectors, np.array([0, 0]), np.array([1, 3]), k=2) == 0.5


def test_recipe_without_behaviour_is_the_content_and_held_out_items_change_nothing() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 6)).astype(np.float32)
    histories = [rng.integers(0, 20, 5).tolist() for _ in range(30)]
    text = fused.vectors_of(Recipe(smoothing=0, blend=0), data_of(features, histories, [0] * 30))
    centred = features - features.mean(axis=0)
    np.testing.assert_allclose(text, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-6)
    recipe = Recipe(num_factors=4)
    first, second = (fused.vectors_of(recipe, data_of(features, histories, [held] * 30)) for held in (0, 7))
    assert first.tobytes() == second.tobytes()
    assert first.shape == (20, 10)


def test_residual_kmeans_gives_what_its_codes_stand_for() -> None:
    x = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    codes, rebuilt = fused.residual_kmeans(x, (8, 4), seed=0)
    assert codes.shape == (200, 2)
    same = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    for group in range(same.max() + 1):
        np.testing.assert_allclose(
            rebuilt[same == group], rebuilt[same == group][:1].repeat((same == group).sum(), 0), atol=1e-5
        )
    assert np.square(x - rebuilt).sum() < 0.5 * np.square(x - x.mean(axis=0)).sum()


def test_second_set_keeps_three_categories_and_reads_no_test_item(tmp_path: Path) -> None:
    labels = ["Skin Care", "Makeup", "Fragrance", "Bath & Body", "Hair Care"]
    pq.write_table(pa.table({"l1_category": labels}), tmp_path / "items.parquet")
    features = np.arange(10, dtype=np.float32).reshape(5, 2)
    histories = [np.array([0, 1, 2]), np.array([1, 4, 0])]
    second = []
    for test in (0, 4):
        held = np.array([test, test])
        second.append(bench.second_set(tmp_path, Interactions(features, histories, np.array([3, 2]), held, "made")))
    assert [history.tolist() for history in second[0].histories] == [[0, 1]]  # 另一个人只剩两个
    assert second[0].valid.tolist() == [2]
    assert second[0].features.tolist() == features[[0, 2, 3]].tolist()
    assert second[0].histories[0].tobytes() == second[1].histories[0].tobytes()
