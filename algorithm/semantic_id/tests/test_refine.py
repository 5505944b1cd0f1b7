"""联合精修：手算、目标函数不升、与精确的岭回归一致、比逐层 k-means 好、可复现、尺度等变。"""

from pathlib import Path

import pytest
import torch

from algorithm.semantic_id import ResidualVectorQuantizer, SemanticIDConfig
from algorithm.semantic_id import refine as refine_room
from algorithm.semantic_id.epochs import plan_phases
from algorithm.semantic_id.kmeans import kmeans
from algorithm.semantic_id.refine import SHRINK_ROWS, Refiner
from algorithm.semantic_id.vectors import open_vectors


def _gen(seed=0):
    return torch.Generator().manual_seed(seed)


def _data(num_rows=1500, dim=6):
    centers = torch.randn(30, dim, generator=_gen(1)) * 2
    return centers[torch.randint(30, (num_rows,), generator=_gen(2))] + torch.randn(num_rows, dim, generator=_gen(3))


def _kmeans_model(z, sizes=(8, 12, 16)):
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=z.shape[1], codebook_sizes=sizes))
    residual = z.clone()
    for quantizer in rq.quantizers:
        result = kmeans(residual, quantizer.num_embeddings, generator=_gen(4))
        quantizer.reset_(result.centroids)
        residual -= result.centroids[result.indices]
    return rq.eval()


def _error(rq, z):
    return float((z - rq.decode(*rq.encode(z))).square().mean())


def test_one_level_by_hand(monkeypatch):
    """一层一维：两行 3、5 命中码字 4，λ = 1 → (3 + 5) / (2 + 1)；没命中的码字不动。"""
    monkeypatch.setattr(refine_room, "_SWEEPS", 1)
    assert SHRINK_ROWS == 1.0
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=1, codebook_sizes=(2,)))
    rq.quantizers[0].reset_(torch.tensor([[4.0], [-70.0]]))
    codes = Refiner(rq, torch.tensor([[3.0], [5.0]])).round_(1.0, 0, batch_size=10)
    assert [c.tolist() for c in codes] == [[0, 0]]
    assert rq.quantizers[0].embedding.weight.tolist() == [[pytest.approx(8 / 3)], [-70.0]]
    assert rq.quantizers[0].ema_cluster_size.tolist() == [10.0, 0.0]
    assert rq.quantizers[0].last_hit_row.tolist() == [2, 0]
    assert int(rq.quantizers[0].rows_seen) == 2


def test_update_converges_to_the_ridge_solution(monkeypatch):
    """编号固定时，轮流更新的极限就是 (AᵀA + λI) W = Aᵀz 的解（比较重建：各层之间的整体平移收敛得慢，但不影响重建）。"""
    monkeypatch.setattr(refine_room, "_SWEEPS", 200)
    z = _data(400, 3)
    rq = _kmeans_model(z, (3, 4))
    codes = rq.encode(z)
    Refiner(rq, z).round_(0.0, 0, 1)
    design = torch.cat([torch.nn.functional.one_hot(c, k) for c, k in zip(codes, (3, 4), strict=True)], 1).double()
    exact = torch.linalg.solve(design.T @ design + SHRINK_ROWS * torch.eye(7).double(), design.T @ z.double())
    got = torch.cat([q.embedding.weight for q in rq.quantizers]).double()
    torch.testing.assert_close(design @ got, design @ exact, atol=2e-3, rtol=1e-3)


def test_ridge_objective_never_rises_within_an_update():
    z = _data()
    rq = _kmeans_model(z)
    for _ in range(4):
        codes = rq.encode(z)

        def objective(codes=codes):
            penalty = sum(float(q.embedding.weight.double().square().sum()) for q in rq.quantizers)
            return float((z - rq.decode(*codes)).double().square().sum()) + SHRINK_ROWS * penalty

        before = objective()
        Refiner(rq, z).round_(0.0, 0, 1)
        assert objective() <= before * (1 + 1e-6)


def test_better_than_levelwise_kmeans_on_seen_and_unseen_rows():
    source = open_vectors(Path(refine_room.__file__).parent / "demo" / "items.parquet")
    z = torch.from_numpy(next(source.blocks(4000)).vectors)
    z = z[torch.randperm(4000, generator=_gen())]
    seen, unseen = z[:3000], z[3000:]
    rq = _kmeans_model(seen, (32, 64, 128))
    before = _error(rq, seen), _error(rq, unseen)
    refiner = Refiner(rq, seen)
    for done in range(16):
        refiner.round_((1 - done / 16) ** 0.5, done, 256)
    after = _error(rq, seen), _error(rq, unseen)
    assert after[0] < 0.98 * before[0]
    assert after[1] < 0.98 * before[1]


def test_noise_is_seeded_annealed_and_leaves_the_global_state_alone():
    z = _data(300)
    finals = []
    for seed in (7, 7, 8):
        rq = _kmeans_model(z)
        refiner = Refiner(rq, z)
        torch.manual_seed(0)
        for done in range(3):
            refiner.round_(1.0, seed + done, 16)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=_gen(0)))
        finals.append(torch.cat([q.embedding.weight.clone() for q in rq.quantizers]))
    assert torch.equal(finals[0], finals[1])
    assert not torch.equal(finals[0], finals[2])


def test_rows_are_not_changed_and_scale_by_a_power_of_two_is_exact():
    z = _data(300)
    books = []
    for power in (0, 11):
        x = z * 2.0**power
        copy = x.clone()
        rq = _kmeans_model(x)
        refiner = Refiner(rq, x)
        for done in range(3):
            refiner.round_(1.0, done, 16)
        assert torch.equal(x, copy)
        books.append(torch.cat([q.embedding.weight.clone() for q in rq.quantizers]))
    assert torch.equal(books[1], books[0] * 2.0**11)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, "kmeans", False, True), ["refine"] * 8 + ["network"] * 2),
        ((10, "uniform", False, True), ["ema"] * 5 + ["refine"] * 3 + ["network"] * 2),
        ((10, "uniform", False, False), ["refine"] * 8 + ["network"] * 2),
        ((3, "kmeans", True, False), ["network"] * 3),
        ((1, "kmeans", False, True), ["refine"]),
        ((0, "kmeans", False, True), []),
    ],
)
def test_plan(arguments, expected):
    num_epochs, init, has_network, fresh = arguments
    assert plan_phases(num_epochs, init, has_network=has_network, fresh=fresh) == expected
