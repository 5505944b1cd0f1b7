"""k-means：成批 k-means++ 播种、过松弛 Lloyd、并小簇分大簇、空簇修复；纯函数。

形状字母：N 行数，H 宽度，K 簇数。

时间几乎都在「每行找最近的中心」这一个矩阵乘上，所以目标是用尽量少的几遍得到尽量低的 inertia。括号里是
100,000 行 × 256 维的词义向量、K = 1024 时的实测（faiss 25 遍：57,698）：
    播种：D² 抽样一轮抽一批，只在 2K 行的子样上做。高维数据上它的起点并不比随机行好（一遍之后就分不出来），
        但簇分得很开时少不了它。
    热身：行数远多于簇数时，头几遍在子样上走：只为把中心挪到大致的位置，用不着全部的行。
    换位：Lloyd 只会挪动中心，不会拆散两个挨着的中心去救远处的大簇。`_swap` 把「撤掉最不可惜」的中心搬去平分
        「分开最划算」的簇；代价与收益都按行算，只做收益大于代价的（10 遍：58,015 → 57,711）。
    过松弛：中心不停在均值上，而是多走 0.9 倍。均值随归属一起动，Lloyd 每步都太短（9 遍：57,750 → 57,497）。

References:
    Arthur & Vassilvitskii, 2007, k-means++；Bahmani et al., 2012, Scalable K-Means++, arXiv:1203.6402；
    Fritzke, 2020, The breathing k-means algorithm, arXiv:2006.15666（换位的代价与收益）。
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..codebook import draw_by_weight
from ..files.progress import OnProgress
from ..search.nearest import nearest, prepare

__all__ = ["KMeansResult", "kmeans"]

_ROUND_RATE = 4  # 每轮抽「已有中心数 / 4」个；中心多了以后每轮翻一番
_DOUBLING_FROM = 64
_SEED_ROWS = 2  # 播种的子样是每簇 2 行
_WARM_ROWS = 32  # 每簇 32 行的子样不到全部的一半时，先在它上面迭代
_BLOCK_ROWS = 1024  # 256 维时一块 1 MB，连同取出的中心留在二级缓存里
_BAG_ROWS = 256  # 求均值时一袋之内用 float32，袋与袋之间用 float64
_RELAX = 0.9  # 多走的倍数
_SWAP_RATE = 8  # 一次最多换位 K / 8 个中心
_SWAP_UNTIL = 256  # 换位的中心少于 K / 256 个之后不再换位


class KMeansResult(NamedTuple):
    """聚类结果。

    Attributes:
        centroids: (K, H) float32。
        indices: (N,) int64，每行最近的中心。
        inertia: Σ‖x − c‖²，float64。
        history: 每次迭代之后的 inertia，长度即实际迭代数。
        num_surplus: 没有数据可分的多余中心数（不同的行少于 K 时），它们被放在随机两行之间。
    """

    centroids: torch.Tensor
    indices: torch.Tensor
    inertia: float
    history: list[float]
    num_surplus: int


class _State(NamedTuple):
    """一组中心与它的归属：中心 (K, H)、归属 (N,) int64、误差平方 (N,) float64、误差之和。"""

    centroids: torch.Tensor
    indices: torch.Tensor
    errors: torch.Tensor
    inertia: float


def kmeans(
    x: torch.Tensor,
    k: int,
    *,
    generator: torch.Generator,
    iterations: int = 5,
    tolerance: float = 1e-3,
    progress: OnProgress | None = None,
) -> KMeansResult:
    """把 N 行分成 K 簇。

    Args:
        x: (N, H) float32，有限，N ≥ 1；调用者保证。
        k: 簇数，可以大于 N。
        generator: CPU 上的随机数发生器；同样的种子得到同样的字节，与线程数无关。
        iterations: 迭代上限；一次迭代是更新一次中心、重新归属一遍。
        tolerance: 不换位、不过松弛的一次迭代使 inertia 相对下降不到它就停。
        progress: 每次迭代后以 (迭代序号, 迭代上限) 调用。

    Returns:
        `KMeansResult`，所有迭代里 inertia 最低的一组中心。返回的 indices 对应返回的 centroids。
    """
    # 子样用同一个排列的开头：播种与热身各取所需的行数
    order = torch.randperm(len(x), generator=generator) if _SEED_ROWS * k < len(x) else torch.arange(len(x))
    centroids, num_distinct = _seed(x, order, k, generator)
    if 2 * _WARM_ROWS * k <= len(x):
        sample = x[order[: _WARM_ROWS * k].to(x.device)]
        centroids = _lloyd(sample, centroids, iterations, tolerance, None)[0].centroids
    best, history = _lloyd(x, centroids, iterations, tolerance, progress)
    return KMeansResult(best.centroids, best.indices, best.inertia, history, max(0, k - num_distinct))


def _lloyd(
    x: torch.Tensor,
    centroids: torch.Tensor,
    iterations: int,
    tolerance: float,
    progress: OnProgress | None,
) -> tuple[_State, list[float]]:
    """更新、换位、过松弛、重新归属，直到收敛或次数用完；返回 inertia 最低的状态与每次迭代的 inertia。"""
    history: list[float] = []
    best = state = _assign(x, centroids)
    relax, swapping, iteration = _RELAX, True, 0
    while iteration < iterations and state.inertia > 0.0:
        iteration += 1
        mean = _update(x, state)
        centroids = mean
        # 起点若是数据行，第一步离均值太远：不值得分裂，多走也会走过头
        relaxed = 1 < iteration < iterations and relax > 0
        if relaxed:
            centroids = mean + relax * (mean - state.centroids)
        num_swapped = 0
        if iteration > 1 and swapping:
            centroids, num_swapped = _swap(centroids, mean, x, state)
            swapping = num_swapped * _SWAP_UNTIL >= len(mean)
        previous, state = state.inertia, _assign(x, centroids)
        history.append(state.inertia)
        if progress is not None:
            progress(iteration, iterations)
        best = state if state.inertia < best.inertia else best
        if previous - state.inertia <= tolerance * state.inertia:
            if not relaxed and not num_swapped:
                break
            relax = 0.0  # 多走已经无益，最后几步回到均值上
    return best, history


def _seed(x: torch.Tensor, order: torch.Tensor, k: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """在子样（`order` 的前 2K 行）上播种；子样里不同的行不够 K 个时改用全部的行。返回 (中心, 取自数据的中心数)。

    不同的行还是不够时，余下的中心取随机两行之间的点：离数据不远，新物品来时用得上。
    """
    if _SEED_ROWS * k < len(x):
        chosen = _seed_from(x[order[: _SEED_ROWS * k].to(x.device)], k, generator)
        if len(chosen) == k:
            return chosen, k
    chosen = _seed_from(x, k, generator)
    have, missing = len(chosen), k - len(chosen)
    if missing:
        a = torch.randint(len(x), (missing,), generator=generator)
        b = (a + 1 + torch.randint(max(len(x) - 1, 1), (missing,), generator=generator)) % len(x)  # 与 a 不同的行
        share = torch.empty(missing, 1).uniform_(0.25, 0.75, generator=generator)
        between = torch.lerp(x[a.to(x.device)], x[b.to(x.device)], share.to(x.device))
        chosen = torch.cat([chosen, between])
    return chosen, have


def _seed_from(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """成批 D² 抽样，至多 k 个互不相同的行。"""
    rows = torch.randint(len(x), (1,), generator=generator)
    chosen, have, errors = [], 0, torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    while True:
        fresh = x[rows.to(x.device)]
        chosen.append(fresh)
        have += len(fresh)
        if have == k:
            break
        errors = torch.minimum(errors, _assign(x, fresh).errors)
        weights = errors.cpu()
        share = 1 if have >= _DOUBLING_FROM else _ROUND_RATE
        if not bool((weights > 0).any()):
            break
        rows = draw_by_weight(weights, min(k - have, max(1, have // share)), generator)
    return torch.cat(chosen)


def _assign(x: torch.Tensor, centroids: torch.Tensor) -> _State:
    """每行归到最近的中心。"""
    indices = nearest(x, prepare(centroids))
    errors = _errors(x, centroids, indices)
    return _State(centroids, indices, errors, float(errors.sum()))


def _errors(x: torch.Tensor, centroids: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(N,) float64 的 ‖x − c‖²。分块，不产生 (N, H) 的副本；一行之内的和用 float32，相对误差约 1e-6。"""
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        gap = x[block] - centroids.index_select(0, indices[block])  # (≤1024, H)
        out[block] = torch.linalg.vecdot(gap, gap)
    return out


