"""不用解码器的重建：同一前缀的物品都猜成它们的平均。任何人的编码都能这样量，不需要模型。

这是只看前 l 个编号时任何解码器能做到的最好（在这批物品上），所以是重建误差的下界；代价是乐观：独占一个前缀的物品误差记
为 0。所以总与「独占的比例」一起看。

形状字母：N 物品数，D 特征维度，L 层数，l 前缀长度，G 前缀组数（只数至少两个物品的组）。
内存：G · D 个 float64，超过 `MAX_SUM_BYTES` 时按种子抽一部分组，由它们按比例推到全体。
"""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Tuple

import numpy as np

from ..files.source import VectorSource
from .meaning import prefix_groups

__all__ = ["PrefixError", "add_by_group_", "prefix_mean_errors"]

MAX_SUM_BYTES = 512 << 20


class PrefixError(NamedTuple):
    """一个前缀长度的结果。

    Attributes:
        error_sum: Σ‖x − 组平均‖²，float64；抽样时是估计。
        alone_rate: 独占自己前缀的物品所占比例，[0, 1]。
        sampled_groups: 抽了几个组；None 为全部，即精确。
    """

    error_sum: float
    alone_rate: float
    sampled_groups: int | None


def prefix_mean_errors(
    source: VectorSource,
    codes: np.ndarray,
    mean: np.ndarray,
    *,
    block_rows: int = 8192,
    seed: int = 0,
    on_block: Callable[[int], None] | None = None,
) -> List[PrefixError]:
    """逐个前缀长度量「猜成组平均」的误差。

    Args:
        source: N 行特征。
        codes: (N, L) 整数编码。
        mean: (D,) float64，全体的均值；先减掉它，大数相减才不丢位。
        block_rows: 一次读多少行。
        seed: 抽组的种子。
        on_block: 每读完一块调用一次，参数为这块的行数。

    Returns:
        L 个结果，依次为 l = 1…L。
    """
    seen = on_block or (lambda rows: None)
    return [
        _one_length(source, prefix_groups(codes, length), mean, block_rows, seed, seen)
        for length in range(1, codes.shape[1] + 1)
    ]


def _one_length(
    source: VectorSource,
    group: np.ndarray,
    mean: np.ndarray,
    block_rows: int,
    seed: int,
    seen: Callable[[int], None],
) -> PrefixError:
    """一个前缀长度：Σ‖x − m_g‖² = Σ‖x‖² − Σ_g ‖S_g‖² / n_g，只在不止一个物品的组上求。"""
    counts = np.bincount(group)  # (G',)
    alone = float((counts == 1).sum() / len(group))
    kept, sampled = _choose_groups(np.flatnonzero(counts > 1), source.dim, seed)
    if len(kept) == 0:
        return PrefixError(0.0, alone, None)
    slot = np.full(len(counts), -1)
    slot[kept] = np.arange(len(kept))
    slots = slot[group]  # (N,)，−1 为独占或没抽中
    sums = np.zeros((len(kept), source.dim))
    squares = 0.0
    for block in source.blocks(block_rows):
        mine = slots[block.start : block.start + len(block.vectors)]
        picked = np.flatnonzero(mine >= 0)
        x = block.vectors[picked] - mean  # (b, D) float64
        squares += float(np.square(x).sum())
        add_by_group_(sums, mine[picked], x)
        seen(len(block.vectors))
    within = squares - float((np.square(sums).sum(axis=1) / counts[kept]).sum())
    scale = 1.0
    if sampled is not None:
        scale = float(counts[counts > 1].sum() / counts[kept].sum())
    return PrefixError(max(within, 0.0) * scale, alone, sampled)


def add_by_group_(sums: np.ndarray, groups: np.ndarray, x: np.ndarray) -> None:
    """把每一行加到它那一组上：`sums` (G, D) 就地改，`groups` (b,) 是各行的组号，`x` (b, D)。"""
    if len(x):
        order = np.argsort(groups, kind="stable")
        ids, starts = np.unique(groups[order], return_index=True)
        sums[ids] += np.add.reduceat(x[order], starts, axis=0)


def _choose_groups(groups: np.ndarray, dim: int, seed: int) -> Tuple[np.ndarray, int | None]:
    """放得下就全要。"""
    limit = max(1, MAX_SUM_BYTES // (8 * dim))
    if len(groups) <= limit:
        return groups, None
    return np.sort(np.random.default_rng(seed).choice(groups, limit, replace=False)), limit
