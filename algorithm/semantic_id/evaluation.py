"""评估：一遍流式读完特征，量出重建误差、码本使用与冲突。

形状字母：N 为物品数，B 为一块的行数，D 为特征维度，L 为层数，K_l 为码本大小。
只认 `SemanticIDModel` 协议与 `metrics`，从不 import 模型。累加用 float64；随 N 增长的只有 (N, L) int32 编码。
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import numpy as np

from algorithm.interfaces import SemanticIDModel

from . import metrics
from .vectors import VectorSource

__all__ = ["evaluate"]


def evaluate(
    model: SemanticIDModel,
    source: VectorSource,
    *,
    block_rows: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> Dict[str, Any]:
    """在一批特征上评估模型；总体是 `source` 的全部行。

    Args:
        model: 满足协议的模型。
        source: `open_vectors` 的结果。
        block_rows: 一次处理多少行；只影响内存与速度。
        progress: 每完成一块调用一次 `progress(done_rows, total_rows)`。

    Returns:
        可直接写成 JSON 的字典。num_items；mse（对全部 N×D 个元素平均，单位为特征的平方）；relative_mse
        （定义见 `metrics.relative_mse`，没有定义时为 None，原因在 relative_mse_reason）；
        utilization、perplexity、gini（各 L 个数）；collision_rate、collided_item_rate、max_collision；
        codebook_sizes、fingerprint、features。

    Raises:
        ValueError: 维度与模型不符，或数据有坏行。
    """
    if source.dim != model.embedding_dim:
        raise ValueError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use features of that width or train a new model"
        )
    sizes = tuple(int(k) for k in model.codebook_sizes)
    codes, error_sum, deviation_sum = _stream(model, source, block_rows, progress)
    relative, reason = _relative(model, error_sum, deviation_sum)
    counts = [metrics.code_counts(codes[:, i], size) for i, size in enumerate(sizes)]  # L × (K_l,)
    collision_rate, collided_item_rate, max_collision = metrics.collision_figures(codes)
    return {
        "num_items": source.num_rows,
        "mse": error_sum / (source.num_rows * source.dim),
        "relative_mse": relative,
        "relative_mse_reason": reason,
        "codebook_sizes": list(sizes),
        "utilization": [metrics.utilization(c) for c in counts],
        "perplexity": [metrics.perplexity(c) for c in counts],
        "gini": [metrics.gini(c) for c in counts],
        "collision_rate": collision_rate,
        "collided_item_rate": collided_item_rate,
        "max_collision": max_collision,
        "fingerprint": model.fingerprint(),
        "features": source.description,
    }


def _stream(
    model: SemanticIDModel,
    source: VectorSource,
    block_rows: int,
    progress: Callable[[int, int], None] | None,
) -> Tuple[np.ndarray, float, float]:
    """读一遍数据，返回 (N, L) int32 编码、Σ‖x − x̂‖²、Σ‖x − μ‖²。"""
    import torch

    device = model.feature_mean.device
    mean = model.feature_mean.double().cpu().numpy()  # (D,)
    codes = np.empty((source.num_rows, len(model.codebook_sizes)), dtype=np.int32)  # (N, L)
    error_sum = deviation_sum = 0.0
    done = 0
    for block in source.blocks(block_rows):
        block_codes = model.encode_codes(torch.from_numpy(block.vectors).to(device))  # (B, L)
        decoded = model.decode_codes(block_codes).double().cpu().numpy()  # (B, D)
        # decoded 与 mean 都是 float64，所以差与平方也是：大数相减不丢位，一百万行累加也不丢
        error_sum += float(np.square(block.vectors - decoded).sum())
        deviation_sum += float(np.square(block.vectors - mean).sum())
        codes[done : done + len(decoded)] = block_codes.cpu().numpy()
        done += len(decoded)
        if progress is not None:
            progress(done, source.num_rows)
    return codes, error_sum, deviation_sum


def _relative(model: SemanticIDModel, error_sum: float, deviation_sum: float) -> Tuple[float | None, str | None]:
    """没训练过的模型没有训练均值，这时给出 None 与原因，而不是一个像样的假数字。"""
    if not model.training_figures:
        return None, "the model was never trained, so it has no training mean to compare with"
    value = metrics.relative_mse(error_sum, deviation_sum)
    return value, None if value is not None else "every row equals the training mean"