def _sums(x: torch.Tensor, indices: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """簇内之和 (K, H) float64 与行数 (K,)。

    按簇排好序再一袋一袋地加：比逐行 `index_add_` 快几倍，次序也不随线程数变。一袋至多 256 行，所以 float32 的
    袋内误差有界，大簇的均值不因行数而丢精度。
    """
    counts = torch.bincount(indices, minlength=k)
    order = indices.argsort(stable=True)
    num_bags = (counts + _BAG_ROWS - 1) // _BAG_ROWS  # (K,)
    owner = torch.repeat_interleave(torch.arange(k, device=x.device), num_bags)  # 每袋属于哪一簇
    place = torch.arange(len(owner), device=x.device) - (num_bags.cumsum(0) - num_bags)[owner]  # 簇内第几袋
    starts = (counts.cumsum(0) - counts)[owner] + place * _BAG_ROWS
    bags = F.embedding_bag(order, x, starts, mode="sum")
    return torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, owner, bags.double()), counts


def _update(x: torch.Tensor, state: _State) -> torch.Tensor:
    """簇均值；空簇搬到误差最大的行上（那一行同时离开原来的簇）。"""
    sums, counts = _sums(x, state.indices, len(state.centroids))
    _fill_empty_(sums, counts, x, state)
    mean = (sums / counts.clamp(min=1)[:, None]).float()
    return torch.where(counts[:, None] > 0, mean, state.centroids)  # 仍然空着的簇留在原处


