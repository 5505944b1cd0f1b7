"""联合精修：手算、目标函数不升、与精确的岭回归一致、比逐层 k-means 好、可复现、尺度等变。"""

from pathlib import Path

import pytest
import torch

from algorithm.semantic_id import ResidualVectorQuantizer, SemanticIDConfig
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.metrics.codes import collision_rate
from algorithm.semantic_id.training import refine as refine_room
from algorithm.semantic_id.training.kmeans import kmeans
from algorithm.semantic_id.training.plan import EFFORTS, passes_per_epoch, plan_phases, rounds_per_epoch
from algorithm.semantic_id.training.refine import SHRINK_VOTES, Refiner, votes


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


def _demo_rows():
    source = open_vectors(Path(refine_room.__file__).parents[1] / "demo" / "items.parquet")
    z = torch.from_numpy(next(source.blocks(4000)).vectors)
    return z[torch.randperm(4000, generator=_gen())]


def _error(rq, z):
    return float((z - rq.decode(*rq.encode(z))).square().mean())


def test_one_level_by_hand(monkeypatch):
    """一层一维：两行 3、5 命中码字 4；两个 ID 给两行，冲突在所难免，都算一票，λ = 1 → (3 + 5) / (2 + 1)。"""
    monkeypatch.setattr(refine_room, "_SWEEPS", 1)
    assert SHRINK_VOTES == 1.0
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=1, codebook_sizes=(2,)))
    rq.quantizers[0].reset_(torch.tensor([[4.0], [-70.0]]))
    codes = Refiner(rq).round_(torch.tensor([[3.0], [5.0]]), 1.0, 0, batch_size=10)
    assert [c.tolist() for c in codes] == [[0, 0]]
    used, unused = rq.quantizers[0].embedding.weight[:, 0].tolist()
    assert used == pytest.approx(8 / 3)
    # 没命中的码字去分裂：放在用到的码字旁，朝误差大的那一行（3 或 5）走两成
    assert unused in (pytest.approx(8 / 3 + 0.2 * (3 - 8 / 3)), pytest.approx(8 / 3 + 0.2 * (5 - 8 / 3)))
    assert rq.quantizers[0].ema_cluster_size.tolist() == [10.0, 0.0]
    assert rq.quantizers[0].last_hit_row.tolist() == [2, 0]
    assert int(rq.quantizers[0].rows_seen) == 2


def test_trust_keeps_part_of_the_old_codeword(monkeypatch):
    """一行 6 命中码字 4，一票，λ = 1，trust = 2：(6 + 2 · 4) / (1 + 1 + 2)。"""
    monkeypatch.setattr(refine_room, "_SWEEPS", 1)
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=1, codebook_sizes=(1,)))
    rq.quantizers[0].reset_(torch.tensor([[4.0]]))
    Refiner(rq).round_(torch.tensor([[6.0]]), 1.0, 0, 1, trust=2.0)
    assert rq.quantizers[0].embedding.weight.tolist() == [[pytest.approx(14 / 4)]]


def test_votes_by_hand():
    codes = [torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([7, 7, 7, 7, 7, 7]), torch.tensor([1, 1, 1, 0, 1, 0])]
    p = 3 * (1 - 6 / 48)  # 48 个 ID 给六行
    assert votes(codes, (3, 8, 2)).tolist() == pytest.approx([3**-p, 3**-p, 3**-p, 1, 1, 1])
    # 行数不少于 ID 数：冲突免不了，人人一票
    assert votes([torch.tensor([0, 0, 0, 1])], (4,)).tolist() == [1.0] * 4
    assert votes([torch.tensor([0, 0, 0, 1])], (2,)).tolist() == [1.0] * 4
    big = [torch.tensor([2**40, 2**40 + 1, 2**40]), torch.tensor([2**21, 5, 2**21])]
    assert votes(big, (2**41, 2**22)).tolist() == [0.125, 1.0, 0.125]


def test_voting_lowers_collisions_at_little_error(monkeypatch):
    """内置数据：与每行一票相比，冲突率至少低一成半，误差至多多 3%。"""
    z = _demo_rows()[:3000]
    figures = []
    for rule in (votes, lambda codes, sizes: torch.ones(len(codes[0]))):
        monkeypatch.setattr(refine_room, "votes", rule)
        rq = _kmeans_model(z, (32, 64, 128))
        refiner = Refiner(rq)
        for done in range(12):
            refiner.round_(z, (1 - done / 12) ** 0.5, done, 256)
        figures.append((collision_rate(torch.stack(rq.encode(z), 1).numpy()), _error(rq, z)))
    assert figures[0][0] < 0.85 * figures[1][0]
    assert figures[0][1] < 1.03 * figures[1][1]


def test_unused_codewords_come_back_to_the_data():
    """一半码字远在天边，几轮之后全部用上：不管它们的话永远没有行会选中。"""
    z = _data()
    rq = _kmeans_model(z)
    far = rq.quantizers[1].embedding.weight.clone()
    far[::2] = 1e4
    rq.quantizers[1].reset_(far)
    refiner = Refiner(rq)
    for done in range(6):
        codes = refiner.round_(z, 0.0, done, 256)
    assert len(codes[1].unique()) == 12


