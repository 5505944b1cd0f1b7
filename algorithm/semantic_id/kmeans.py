"""k-means：成批 k-means++ 播种、Lloyd 迭代、空簇修复；纯函数。

形状字母：N 行数，H 宽度，K 簇数。

播种按 D² 抽样，但一轮抽一批：逐个抽 K = 16384 次要把数据从内存里读 16384 遍，一批一批抽（每批是已有中心的
四分之一）只需约 45 遍，每遍又是矩阵乘，总运算量等于一次 Lloyd 迭代。

References:
    Arthur & Vassilvitskii, 2007, k-means++；Bahmani et al., 2012, Scalable K-Means++, arXiv:1203.6402。
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch

from . import search

__all__ = ["KMeansResult", "kmeans"]

_ROUND_RATE = 4  # 每轮抽「已有中心数 / 4」个
_BLOCK_ROWS = 8192


class KMeansResult(NamedTuple):
    """聚类结果。

    Attributes:
        centroids: (K, H) float32。
        indices: (N,) int64，每行最近的中心。
        counts: (K,) int64，每簇行数。
        inertia: Σ‖x − c‖²，float64。
        iterations: 实际迭代数。
        num_surplus: 没有数据可分的多余中心数（不同的行少于 K 时），它们被放在随机两行之间。
    """

    centroids: torch.Tensor
    indices: torch.Tensor
    counts: torch.Tensor
    inertia: float
    iterations: int
    num_surplus: int


def kmeans(
    x: torch.Tensor,
    k: int,
    *,
    generator: torch.Generator,
    iterations: int = 12,
    tolerance: float = 1e-3,
    on_iteration: Callable[[int, float], None] | None = None,
) -> KMeansResult:
    """把 N 行分成 K 簇。

    Args:
        x: (N, H) float32，有限，N ≥ 1；调用者保证。
        k: 簇数，可以大于 N。
        generator: CPU 上的随机数发生器；同样的种子得到同样的字节。
        iterations: Lloyd 迭代上限。
        tolerance: 一次迭代使 inertia 相对下降不到它就停。
        on_iteration: 每次迭代后以 (迭代序号, inertia) 调用，供进度条使用。

    Returns:
        `KMeansResult`。返回的 indices 对应返回的 centroids。
    """
    centroids, num_distinct = _seed(x, k, generator)
    previous = float("inf")
    for iteration in range(1, iterations + 1):
        indices, errors = _assign(x, centroids)
        inertia = float(errors.sum())
        if on_iteration is not None:
            on_iteration(iteration, inertia)
        if inertia == 0.0 or previous - inertia <= tolerance * inertia:
            break
        previous = inertia
        centroids = _update(x, indices, errors, centroids)
    indices, errors = _assign(x, centroids)
    counts = torch.bincount(indices, minlength=k)
    return KMeansResult(centroids, indices, counts, float(errors.sum()), iteration, max(0, k - num_distinct))


def _seed(x: torch.Tensor, k: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """成批 D² 抽样，返回 (中心, 取自数据的中心数)。

    不同的行不够时，余下的中心取随机两行之间的点：离数据不远，新物品来时用得上。
    """
    first = int(torch.randint(len(x), (1,), generator=generator))
    chosen = [x[first : first + 1]]
    have = 1
    errors = (x - chosen[0]).double().square_().sum(1) if len(x) <= _BLOCK_ROWS else _errors(x, chosen[0], None)
    while have < k:
        weights = errors.cpu()
        wanted = min(k - have, max(1, have // _ROUND_RATE), int((weights > 0).sum()))
        if wanted == 0:
            break
        # 指数竞赛：Exp(1) / 权重 最小的 m 个，等价于按权重不放回抽样
        keys = torch.empty_like(weights).exponential_(generator=generator) / weights
        rows = keys.argsort(stable=True)[:wanted].to(x.device)
        fresh = x[rows]
        chosen.append(fresh)
        have += wanted
        if have < k:
            nearest = search.nearest(x, search.prepare(fresh.contiguous()))
            errors = torch.minimum(errors, _errors(x, fresh, nearest))
    if have < k:
        a = torch.randint(len(x), (k - have,), generator=generator)
        b = (a + 1 + torch.randint(max(len(x) - 1, 1), (k - have,), generator=generator)) % len(x)  # 与 a 不同的行
        share = torch.empty(k - have, 1).uniform_(0.25, 0.75, generator=generator)
        chosen.append(torch.lerp(x[a.to(x.device)], x[b.to(x.device)], share.to(x.device)))
    return torch.cat(chosen), have


def _assign(x: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """最近中心 (N,) 与误差平方 (N,) float64。"""
    indices = search.nearest(x, search.prepare(centroids))
    return indices, _errors(x, centroids, indices)


def _errors(x: torch.Tensor, centroids: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """(N,) float64 的 ‖x − c‖²；indices 为 None 表示只有一个中心。分块，不产生 (N, H) 的副本。"""
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        target = centroids if indices is None else centroids[indices[block]]
        torch.sum((x[block] - target).square_(), dim=1, dtype=torch.float64, out=out[block])
    return out


def _update(x: torch.Tensor, indices: torch.Tensor, errors: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """簇均值；空簇搬到误差最大的行上（那一行同时离开原来的簇）。"""
    sums = torch.zeros(old.shape, dtype=torch.float64, device=x.device)  # (K, H)
    for start in range(0, len(x), _BLOCK_ROWS):  # float64 累加：大簇的均值不因行数而丢精度
        block = slice(start, start + _BLOCK_ROWS)
        sums.index_add_(0, indices[block], x[block].double())
    counts = torch.bincount(indices, minlength=len(old))
    _fill_empty_(sums, counts, x, indices, errors)
    used = counts > 0
    centroids = old.clone()  # 仍然空着的簇留在原处
    centroids[used] = (sums[used] / counts[used, None]).float()
    return centroids


def _fill_empty_(
    sums: torch.Tensor, counts: torch.Tensor, x: torch.Tensor, indices: torch.Tensor, errors: torch.Tensor
) -> None:
    """把误差最大的行逐个分给空簇；行数不够（或误差都为 0）时，其余的空簇留空。"""
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return
    donors = iter(errors.cpu().argsort(descending=True, stable=True).tolist())
    for cluster in empty:
        row = next((r for r in donors if errors[r] > 0 and counts[indices[r]] > 1), None)
        if row is None:
            return
        vector = x[row].double()
        sums[indices[row]] -= vector
        counts[indices[row]] -= 1
        sums[cluster] = vector
        counts[cluster] = 1