def _fill_empty_(sums: torch.Tensor, counts: torch.Tensor, x: torch.Tensor, state: _State) -> None:
    """把误差最大的行逐个分给空簇；行数不够（或误差都为 0）时，其余的空簇留空。"""
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return
    indices, errors = state.indices, state.errors
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


def _swap(centroids: torch.Tensor, mean: torch.Tensor, x: torch.Tensor, state: _State) -> tuple[torch.Tensor, int]:
    """把撤掉最不可惜的中心搬去平分最值得分的簇，返回 (中心, 搬了几个)。

    分裂的簇与撤掉的簇互不相干，撤掉的簇里的行只准投奔两者之外的簇，所以「收益 − 代价」是 inertia 下降的下界。

    Args:
        centroids: (K, H) 过松弛之后的中心，没有换位的簇用它。
        mean: (K, H) 刚更新的簇均值，代价与收益按它算。
        x: (N, H)。
        state: 更新之前的归属与误差。
    """
    k = len(centroids)
    if k < 3:
        return centroids, 0
    limit = -(-k // _SWAP_RATE)
    children, gain = _split(x, mean, state)
    split = gain.argsort(descending=True, stable=True)[:limit]
    # 先按便宜的指标挑出可能撤掉的：总误差小、行数少；真正的代价随后按行算
    load = torch.bincount(state.indices, weights=state.errors + 0.5 * state.errors.mean(), minlength=k)
    load[split] = float("inf")
    drop = load.argsort(stable=True)[: min(limit, k - limit - 1)]
    dropped = torch.zeros(k, dtype=torch.bool, device=x.device)
    dropped[drop] = True
    kept = ~dropped
    kept[split] = False
    rows = dropped[state.indices].nonzero()[:, 0]
    homeless, old = x[rows], state.indices[rows]
    loss = _assign(homeless, mean[kept]).errors - _errors(homeless, mean, old)
    cost = torch.bincount(old, weights=loss, minlength=k)[drop]
    cost, cheapest = cost.sort(stable=True)
    worthwhile = gain[split[: len(drop)]] > cost
    split, drop = split[: len(drop)][worthwhile], drop[cheapest][worthwhile]
    centroids = centroids.clone()
    centroids[split], centroids[drop] = children[split, 0], children[split, 1]
    return centroids, len(split)


def _split(x: torch.Tensor, centroids: torch.Tensor, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
    """每簇各自一分为二（两步 2-means）：子中心 (K, 2, H) 与 inertia 的下降 (K,) float64；分不开的簇为 0。

    第二个子中心从「均值 → 簇内最远行」的五分之一处出发：高维里直接放在那一行上，它只抢得到那一行。
    """
    k, indices = len(centroids), state.indices
    order = state.errors.argsort(stable=True)
    order = order[indices[order].argsort(stable=True)]  # 按簇，簇内误差递增
    last = torch.bincount(indices, minlength=k).cumsum(0) - 1
    far = x[order[last.clamp(min=0)]]  # (K, H)；空簇取到别簇的行，收益仍是 0
    children = torch.stack([centroids, torch.lerp(centroids, far, 0.2)], dim=1)  # (K, 2, H)
    for _ in range(2):
        axis = children[:, 1] - children[:, 0]
        middle = torch.linalg.vecdot(axis, children[:, 1] + children[:, 0]) / 2
        side = torch.empty_like(indices)
        for start in range(0, len(x), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            owner = indices[block]
            side[block] = torch.linalg.vecdot(x[block], axis.index_select(0, owner)) > middle[owner]
        sums, counts = _sums(x, 2 * indices + side, 2 * k)
        mean = (sums / counts.clamp(min=1)[:, None]).float().view(k, 2, -1)
        children = torch.where(counts.view(k, 2, 1) > 0, mean, children)
    first, second = counts.double().view(k, 2).unbind(1)
    apart = (children[:, 1] - children[:, 0]).double().square().sum(1)
    return children, first * second / (first + second).clamp(min=1) * apart
