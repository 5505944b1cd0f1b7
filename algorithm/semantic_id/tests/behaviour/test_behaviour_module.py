"""模型里的行为：表与冷启动各归各、存取之后逐位相同、改动考题不改一个字节、合成的来源按块按行都一样。"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from algorithm.semantic_id.behaviour.fused_source import FusedSource
from algorithm.semantic_id.behaviour.module import Behaviour, fit_content_map
from algorithm.semantic_id.behaviour.reader import Cut, read_log
from algorithm.semantic_id.behaviour.recipe import Recipe, fuse_rows
from algorithm.semantic_id.files.vectors import open_vectors

NUM_ITEMS, DIM = 60, 6
RECIPE = Recipe(num_factors=4)


def cluster(content: torch.Tensor, count: int) -> Tuple[torch.Tensor, torch.Tensor]:
    centres = content[:count].clone()
    return centres, torch.cdist(content, centres).argmin(dim=1)


def made(seed: int = 0, held: int = 0, **ids: Any) -> Tuple[Behaviour, np.ndarray, pa.Array]:
    """五十个物品有行为，末尾十个没有；每人最后两次是考题。"""
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((NUM_ITEMS, DIM)) + 1).astype(np.float32)
    names = ids.get("names", pa.array(np.arange(NUM_ITEMS) + 100))
    items = rng.integers(0, NUM_ITEMS - 10, (40, 6))
    items[:, 4:] = (items[:, 4:] + held) % NUM_ITEMS
    table = pa.table(
        {
            "user_id": np.repeat(np.arange(40), 6),
            "item_id": names.take(pa.array(items.reshape(-1))),
            "timestamp": np.tile(np.arange(6), 40),
        }
    )
    log = read_log(table, names, cut=Cut(leave_last=2))
    return Behaviour.learn(names, features, log, RECIPE, cluster), features, names


def test_items_of_the_table_use_their_rows_and_others_the_cold_rule() -> None:
    behaviour, features, names = made()
    fused, cold = behaviour.fuse(features, names), behaviour.fuse(features)
    known = behaviour.places(names) >= 0
    assert fused.shape == (NUM_ITEMS, DIM + 4) == (NUM_ITEMS, behaviour.width)
    np.testing.assert_array_equal(fused[~known], cold[~known])
    assert 40 <= known.sum() <= 50
    assert (np.abs(fused[known] - cold[known]).max(axis=1) > 1e-3).mean() > 0.9
    content = features - behaviour.mean.numpy()
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    rows = behaviour.rows.numpy()[behaviour.places(names)[known]]
    np.testing.assert_allclose(fused[known], fuse_rows(content[known], rows, RECIPE), atol=1e-6)


def test_unknown_names_and_other_types_are_not_in_the_table() -> None:
    behaviour, _, names = made()
    assert behaviour.places(pa.array([5, 10**12])).tolist() == [-1, -1]
    assert (behaviour.places(names.cast(pa.string())) == -1).all()
    np.testing.assert_array_equal(behaviour.places(names.cast(pa.int16())), behaviour.places(names))


@pytest.mark.parametrize("count", [1, 7, 60])
def test_a_row_depends_on_that_row_alone(count: int) -> None:
    behaviour, features, names = made()
    whole = behaviour.fuse(features, names)
    parts = [
        behaviour.fuse(features[start : start + count], names.slice(start, count))
        for start in range(0, NUM_ITEMS, count)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_held_out_interactions_change_no_byte() -> None:
    first, second = (made(held=held)[0].state_dict() for held in (0, 7))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_state_survives_a_file(tmp_path: Path) -> None:
    behaviour, features, names = made(names=pa.array([f"sku-{row}" for row in range(NUM_ITEMS)]))
    save_file(behaviour.state_dict(), tmp_path / "behaviour.safetensors")
    again = Behaviour(DIM, RECIPE, len(behaviour.keys), len(behaviour.centres))
    again.load_state_dict(load_file(tmp_path / "behaviour.safetensors"))
    assert again.fuse(features, names).tobytes() == behaviour.fuse(features, names).tobytes()


def test_content_map_recovers_content_that_is_linear_in_the_fused_vectors() -> None:
    rng = np.random.default_rng(0)
    fused, true = rng.standard_normal((500, 5)), rng.standard_normal((6, 3))
    features = fused @ true[:-1] + true[-1]
    np.testing.assert_allclose(fit_content_map(fused, features).numpy(), true, atol=0.01)


def test_content_comes_back_better_than_the_mean() -> None:
    behaviour, features, names = made()
    fused = np.concatenate([behaviour.fuse(features, names), np.ones((NUM_ITEMS, 1))], axis=1)
    error = np.square(features - fused @ behaviour.content_map.numpy()).sum()
    # 内容各自独立、行为与内容无关：向量里内容只占一小份，仍比只猜均值好
    assert error < 0.9 * np.square(features - features.mean(axis=0)).sum()


def test_a_fused_source_gives_the_same_rows_in_any_blocks() -> None:
    behaviour, features, names = made()
    plain = open_vectors(features)
    source = FusedSource(plain, behaviour)
    assert (source.num_rows, source.dim, source.has_ids) == (NUM_ITEMS, DIM + 4, False)
    np.testing.assert_array_equal(
        np.concatenate([block.vectors for block in source.blocks(7)]), behaviour.fuse(features)
    )  # 行号不是表里的编号，全按冷启动
    named = FusedSource(_Named(plain, names), behaviour)
    blocks = list(named.blocks(16, 8, 40))
    np.testing.assert_array_equal(
        np.concatenate([block.vectors for block in blocks]), behaviour.fuse(features, names)[8:40]
    )
    assert [block.start for block in blocks] == [8, 24]
    assert pa.concat_arrays(list(named.id_blocks(9))).equals(names)


class _Named:
    """给来源配上编号。"""

    has_ids = True

    def __init__(self, source: Any, names: pa.Array) -> None:
        self._source, self._names = source, names
        self.num_rows, self.dim, self.description, self.stamp = source.num_rows, source.dim, "made", ""

    def blocks(self, block_rows: int, start: int = 0, stop: int | None = None) -> Any:
        for block in self._source.blocks(block_rows, start, stop):
            yield block._replace(ids=self._names.slice(block.start, len(block.vectors)))

    def id_blocks(self, block_rows: int) -> Any:
        for start in range(0, self.num_rows, block_rows):
            yield self._names.slice(start, block_rows)
