"""评估：流式读特征，量出重建误差、码本使用、冲突、语义与行为。

形状字母：N 为物品数，B 为一块的行数，D 为特征维度，L 为层数，K_l 为码本大小，Q 为查询物品数。
只认 `SemanticIDModel` 协议与 `metrics*`，从不 import 模型。累加用 float64；随 N 增长的只有 (N, L) int32 编码、
每个物品一个误差与两个坐标，所以一百万物品也只要几百 MB。每个数字的定义、单位、范围、总体、出处在
`legend.py`。
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from algorithm.interfaces import SemanticIDModel

from ..files.progress import OnProgress
from ..files.source import VectorSource, pick_rows
from ..metrics import codes as metrics
from ..metrics import meaning
from ..metrics.additive_means import additive_errors
from ..metrics.behaviour import co_consumed, embedding_hit_rate, id_gini
from ..metrics.neighbours import NearestSoFar, sample_rows
from ..metrics.prefix_means import prefix_mean_errors
from ..metrics.principal_axes import principal_axes

__all__ = [
    "Encoded",
    "Surroundings",
    "encode_all",
    "evaluate",
    "hit_queries",
    "judge_additive",
    "judge_behaviour",
    "judge_codes",
    "judge_labels",
    "judge_prefix_means",
    "look_around",
    "take_codes",
]

NUM_NEIGHBOURS = 10
NUM_QUERIES = 1000  # 抽样查询物品；邻居占比的标准误因此不超过 0.5 / √1000 = 0.016
HIT_KS = (10, 100)
SEED = 0
_PLANE_ROWS = 20_000  # 求主成分用的行

Seen = Callable[[int], None]


class Encoded(NamedTuple):
    """一遍读完得到的。

    Attributes:
        codes: (N, L) int32。
        errors: (N,) float32，‖x − x̂‖²；没有解码器时为 None。
        figures: mse、relative_mse、level_relative_mse……
        mean: (D,) float64，这批特征自己的均值。
        deviation: 每个物品到**训练均值**（没有模型则为自己的均值）的偏差平方的平均；errors 除以它就与 relative_mse
        同单位。
        own_deviation: 到这批特征自己均值的偏差平方的平均，不大于 deviation。
        duplicates: 与前面某一行逐字节相同的行数。
    """

    codes: np.ndarray
    errors: np.ndarray | None
    figures: Dict[str, Any]
    mean: np.ndarray
    deviation: float
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


def evaluate(
    model: SemanticIDModel,
    source: VectorSource,
    *,
    block_rows: int = 8192,
    progress: OnProgress | None = None,
) -> Dict[str, Any]:
    """在一批特征上评估模型的重建、码本使用与冲突；总体是 `source` 的全部行。

    Args:
        model: 满足协议的模型。
        source: `open_vectors` 的结果。
        block_rows: 一次处理多少行；只影响内存与速度。
        progress: 每完成一块调用一次 `progress(done_rows, total_rows)`。

    Returns:
        可直接写成 JSON 的字典。num_items；mse（对全部 N×D 个元素平均，单位为特征的平方）；relative_mse
        （定义见 `metrics.relative_mse`，没有定义时为 None，原因在 relative_mse_reason）；level_relative_mse；
        `judge_codes` 的各项；codebook_sizes、fingerprint、features。

    Raises:
        ValueError: 维度与模型不符，或数据有坏行。
    """
    seen = _counter(source.num_rows, progress)
    encoded = encode_all(model, source, block_rows=block_rows, on_block=seen)
    sizes = tuple(int(k) for k in model.codebook_sizes)
    return {
        **encoded.figures,
        **judge_codes(encoded.codes, sizes),
        "fingerprint": model.fingerprint(),
        "features": source.description,
    }


def encode_all(
    model: SemanticIDModel, source: VectorSource, *, block_rows: int = 8192, on_block: Seen | None = None
) -> Encoded:
    """编码、解码、量误差，一遍读完。

    Raises:
        ValueError: 维度与模型不符，或数据有坏行。
    """
    import torch

    if source.dim != model.embedding_dim:
        raise ValueError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use features of that width or train a new model"
        )
    device = model.feature_mean.device
    center = model.feature_mean.double().cpu().numpy()  # (D,)
    codes = np.empty((source.num_rows, len(model.codebook_sizes)), dtype=np.int32)  # (N, L)
    errors = np.empty(source.num_rows, dtype=np.float32)
    hashes, sums = _Hashes(source), np.zeros(source.dim)
    error_sum = deviation_sum = 0.0
    levels = np.zeros(codes.shape[1])
    for block in source.blocks(block_rows):
        features = torch.from_numpy(block.vectors).to(device)
        block_codes = model.encode_codes(features)  # (B, L)
        decoded = model.decode_codes(block_codes).double().cpu().numpy()  # (B, D)
        # decoded 与 center 都是 float64，所以差与平方也是：大数相减不丢位，一百万行累加也不丢
        squares = np.square(block.vectors - decoded).sum(axis=1)
        rows = slice(block.start, block.start + len(decoded))
        errors[rows], codes[rows] = squares, block_codes.cpu().numpy()
        error_sum += float(squares.sum())
        deviation_sum += float(np.square(block.vectors - center).sum())
        levels += model.path_errors(features, block_codes).double().sum(dim=0).cpu().numpy()
        sums += block.vectors.sum(axis=0, dtype=np.float64)
        hashes.look(block.start, block.vectors)
        if on_block is not None:
            on_block(len(decoded))
    relative, reason = _relative(model, error_sum, deviation_sum)
    figures = {
        "num_items": source.num_rows,
        "reconstruction": "model",
        "mse": error_sum / (source.num_rows * source.dim),
        "relative_mse": relative,
        "relative_mse_reason": reason,
        "level_relative_mse": None if relative is None else [float(v / deviation_sum) for v in levels],
    }
    mean, deviation = sums / source.num_rows, deviation_sum / source.num_rows
    # Σ‖x − c‖² = Σ‖x − m‖² + N‖m − c‖²，所以不必再读一遍
    own = max(deviation - float(np.square(mean - center).sum()), 0.0)
    return Encoded(codes, errors, figures, mean, deviation, own, hashes.duplicates())


def take_codes(codes: np.ndarray, source: VectorSource, *, block_rows: int = 8192) -> Encoded:
    """没有模型时的第一遍：只读特征的均值、偏差与重复；误差由 `judge_additive` 给出。"""
    hashes, sums = _Hashes(source), np.zeros(source.dim)
    for block in source.blocks(block_rows):
        sums += block.vectors.sum(axis=0, dtype=np.float64)
        hashes.look(block.start, block.vectors)
    mean = sums / source.num_rows
    deviation = sum(float(np.square(block.vectors - mean).sum()) for block in source.blocks(block_rows))
    figures: Dict[str, Any] = {"num_items": source.num_rows, "reconstruction": "additive_means"}
    deviation /= source.num_rows
    return Encoded(codes, None, figures, mean, deviation, deviation, hashes.duplicates())


def judge_codes(codes: np.ndarray, sizes: Sequence[int]) -> Dict[str, Any]:
    """只看编码：各层的使用与冲突。"""
    counts = [metrics.code_counts(codes[:, i], size) for i, size in enumerate(sizes)]  # L × (K_l,)
    collision_rate, collided_item_rate, max_collision = metrics.collision_figures(codes)
    return {
        "codebook_sizes": list(sizes),
        "utilization": [metrics.utilization(c) for c in counts],
        "perplexity": [metrics.perplexity(c) for c in counts],
        "gini": [metrics.gini(c) for c in counts],
        "dead_codes": [int((c == 0).sum()) for c in counts],
        "collision_rate": collision_rate,
        "collided_item_rate": collided_item_rate,
        "max_collision": max_collision,
        "id_gini": id_gini(codes),
    }


def judge_additive(
    encoded: Encoded,
    source: VectorSource,
    sizes: Sequence[int],
    *,
    block_rows: int = 8192,
    on_block: Seen | None = None,
) -> Tuple[Dict[str, Any], np.ndarray]:
    """没有模型时的重建误差，见 `metrics/additive_means.py`。

    Returns:
        (mse、relative_mse、level_relative_mse, 每个物品的误差 (N,))。
    """
    sums, errors = additive_errors(source, encoded.codes, sizes, encoded.mean, block_rows=block_rows, on_block=on_block)
    total = encoded.deviation * source.num_rows
    relative = metrics.relative_mse(sums[-1], total)
    figures = {
        "mse": sums[-1] / (source.num_rows * source.dim),
        "relative_mse": relative,
        "relative_mse_reason": None if relative is not None else "every row equals the mean",
        "level_relative_mse": None if relative is None else [value / total for value in sums],
    }
    return figures, errors


def judge_prefix_means(
    encoded: Encoded, source: VectorSource, *, block_rows: int = 8192, on_block: Seen | None = None
) -> Tuple[Dict[str, Any], int | None]:
    """同一前缀的物品都猜成平均时的误差，见 `metrics/prefix_means.py`；返回 (数字, 抽了几个组或 None)。"""
    results = prefix_mean_errors(
        source, encoded.codes, encoded.mean, block_rows=block_rows, seed=SEED, on_block=on_block
    )
    own = encoded.own_deviation * source.num_rows
    shares = [metrics.relative_mse(result.error_sum, own) for result in results]
    figures: Dict[str, Any] = {
        "prefix_mean_relative_mse": None if shares[-1] is None else shares,
        "prefix_alone_rate": [result.alone_rate for result in results],
    }
    sampled = [result.sampled_groups for result in results if result.sampled_groups is not None]
    return figures, sampled[0] if sampled else None


def judge_labels(codes: np.ndarray, labels: Sequence[str | None]) -> Dict[str, Any]:
    """标签纯度与 NMI，逐个前缀长度；随机水平是把标签按种子打乱之后的同一个数。总体为有标签的物品。"""
    names = np.asarray(labels, dtype=object)
    known = np.array([name is not None for name in names], dtype=bool)
    numbers = np.unique(names[known].astype(str), return_inverse=True)[1].reshape(-1)
    shuffled = np.random.default_rng(SEED).permutation(numbers)
    out: Dict[str, Any] = {"num_labels": int(numbers.max()) + 1, "num_unlabelled": int((~known).sum())}
    for key in ("label_purity", "label_purity_chance", "nmi", "nmi_chance"):
        out[key] = []
    for length in range(1, codes.shape[1] + 1):
        groups = meaning.prefix_groups(codes[known], length)
        for tail, given in (("", numbers), ("_chance", shuffled)):
            out["label_purity" + tail].append(meaning.label_purity(groups, given))
            out["nmi" + tail].append(meaning.normalized_mutual_information(groups, given))
    return out


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


def judge_behaviour(
    codes: np.ndarray, pairs: np.ndarray, partners: List[np.ndarray], around: Surroundings
) -> Dict[str, Any]:
    """共同消费提升与嵌入命中率；总体为全部物品对，命中率为抽样的查询物品。"""
    observed, expected, lift = meaning.co_consumption(codes, pairs)
    out: Dict[str, Any] = {
        "num_pairs": len(pairs),
        "co_consumption": observed,
        "co_consumption_expected": expected,
        "co_consumption_lift": lift,
    }
    for kind, near in around.hits.items():
        name = "embedding_hit_rate" if kind == "features" else "reconstruction_hit_rate"
        for k in HIT_KS:
            if k <= near.shape[1]:
                out[f"{name}_{k}"] = embedding_hit_rate(near, partners, k)
                out[f"embedding_hit_rate_{k}_chance"] = k / (len(codes) - 1)
    return out


def hit_queries(pairs: np.ndarray, num_items: int) -> Tuple[np.ndarray, List[np.ndarray]]:
    """命中率的查询物品与各自的共同消费物品。"""
    return co_consumed(pairs, num_items, NUM_QUERIES, SEED)


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


def _counter(total: int, progress: OnProgress | None) -> Seen | None:
    """「又做了几行」→ `progress(done, total)`。"""
    if progress is None:
        return None
    done = 0

    def seen(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    return seen


def _relative(model: SemanticIDModel, error_sum: float, deviation_sum: float) -> Tuple[float | None, str | None]:
    """没训练过的模型没有训练均值，这时给出 None 与原因，而不是一个像样的假数字。"""
    if not model.training_figures:
        return None, "the model was never trained, so it has no training mean to compare with"
    value = metrics.relative_mse(error_sum, deviation_sum)
    return value, None if value is not None else "every row equals the training mean"
