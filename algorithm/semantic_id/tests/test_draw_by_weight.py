"""按权重不放回抽行：权重 0 抽不到、次序只由种子定、抽中的机会与权重成正比。"""

from __future__ import annotations

import pytest
import torch

from algorithm.semantic_id.codebook import draw_by_weight


def drawn(weights, count, seed=0):
    return draw_by_weight(torch.tensor(weights, dtype=torch.float64), count, torch.Generator().manual_seed(seed))


def test_zero_weights_are_never_drawn_and_rows_are_distinct():
    for seed in range(20):
        assert sorted(drawn([0.0, 2.0, 0.0, 1e-30, 5.0], 9, seed).tolist()) == [1, 3, 4]
    assert drawn([0.0, 0.0], 1).tolist() == []
    assert drawn([1.0, 1.0], 0).tolist() == []


def test_the_first_rows_do_not_depend_on_how_many_are_wanted():
    weights = [1.0, 3.0, 2.0, 0.5]
    assert drawn(weights, 2).tolist() == drawn(weights, 4).tolist()[:2]
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    for generator, count in zip(generators, (0, 4), strict=True):
        draw_by_weight(torch.ones(4, dtype=torch.float64), count, generator)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_chances_follow_the_weights():
    # 第一个抽中的机会是 1/10、2/10、7/10；4000 次的标准误不到 0.008
    first = torch.stack([drawn([1.0, 2.0, 7.0], 1, seed) for seed in range(4000)]).reshape(-1)
    shares = torch.bincount(first, minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.035)
