"""评估读特征的几遍：编码与误差一遍，近邻、命中率的近邻与地图一遍；都是流式的，内存不随文件走。

形状字母：N 为物品数，B 为一块的行数，D 为特征维度，L 为层数，Q 为查询物品数。
只认 `SemanticIDModel` 协议，从不 import 模型。累加用 float64；随 N 增长的只有 (N, L) int32 编码、每个物品一个误差、
一个散列与两个坐标，所以一百万物品也只要几百 MB。
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple

import numpy as np

from algorithm.interfaces import SemanticIDModel

from ..errors import InputError
from ..files.source import VectorSource, pick_rows
from ..metrics.neighbours import NearestSoFar, sample_rows
from ..metrics.principal_axes import principal_axes
from ..metrics.records.behaviour import HIT_KS

__all__ = ["NUM_QUERIES", "SEED", "Encoded", "Seen", "Surroundings", "encode_all", "look_around", "take_codes"]

NUM_NEIGHBOURS = 10
NUM_QUERIES = 1000  # 抽样查询物品；邻居占比的标准误因此不超过 0.5 / √1000 = 0.016
SEED = 0
_PLANE_ROWS = 20_000  # 求主成分用的行

Seen = Callable[[int], None]


class Encoded(NamedTuple):
    """第一遍读完得到的。

    Attributes:
        codes: (N, L) int32。
        errors: (N,) float32，‖x − x̂‖²；没有解码器时为 None。
        error: Σ‖x − x̂‖²；没有解码器时为 None。
        deviation: Σ‖x − μ‖²，μ 为**训练均值**，没有模型时为这批特征自己的均值；从未训练过的模型为 None。
        level_errors: L 个 Σ‖残差‖²，走完前 l 层；没有解码器时为 None。
        mean: (D,) float64，这批特征自己的均值。
        own_deviation: Σ‖x − mean‖²，不大于 deviation。
        duplicates: 与前面某一行逐字节相同的行数。
    """

    codes: np.ndarray
    errors: np.ndarray | None
    error: float | None
    deviation: float | None
    level_errors: List[float] | None
    mean: np.ndarray
    own_deviation: float
    duplicates: int


class Surroundings(NamedTuple):
    """第二遍得到的。

    Attributes:
        neighbours: (Q, M) 查询物品的精确近邻；物品太少时为 None。
        queries: (Q,) 它们的行号。
        hits: 向量种类 → (Q', K) 余弦近邻，种类为 features、reconstruction；没有行为时为空。
        plane: (N, 2) float32，特征在前两个主成分上的坐标。
    """

    neighbours: np.ndarray | None
    queries: np.ndarray
    hits: Dict[str, np.ndarray]
    plane: np.ndarray


def encode_all(
    model: SemanticIDModel, source: VectorSource, *, block_rows: int = 8192, on_block: Seen | None = None
) -> Encoded:
    """编码、解码、量误差，一遍读完。

    Raises:
        ValueError: 维度与模型不符，或数据有坏行。
    """
    import torch

    if source.dim != model.embedding_dim:
        raise InputError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use features of that width or train a new model"
        )
    device = model.feature_mean.device
    center = model.feature_mean.double().cpu().numpy()  # (D,)
    codes = np.empty((source.num_rows, len(model.codebook_sizes)), dtype=np.int32)  # (N, L)
    errors = np.empty(source.num_rows, dtype=np.float32)
    hashes, sums = _Hashes(source), np.zeros(source.dim)
    error = deviation = 0.0
    levels = np.zeros(codes.shape[1])
    for block in source.blocks(block_rows):
        features = torch.from_numpy(block.vectors).to(device)
        block_codes = model.encode_codes(features)  # (B, L)
        decoded = model.decode_codes(block_codes).double().cpu().numpy()  # (B, D)
        # decoded 与 center 都是 float64，所以差与平方也是：大数相减不丢位，一百万行累加也不丢
        squares = np.square(block.vectors - decoded).sum(axis=1)
        rows = slice(block.start, block.start + len(decoded))
        errors[rows], codes[rows] = squares, block_codes.cpu().numpy()
        error += float(squares.sum())
        deviation += float(np.square(block.vectors - center).sum())
        levels += model.path_errors(features, block_codes).double().sum(dim=0).cpu().numpy()
        sums += block.vectors.sum(axis=0, dtype=np.float64)
        hashes.look(block.start, block.vectors)
        if on_block is not None:
            on_block(len(decoded))
    mean = sums / source.num_rows
    # Σ‖x − c‖² = Σ‖x − m‖² + N‖m − c‖²，所以不必再读一遍
    own = max(deviation - source.num_rows * float(np.square(mean - center).sum()), 0.0)
    # 没训练过的模型没有训练均值：宁可没有相对误差，也不给一个像样的假数字
    known = deviation if model.training_figures else None
    return Encoded(codes, errors, error, known, levels.tolist(), mean, own, hashes.duplicates())


def take_codes(codes: np.ndarray, source: VectorSource, *, block_rows: int = 8192) -> Encoded:
    """没有模型时的第一遍：只读特征的均值、偏差与重复；误差由 `metrics/additive_means.py` 给出。"""
    hashes, sums = _Hashes(source), np.zeros(source.dim)
    for block in source.blocks(block_rows):
        sums += block.vectors.sum(axis=0, dtype=np.float64)
        hashes.look(block.start, block.vectors)
    mean = sums / source.num_rows
    deviation = sum(float(np.square(block.vectors - mean).sum()) for block in source.blocks(block_rows))
    return Encoded(codes, None, None, deviation, None, mean, deviation, hashes.duplicates())


def look_around(
    encoded: Encoded,
    source: VectorSource,
    *,
    model: SemanticIDModel | None = None,
    hit_rows: np.ndarray | None = None,
    block_rows: int = 8192,
    on_block: Seen | None = None,
) -> Surroundings:
    """第二遍：查询物品的近邻（精确，查询是抽样）、行为查询的余弦近邻、二维地图的坐标。

    Args:
        encoded: 第一遍的结果。
        source: 特征。
        model: 给出时也在重建的向量上找近邻。
        hit_rows: (Q',) 有行为的查询物品；None 为没有行为。
        block_rows: 一次读多少行。
        on_block: 每读完一块调用一次。
    """
    total = source.num_rows
    rows, plane_rows = sample_rows(total, NUM_QUERIES, SEED), sample_rows(total, _PLANE_ROWS, SEED)
    # 三处要的行一遍取齐：特征可能有几百 GB，多读一遍很贵
    wanted = np.unique(np.concatenate([rows, plane_rows, *([] if hit_rows is None else [hit_rows])]))
    gathered = np.concatenate([vectors for _, vectors in pick_rows(source, wanted, block_rows)])

    def vectors_of(some: np.ndarray) -> np.ndarray:
        return gathered[np.searchsorted(wanted, some)]

    near = NearestSoFar(vectors_of(rows), rows, NUM_NEIGHBOURS) if total > NUM_NEIGHBOURS else None
    hits: Dict[str, NearestSoFar] = {}
    if hit_rows is not None and total > 1:
        width = min(max(HIT_KS), total - 1)
        hits["features"] = NearestSoFar(vectors_of(hit_rows), hit_rows, width, unit=True)
        if model is not None:
            hits["reconstruction"] = NearestSoFar(_decoded(model, encoded.codes[hit_rows]), hit_rows, width, unit=True)
    axes = _principal_plane(vectors_of(plane_rows), encoded.mean)
    plane = np.empty((total, 2), dtype=np.float32)
    for block in source.blocks(block_rows):
        stop = block.start + len(block.vectors)
        plane[block.start : stop] = (block.vectors - encoded.mean) @ axes
        if near is not None:
            near.look(block.vectors, block.start)
        for kind, seeker in hits.items():
            decoded = kind == "reconstruction" and model is not None
            seeker.look(_decoded(model, encoded.codes[block.start : stop]) if decoded else block.vectors, block.start)
        if on_block is not None:
            on_block(len(block.vectors))
    found = {kind: seeker.result() for kind, seeker in hits.items()}
    return Surroundings(None if near is None else near.result(), rows, found, plane)


class _Hashes:
    """每行一个 64 位散列，用来数逐字节相同的行；一百万行 8 MB。误撞的概率约 N² / 2⁶⁵，百万行时千万分之一以下。"""

    def __init__(self, source: VectorSource) -> None:
        self._keys = np.empty(source.num_rows, dtype=np.uint64)
        # 奇数乘子，按位置不同；加法与乘法都按 2⁶⁴ 取模
        self._factors = np.random.default_rng(7).integers(0, 2**63, source.dim, dtype=np.uint64) * 2 + 1

    def look(self, start: int, vectors: np.ndarray) -> None:
        bits = vectors.view(np.uint32).astype(np.uint64)
        bits = (bits ^ (bits >> np.uint64(15))) * np.uint64(0x9E3779B97F4A7C15)
        self._keys[start : start + len(vectors)] = ((bits ^ (bits >> np.uint64(29))) * self._factors).sum(axis=1)

    def duplicates(self) -> int:
        return len(self._keys) - len(np.unique(self._keys))


def _decoded(model: SemanticIDModel | None, codes: np.ndarray) -> np.ndarray:
    import torch

    assert model is not None
    return model.decode_codes(torch.from_numpy(codes.astype(np.int64)).to(model.feature_mean.device)).cpu().numpy()


def _principal_plane(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(D, 2)：前两个主成分；一维特征的第二轴是 0。"""
    x = vectors - mean
    plane = principal_axes(x.T @ x, 2)
    return plane if plane.shape[1] == 2 else np.hstack([plane, np.zeros_like(plane)])
