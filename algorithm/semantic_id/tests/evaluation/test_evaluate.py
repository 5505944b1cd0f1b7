"""评估：手算的一小批、与分块无关、没有定义的数字不编造。"""

from __future__ import annotations

import json

import numpy as np
import pytest

from algorithm.semantic_id.evaluation.measure import evaluate
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.fake_model import FakeModel

# 编码 (1,0) (1,0) (3,2) (0,0)，解码即编码本身（第三维为 0）
X = np.array([[1, 0, 1], [1.25, 0, 0], [5, 2, 0], [0, 0, 0]], dtype=np.float32)


def test_every_figure_by_hand():
    got = evaluate(FakeModel(mean=[1.0, 0.0, 0.0]), open_vectors(X))
    error = 1 + 0.25**2 + 2**2
    deviation = 1 + 0.25**2 + (16 + 4) + 1
    assert got["num_items"] == 4
    assert got["mse"] == pytest.approx(error / 12, rel=1e-15)
    assert got["relative_mse"] == pytest.approx(error / deviation, rel=1e-15)
    assert got["relative_mse_reason"] is None
    assert got["utilization"] == pytest.approx([3 / 4, 2 / 3])
    entropy = [-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    assert got["perplexity"] == pytest.approx(np.exp(entropy))
    # 次数 (1,2,0,1) 升序 0,1,1,2：(−1 + 1 + 6) / 16；(3,0,1) 升序 0,1,3：6 / 12
    assert got["gini"] == pytest.approx([6 / 16, 6 / 12])
    assert (got["collision_rate"], got["collided_item_rate"], got["max_collision"]) == (0.25, 0.5, 2)
    assert (got["codebook_sizes"], got["fingerprint"]) == ([4, 3], "f" * 64)
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("block_rows", [1, 3])
def test_blocks_do_not_matter(block_rows):
    model = FakeModel(mean=[1.0, 0.0, 0.0])
    assert evaluate(model, open_vectors(X), block_rows=block_rows) == evaluate(model, open_vectors(X))


def test_relative_mse_without_a_definition_is_none_with_a_reason():
    untrained = evaluate(FakeModel(), open_vectors(X))
    assert untrained["relative_mse"] is None
    assert "never trained" in untrained["relative_mse_reason"]
    flat = evaluate(FakeModel(mean=[1.0, 2.0, 3.0]), open_vectors(np.array([[1.0, 2.0, 3.0]] * 2)))
    assert flat["relative_mse"] is None
    assert "equals the training mean" in flat["relative_mse_reason"]


def test_large_offsets_keep_their_digits():
    # 误差 0.5 骑在 1e7 上：float32 平方会丢掉它
    model = FakeModel(sizes=(10_000_008,), dim=1, mean=[1e7])
    got = evaluate(model, open_vectors(np.array([[1e7 + 0.0], [1e7 + 1.0], [1e7 + 3.0]])))
    assert got["mse"] == 0.0
    model.decode_codes = lambda codes: codes.float() - 1.0
    got = evaluate(model, open_vectors(np.array([[1e7 + 0.0], [1e7 + 1.0], [1e7 + 3.0]])))
    assert got["mse"] == 1.0
    assert got["relative_mse"] == pytest.approx(3 / 10)


def test_sums_are_kept_in_float64():
    # 0.1 的平方在 float32 里只有 8 位有效数字
    x = np.full((5000, 3), 0.1, np.float32)
    got = evaluate(FakeModel(mean=[0.3, 0.3, 0.3]), open_vectors(x))
    tenth, center = float(np.float32(0.1)), float(np.float32(0.3))
    assert got["mse"] == pytest.approx(tenth**2, rel=1e-12)
    assert got["relative_mse"] == pytest.approx((tenth / (tenth - center)) ** 2, rel=1e-12)
    model = FakeModel(mean=[0.3, 0.3, 0.3])
    model.decode_codes = lambda codes: model.feature_mean.expand(len(codes), 3)
    assert evaluate(model, open_vectors(x))["mse"] == pytest.approx((tenth - center) ** 2, rel=1e-12)


def test_doors_and_progress():
    with pytest.raises(ValueError, match=r"width 2, but the model was built with embedding_dim=3"):
        evaluate(FakeModel(), open_vectors(X[:, :2]))
    bad = X.copy()
    bad[3, 0] = np.inf
    with pytest.raises(ValueError, match="row 3 has inf"):
        evaluate(FakeModel(), open_vectors(bad))
    seen = []
    evaluate(FakeModel(), open_vectors(X), block_rows=3, progress=lambda *pair: seen.append(pair))
    assert seen == [(3, 4), (4, 4)]
