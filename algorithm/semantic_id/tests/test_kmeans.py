"""k-means：手算的小例、不变量、空簇修复、重复行、可复现、尺度等变。"""

import pytest
import torch

from algorithm.semantic_id.kmeans import kmeans


def _gen(seed=0):
    return torch.Generator().manual_seed(seed)


def _blobs(num_rows=600, k=6, dim=5, seed=0):
    centers = torch.randn(k, dim, generator=_gen(seed)) * 20
    label = torch.arange(num_rows) % k
    return centers[label] + torch.randn(num_rows, dim, generator=_gen(seed + 1)), label


def test_two_points_two_clusters():
    result = kmeans(torch.tensor([[0.0], [1.0], [10.0], [12.0]]), 2, generator=_gen())
    assert sorted(result.centroids[:, 0].tolist()) == [0.5, 11.0]
    assert result.inertia == pytest.approx(0.5 + 2.0)
    assert sorted(result.counts.tolist()) == [2, 2]


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
    assert torch.equal(result.counts, torch.bincount(result.indices, minlength=50))
    assert int(result.counts.min()) >= 1


def test_inertia_never_rises():
    x = torch.randn(1500, 6, generator=_gen(1))
    seen = []
    kmeans(x, 40, generator=_gen(2), iterations=10, tolerance=0.0, on_iteration=lambda i, e: seen.append(e))
    assert len(seen) == 10
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in zip(seen, seen[1:], strict=False))
    assert seen[-1] < 0.95 * seen[0]


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
    assert sorted(result.counts.tolist(), reverse=True)[:3] == [100, 100, 100]


@pytest.mark.parametrize("rows", [1, 2])
def test_tiny_inputs(rows):
    result = kmeans(torch.ones(rows, 3), 4, generator=_gen())
    assert result.inertia == 0.0
    assert result.indices.shape == (rows,)


def test_every_cluster_is_used_on_skewed_data():
    """一个巨大的簇加少量散点：空簇必须被修复。"""
    x = torch.cat([torch.randn(3000, 4, generator=_gen(0)) * 0.01, torch.randn(60, 4, generator=_gen(1)) * 10])
    result = kmeans(x, 64, generator=_gen(2))
    assert int((result.counts == 0).sum()) == 0


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
