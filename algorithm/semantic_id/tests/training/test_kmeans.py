"""k-means：手算的小例、不变量、空簇修复、重复行、可复现、尺度等变。"""

import pytest
import torch

from algorithm.semantic_id.training.kmeans import _assign, _split, _sums, _swap, kmeans


def _gen(seed=0):
    return torch.Generator().manual_seed(seed)


def _blobs(num_rows=600, k=6, dim=5, seed=0):
    centers = torch.randn(k, dim, generator=_gen(seed)) * 20
    label = torch.arange(num_rows) % k
    return centers[label] + torch.randn(num_rows, dim, generator=_gen(seed + 1)), label


def counts_of(result):
    """(K,) 每簇行数。"""
    return torch.bincount(result.indices, minlength=len(result.centroids))


def test_two_points_two_clusters():
    result = kmeans(torch.tensor([[0.0], [1.0], [10.0], [12.0]]), 2, generator=_gen())
    assert sorted(result.centroids[:, 0].tolist()) == [0.5, 11.0]
    assert result.inertia == pytest.approx(0.5 + 2.0)
    assert sorted(counts_of(result).tolist()) == [2, 2]


def test_separated_blobs_are_found():
    x, label = _blobs()
    result = kmeans(x, 6, generator=_gen(3))
    for cluster in range(6):
        assert len(label[result.indices == cluster].unique()) == 1


def test_result_is_consistent():
    x = torch.randn(2000, 8, generator=_gen(1))
    result = kmeans(x, 50, generator=_gen(2), iterations=5)
    distances = torch.cdist(x.double(), result.centroids.double())
    best = distances.min(1).values
    chosen = distances[torch.arange(2000), result.indices]
    torch.testing.assert_close(chosen, best)
    assert result.inertia == pytest.approx(float(best.square().sum()), rel=1e-6)
    assert int(counts_of(result).min()) >= 1


def test_returns_the_best_of_all_iterations():
    x = torch.randn(1500, 6, generator=_gen(1))
    result = kmeans(x, 40, generator=_gen(2), iterations=10, tolerance=0.0)
    assert len(result.history) == 10
    assert result.inertia == min(result.history)
    assert result.inertia < 0.97 * result.history[0]


def test_stops_when_nothing_improves():
    seen = []
    result = kmeans(
        _blobs()[0], 6, generator=_gen(3), iterations=50, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i, 50) for i in range(1, len(result.history) + 1)]
    assert len(result.history) < 10


def test_final_centroids_are_means():
    """过松弛只是途中的手段：收敛之后中心就是簇均值。"""
    x, _ = _blobs()
    result = kmeans(x, 12, generator=_gen(3), iterations=60, tolerance=0.0)
    means = torch.stack([x[result.indices == cluster].double().mean(0) for cluster in range(12)])
    torch.testing.assert_close(result.centroids, means.float(), rtol=1e-5, atol=1e-5)


def test_more_clusters_than_rows():
    x = torch.randn(10, 4, generator=_gen(1))
    result = kmeans(x, 16, generator=_gen(2))
    assert result.inertia == 0.0
    assert result.num_surplus == 6
    assert len(result.indices.unique()) == 10
    assert bool(torch.isfinite(result.centroids).all())
    assert len(result.centroids.unique(dim=0)) == 16


def test_few_distinct_rows():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]).repeat(100, 1)
    result = kmeans(x, 8, generator=_gen(0))
    assert result.inertia == 0.0
    assert sorted(counts_of(result).tolist(), reverse=True)[:3] == [100, 100, 100]


@pytest.mark.parametrize("rows", [1, 2])
def test_tiny_inputs(rows):
    result = kmeans(torch.ones(rows, 3), 4, generator=_gen())
    assert result.inertia == 0.0
    assert result.indices.shape == (rows,)


def test_every_cluster_is_used_on_skewed_data():
    """一个巨大的簇加少量散点：空簇必须被修复。"""
    x = torch.cat([torch.randn(3000, 4, generator=_gen(0)) * 0.01, torch.randn(60, 4, generator=_gen(1)) * 10])
    result = kmeans(x, 64, generator=_gen(2))
    assert int((counts_of(result) == 0).sum()) == 0


def test_same_seed_same_bytes_and_scale_equivariance():
    x = torch.randn(1200, 7, generator=_gen(4))
    a, b = (kmeans(x, 30, generator=_gen(9)) for _ in range(2))
    assert torch.equal(a.centroids, b.centroids)
    scaled = kmeans(x * 2.0**13, 30, generator=_gen(9))
    assert torch.equal(scaled.indices, a.indices)
    assert torch.equal(scaled.centroids, a.centroids * 2.0**13)
    other = kmeans(x, 30, generator=_gen(10))
    assert not torch.equal(other.centroids, a.centroids)


