"""冷启动的规则：手算的权重、一行只看自己、确实帮得上忙。"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algorithm.semantic_id.behaviour import cold
from algorithm.semantic_id.behaviour.factors import unit_rows


def test_weights_fall_with_the_eighth_power_of_the_distance() -> None:
    rule = cold.ColdRule(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    # 到两个中心的距离平方 1 与 4：权重 1 与 1/256
    found = rule(torch.tensor([[1.0]]))
    np.testing.assert_allclose(found.numpy(), [[256 / 257, 1 / 257]], rtol=1e-6)


def test_a_row_on_a_centre_takes_its_row_and_far_centres_do_not_count() -> None:
    centres = torch.arange(30, dtype=torch.float32)[:, None]
    rule = cold.ColdRule(centres, torch.eye(30))
    found = rule(torch.tensor([[7.0]]))[0]
    assert int((found > 0).sum()) == cold.NEAREST
    assert found[7] > 0.999999
    assert found[20] == 0


def test_fit_by_hand_drops_empty_centres() -> None:
    centres = torch.tensor([[0.0], [5.0], [9.0]])
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]], dtype=np.float32)
    rule = cold.fit_cold_rule(centres, torch.tensor([0, 0, 2]), rows)
    assert rule.centres.tolist() == [[0.0], [9.0]]
    assert rule.rows.tolist() == [[2.0, 3.0], [10.0, 0.0]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_depends_on_that_row_alone(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rule = cold.ColdRule(torch.randn(200, 16, generator=generator), torch.randn(200, 24, generator=generator))
    x = torch.randn(501, 16, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = rule(x)
        for start, stop in ((0, 1), (3, 20), (500, 501)):
            assert torch.equal(rule(x[start:stop]), whole[start:stop])
    finally:
        torch.set_num_threads(before)


def test_the_rule_tells_groups_apart_that_content_shows() -> None:
    # 二十群，内容围着群心，行为行是群的独热：没见过的物品该猜对自己的群
    rng = np.random.default_rng(0)
    heads, groups = rng.standard_normal((20, 32)), rng.integers(0, 20, 1200)
    content = unit_rows((heads[groups] + 0.3 * rng.standard_normal((1200, 32))).astype(np.float32))
    rows = np.eye(20, dtype=np.float32)[groups]
    centres = torch.from_numpy(content[:200].copy())
    owners = torch.cdist(torch.from_numpy(content[:1000]), centres).argmin(dim=1)
    rule = cold.fit_cold_rule(centres, owners, rows[:1000])
    guess = rule(torch.from_numpy(content[1000:])).argmax(dim=1).numpy()
    assert (guess == groups[1000:]).mean() > 0.9