def test_update_converges_to_the_ridge_solution(monkeypatch):
    """编号固定时，轮流更新的极限就是 (AᵀWA + λI) C = AᵀWz 的解（比较重建：各层间的平移收敛得慢，但不影响重建）。"""
    monkeypatch.setattr(refine_room, "_SWEEPS", 200)
    z = _data(400, 3)
    rq = _kmeans_model(z, (3, 4))
    codes = rq.encode(z)
    weight = votes(codes, (3, 4)).double()[:, None]
    Refiner(rq).round_(z, 0.0, 0, 1)
    design = torch.cat([torch.nn.functional.one_hot(c, k) for c, k in zip(codes, (3, 4), strict=True)], 1).double()
    ridge = design.T @ (weight * design) + SHRINK_VOTES * torch.eye(7).double()
    exact = torch.linalg.solve(ridge, design.T @ (weight * z.double()))
    got = torch.cat([q.embedding.weight for q in rq.quantizers]).double()
    torch.testing.assert_close(design @ got, design @ exact, atol=2e-3, rtol=1e-3)


def test_ridge_objective_never_rises_within_an_update():
    z = _data()
    rq = _kmeans_model(z)
    for _ in range(4):
        codes = rq.encode(z)
        weight = votes(codes, (8, 12, 16)).double()[:, None]

        def objective(codes=codes, weight=weight):
            penalty = sum(float(q.embedding.weight.double().square().sum()) for q in rq.quantizers)
            return float((weight * (z - rq.decode(*codes)).double().square()).sum()) + SHRINK_VOTES * penalty

        before = objective()
        Refiner(rq).round_(z, 0.0, 0, 1)
        assert objective() <= before * (1 + 1e-6)


def test_better_than_levelwise_kmeans_on_seen_and_unseen_rows():
    z = _demo_rows()
    seen, unseen = z[:3000], z[3000:]
    rq = _kmeans_model(seen, (32, 64, 128))
    before = _error(rq, seen), _error(rq, unseen)
    refiner = Refiner(rq)
    for done in range(16):
        refiner.round_(seen, (1 - done / 16) ** 0.5, done, 256)
    after = _error(rq, seen), _error(rq, unseen)
    assert after[0] < 0.98 * before[0]
    assert after[1] < 0.98 * before[1]


def test_noise_is_seeded_annealed_and_leaves_the_global_state_alone():
    z = _data(300)
    finals = []
    for seed in (7, 7, 8):
        rq = _kmeans_model(z)
        refiner = Refiner(rq)
        torch.manual_seed(0)
        for done in range(3):
            refiner.round_(z, 1.0, seed + done, 16)
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
        refiner = Refiner(rq)
        for done in range(3):
            refiner.round_(x, 1.0, done, 16)
        assert torch.equal(x, copy)
        books.append(torch.cat([q.embedding.weight.clone() for q in rq.quantizers]))
    assert torch.equal(books[1], books[0] * 2.0**11)


def test_frozen_levels_keep_every_byte_and_the_rest_still_improve():
    z = _demo_rows()[:3000]
    rq = _kmeans_model(z, (32, 64, 128))
    before, error = [q.embedding.weight.clone() for q in rq.quantizers], _error(rq, z)
    refiner = Refiner(rq, num_frozen=1)
    for done in range(8):
        refiner.round_(z, 0.0, done, 16)
    assert torch.equal(rq.quantizers[0].embedding.weight, before[0])
    assert not torch.equal(rq.quantizers[1].embedding.weight, before[1])
    assert _error(rq, z) < error


def test_beam_rounds_update_from_the_codes_the_beam_reads():
    z = _data()
    rq = _kmeans_model(z)
    greedy, beam = rq.encode_latent(z, 1), rq.encode_latent(z, 4)
    assert any(not torch.equal(a, b) for a, b in zip(greedy, beam, strict=True))
    codes = Refiner(rq).round_(z, 0.0, 0, 16, beam_size=4)
    for got, expected in zip(codes, beam, strict=True):
        assert torch.equal(got, expected)


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


def test_no_network_phase_where_the_effort_leaves_it_out():
    assert plan_phases(10, "kmeans", has_network=False, fresh=True, network=False) == ["refine"] * 10


@pytest.mark.parametrize(
    ("effort", "num_rows", "expected"),
    [("fast", 1000, 4), ("default", 1000, 16), ("default", 200_000, 5), ("default", 10**6, 3), ("max", 10**6, 8)],
)
def test_rounds_follow_the_size_of_the_data(effort, num_rows, expected):
    """2e11 / (行数 × 码字总数 1500 × 宽度 128)，夹在这一档的上下限之间。"""
    config = SemanticIDConfig(embedding_dim=256, latent_dim=128, codebook_sizes=(500, 1000))
    assert rounds_per_epoch(EFFORTS[effort], num_rows, config) == expected


@pytest.mark.parametrize(
    ("effort", "num_rows", "expected"), [("default", 1000, 16), ("default", 40_000, 8), ("max", 10**6, 1)]
)
def test_passes_follow_the_size_of_the_data(effort, num_rows, expected):
    """2e11 / (3 × 行数 × 隐层 512 × (256 + 128))，至少一遍，至多这一档的轮数上限。"""
    config = SemanticIDConfig(embedding_dim=256, latent_dim=128, codebook_sizes=(500, 1000), hidden_dim=512)
    assert passes_per_epoch(EFFORTS[effort], num_rows, config) == expected
