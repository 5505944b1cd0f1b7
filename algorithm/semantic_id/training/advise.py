"""码本大小的建议：先按物品数给一个起点，再用抽样上的残差 k-means 看每一层加倍还能消掉多少误差。

形状字母：N 物品数，S 抽样行数，D 特征维度，L 层数，K_l 第 l 层的码本大小。

起点（`rule_sizes`）：K_1 ≈ √N，让两半的信息各占一半；K_L ≈ N / 48，每个码字平均见过四十几行才学得稳；中间按等比取，
都取成 2 的幂。每个码字四十几行养得起时，任何一层都不小于 256：12,101 个物品只按 √N 得 128/128/256，训练出来
误差 .405、冲突 13.8%，256/256/256 是 .354、8.7%（docs/log.md），一个 ID 的词数一样。一百万物品得到 1024/4096/16384，
一万二得到 256/256/256。
调整：留出的行上（码本没见过），K 加倍若消不掉剩余误差的 1% 或全部偏差的 0.2%，就减半（至多两次）；消得掉 7% 以上、
而每个码字仍有 16 行，就加倍。码本记住训练行时留出误差不降，所以过大的码本在这里自己露馅。
抽样时 K 按抽样的比例缩小：要紧的是每个码字有几行。不缩的话，小样本上的大码本全在背数据，会把该留的层也减掉。
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Tuple

import numpy as np
import torch

from ..errors import InputError
from ..files.progress import OnProgress
from ..files.source import VectorSource, pick_rows
from ..limits import check_int
from ..metrics.neighbours import sample_rows
from ..search import nearest as search
from .kmeans import kmeans

__all__ = ["advise_sizes", "rule_sizes"]

MAX_SAMPLE = 50_000
HOLDOUT_RATE = 0.15
GROW_ROWS_PER_CODEWORD = 16
SHRINK_GAIN, GROW_GAIN = 0.01, 0.07  # 占剩余误差
SHRINK_TOTAL = 0.002  # 占原来的全部偏差：剩下的只是噪声时，占剩余的比例仍可能很大
MIN_SIZE, MAX_SIZE = 8, 65536
_MAX_HALVINGS = 2
_AFFORDABLE = 256  # 数据养得起时，一层至少这么多码字；同行的小目录也都从 256 起
_ITERATIONS = 3
_MIN_ITEMS = 100


def rule_sizes(num_items: int, num_levels: int) -> List[int]:
    """只看物品数的起点。

    Args:
        num_items: 物品数 N ≥ 1。
        num_levels: 层数 L ≥ 1。

    Returns:
        L 个 2 的幂，不减，各在 [8, 65536]。

    Examples:
        >>> rule_sizes(1_000_000, 3)
        [1024, 4096, 16384]
        >>> rule_sizes(12_000, 3)
        [256, 256, 256]
    """
    fed = num_items / 48  # 养得起这么多码字
    first, last = math.sqrt(num_items), max(fed, math.sqrt(num_items))
    steps = max(num_levels - 1, 1)
    floor = max(min(_AFFORDABLE, fed), 1)
    sizes = [max(first * (last / first) ** (level / steps), floor) for level in range(num_levels)]
    return [min(max(2 ** round(math.log2(size)), MIN_SIZE), MAX_SIZE) for size in sizes]


def advise_sizes(
    source: VectorSource, *, num_levels: int = 3, seed: int = 0, progress: OnProgress | None = None
) -> Dict[str, Any]:
    """为一批特征建议码本大小。

    Args:
        source: 特征，至少 100 行。
        num_levels: 层数，[1, 8]。
        seed: 抽样与 k-means 的种子；同样的种子得到同样的建议。
        progress: 每完成一层以（层号, 层数）调用，层号从 1 起。

    Returns:
        codebook_sizes；num_items、num_sample_rows、num_holdout_rows；capacity_ratio（ΠK_l / N，远大于 1 才少冲突）；
        levels：每层
        rule（起点）、size（建议）、measured_at（建议在抽样上对应的 K）、tried（抽样上的 K、训练与留出行上的相对误差）、
        gain（在起点上加倍消掉的剩余误差比例，留出行）、removed（这一层在留出行上消掉的剩余误差比例）、
        decision（keep、shrink、grow）。

    Raises:
        ValueError: 层数越界，行太少，或所有行都相同。
    """
    if not 1 <= num_levels <= 8:
        raise InputError(f"num_levels={num_levels} is out of range; use 1..8")
    if source.num_rows < _MIN_ITEMS:
        raise InputError(f"features {source.description} has {source.num_rows} rows; at least {_MIN_ITEMS} are needed")
    check_int("seed", seed, 0, 2**62)  # 每层各加一，不会越过 int64
    train, held = _sample(source, seed)
    mean = train.mean(dim=0)
    train, held = train - mean, held - mean
    scale = _energy(train), _energy(held)
    if min(scale) <= 0:
        raise InputError(f"features {source.description} holds the same vector in every sampled row; nothing to code")
    levels: List[Dict[str, Any]] = []
    for level, rule in enumerate(rule_sizes(source.num_rows, num_levels)):
        figures, codebook = _one_level(train, held, rule, source.num_rows, scale, seed + level)
        levels.append({"level": level + 1, **figures})
        prepared = search.prepare(codebook)
        train = train - codebook[search.nearest(train, prepared)]
        held = held - codebook[search.nearest(held, prepared)]
        if progress is not None:
            progress(level + 1, num_levels)
    sizes = [level["size"] for level in levels]
    return {
        "codebook_sizes": sizes,
        "num_items": source.num_rows,
        "num_sample_rows": len(train),
        "num_holdout_rows": len(held),
        "capacity_ratio": math.prod(sizes) / source.num_rows,
        "levels": levels,
        "features": source.description,
        "seed": seed,
    }


def _one_level(
    train: torch.Tensor, held: torch.Tensor, rule: int, num_items: int, scale: Tuple[float, float], seed: int
) -> Tuple[Dict[str, Any], torch.Tensor]:
    """一层：从起点往下或往上走，返回数字与选中的（按抽样缩小的）码本。"""
    shift = max(0, round(math.log2(num_items / (len(train) + len(held)))))  # K 在抽样上缩小 2^shift 倍
    at = max(rule >> shift, 2)
    before = _energy(held) / scale[1]
    tried: Dict[int, Tuple[float, float, torch.Tensor]] = {}

    def error(size: int) -> float:
        if size not in tried:
            result = kmeans(train, size, generator=torch.Generator().manual_seed(seed), iterations=_ITERATIONS)
            left = held - result.centroids[search.nearest(held, search.prepare(result.centroids))]
            tried[size] = (result.inertia / len(train) / scale[0], _energy(left) / scale[1], result.centroids)
        return tried[size][1]

    def gain(size: int) -> float:
        """K 从一半到 size 消掉的剩余误差，留出行。"""
        half = error(max(size // 2, 1))
        return 1.0 - error(size) / half if half > 0 else 0.0

    def useless(size: int) -> bool:
        """从一半加倍到 size 几乎没有用。"""
        return gain(size) < SHRINK_GAIN or error(max(size // 2, 1)) - error(size) < SHRINK_TOTAL

    first, size, decision = gain(at), at, "keep"
    if useless(at):
        floor = max(at >> _MAX_HALVINGS, MIN_SIZE >> shift, 2)
        while size // 2 >= floor and useless(size):
            size, decision = size // 2, "shrink"
    elif num_items >= GROW_ROWS_PER_CODEWORD * 2 * rule and gain(2 * at) > GROW_GAIN and not useless(2 * at):
        size, decision = 2 * at, "grow"
    factor = size / at
    error(size)
    figures = {
        "rule": rule,
        "size": int(rule * factor),
        "measured_at": size,
        "decision": decision,
        "gain": first,
        "removed": 1.0 - error(size) / before if before > 0 else 0.0,
        "tried": [{"size": k, "relative_mse": tried[k][0], "holdout_relative_mse": tried[k][1]} for k in sorted(tried)],
    }
    return figures, tried[size][2]


def _sample(source: VectorSource, seed: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """(训练行, 留出行)，float32。"""
    rows = sample_rows(source.num_rows, MAX_SAMPLE, seed)
    vectors = torch.from_numpy(np.concatenate([vectors for _, vectors in pick_rows(source, rows, 8192)]))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(vectors)))
    num_held = max(1, int(len(vectors) * HOLDOUT_RATE))
    return vectors[order[num_held:]], vectors[order[:num_held]]


def _energy(x: torch.Tensor) -> float:
    """每行平方和的平均，float64。"""
    return float(x.double().square().sum() / len(x))