def test_no_worse_than_plain_lloyd_from_random_rows():
    x, _ = _blobs(2000, 30, 8)
    ours = kmeans(x, 30, generator=_gen(0)).inertia
    rivals = []
    for seed in range(5):
        c = x[torch.randperm(len(x), generator=_gen(seed))[:30]].clone()
        for _ in range(12):
            nearest = torch.cdist(x, c).argmin(1)
            for j in nearest.unique():
                c[j] = x[nearest == j].mean(0)
        rivals.append(float(torch.cdist(x, c).min(1).values.square().sum()))
    assert ours <= min(rivals)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_few_clusters(k):
    """换位至少要三个簇；一两个簇时它不该出现，也不该出错。"""
    result = kmeans(torch.randn(500, 3, generator=_gen(1)), k, generator=_gen(2), iterations=8)
    assert int(counts_of(result).min()) >= 1
    if k == 1:
        assert result.inertia == pytest.approx(500 * 3, rel=0.15)


def test_rare_distinct_rows_are_found():
    """子样播种抽不到的稀有行，改用全部的行找回来。"""
    x = torch.zeros(5000, 2)
    x[:9] = torch.arange(18.0).view(9, 2) + 1
    result = kmeans(x, 10, generator=_gen(0))
    assert result.inertia == 0.0
    assert result.num_surplus == 0
    assert sorted(counts_of(result).tolist()) == [1] * 9 + [4991]


def test_threads_do_not_change_a_byte():
    x = torch.randn(20000, 24, generator=_gen(5))  # 足够大：热身、换位、多线程都会发生
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(kmeans(x, 128, generator=_gen(6)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].centroids, results[1].centroids)
    assert torch.equal(results[0].indices, results[1].indices)


def test_sums_of_small_large_and_empty_clusters():
    x = torch.randn(3000, 5, generator=_gen(1)) + 100
    indices = torch.cat([torch.zeros(2000, dtype=torch.int64), torch.tensor([3, 4]).repeat(500)])
    indices = indices[torch.randperm(3000, generator=_gen(2))]
    sums, counts = _sums(x, indices, 6)
    expected = torch.zeros(6, 5, dtype=torch.float64).index_add_(0, indices, x.double())
    torch.testing.assert_close(sums, expected, rtol=2e-6, atol=0)
    assert counts.tolist() == [2000, 0, 0, 500, 500, 0]


def test_split_by_hand():
    """簇 0 是 {0, 1, 10, 12}：分成均值 0.5 与 11，inertia 降 2·2/4·10.5²；簇 1 只有一行，分不开。"""
    x = torch.tensor([[0.0], [1.0], [10.0], [12.0], [90.0]])
    state = _assign(x, torch.tensor([[5.75], [90.0]]))
    children, gain = _split(x, torch.tensor([[5.75], [90.0]]), state)
    assert sorted(children[0, :, 0].tolist()) == [0.5, 11.0]
    assert gain.tolist() == [pytest.approx(110.25), 0.0]


def test_swap_moves_a_wasted_center():
    """两个中心挤在一团里、另一个中心管着两团：Lloyd 到此为止，换位能走出来。"""
    spots = torch.tensor([[0.0, 0.0], [100.0, 0.0], [100.0, 40.0], [-100.0, 0.0], [-100.0, 50.0]])
    x = spots.repeat_interleave(50, 0) + torch.randn(250, 2, generator=_gen(1))
    stuck = torch.tensor([[-0.8, 0.0], [0.8, 0.0], [100.0, 20.0], [-100.0, 0.0], [-100.0, 50.0]])
    for _ in range(20):
        state = _assign(x, stuck)
        stuck = torch.stack([x[state.indices == cluster].mean(0) for cluster in range(5)])
    moved, count = _swap(stuck, stuck, x, state)
    assert count == 1
    assert _assign(x, moved).inertia < 0.05 * state.inertia


def test_swap_never_raises_inertia():
    for seed in range(5):
        x = torch.randn(2000, 6, generator=_gen(seed)) ** 3
        state = _assign(x, x[:100].clone())
        sums, counts = _sums(x, state.indices, 100)
        mean = (sums / counts[:, None]).float()
        moved, count = _swap(mean, mean, x, state)
        before = _assign(x, mean).inertia
        assert count > 0
        assert _assign(x, moved).inertia < before
