"""世界变了没有：新的物品还像不像当初建码本、建物品表时的那些。

两种变化分开看：误差变大，说明新物品落在码本照顾不到的地方；码字的用量变了（PSI），说明各类物品的比例变了。前者要重新训练，
后者不一定。

PSI 的定义：Σ_k (q_k − p_k) ln(q_k / p_k)，p 是物品表的用量，q 是新物品的，各加半个伪计数；自然对数；≥ 0。
哪怕什么都没变，抽样也会让它约为 (K − 1)(1/n + 1/N)，码字越多越大，所以结论用的是减去它之后的值；n < 10K 的层
不作结论。0.1、0.25 两条线是业界惯例。

形状字母：N 为物品表的物品数，n 为新物品数，L 为层数，K 为一层的码本大小，D 为特征维度。
"""

from __future__ import annotations

import math
from typing import Any, Dict, List

import numpy as np

from algorithm.interfaces import SemanticIDModel

from ...errors import InputError
from ...files.progress import OnProgress
from ...files.source import VectorSource
from ..encoding.shards import encode_block
from ..format.parts import codes_of
from ..table import Catalog
from ..unique.candidates import errors_of
from .update import check_model

__all__ = ["measure_drift", "population_stability_index"]

_PSI_LINES = (0.1, 0.25)
_ERROR_LINES = (1.1, 1.25)
_VERDICTS = ("ok", "watch", "drifted")


def population_stability_index(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """一层的 PSI 与「什么都没变」时它的期望。

    Args:
        expected: (K,) 物品表里各码字的用量。
        actual: (K,) 新物品里的用量。

    Returns:
        (PSI, 噪声的期望)。

    Examples:
        >>> population_stability_index(np.array([50, 50]), np.array([50, 50]))[0]
        0.0
    """
    p = (expected + 0.5) / (expected.sum() + 0.5 * len(expected))
    q = (actual + 0.5) / (actual.sum() + 0.5 * len(actual))
    psi = float(((q - p) * np.log(q / p)).sum())
    return psi, (len(expected) - 1) * (1 / max(int(actual.sum()), 1) + 1 / max(int(expected.sum()), 1))


def measure_drift(
    model: SemanticIDModel,
    catalog: Catalog,
    source: VectorSource,
    *,
    block_rows: int = 8192,
    progress: OnProgress | None = None,
) -> Dict[str, Any]:
    """量一批新特征离当初有多远。

    Args:
        model: 写这个物品表的模型。
        catalog: 物品表。
        source: 新特征。
        block_rows: 一次处理多少行。
        progress: 每完成一块调用一次。

    Returns:
        verdict（ok、watch、drifted）与 reasons（英文短语）；level_mse、reference_level_mse、error_ratio（各 L 个，隐
        空间，对
        元素平均）；relative_mse 与 training_relative_mse（训练时留出行的，没有则为 None）；psi、psi_noise（各 L
        个）；num_rows。

    Raises:
        CatalogError: 物品表属于另一个模型。
        ValueError: 维度不符、数据有坏行。
    """
    check_model(catalog, model)
    if source.dim != model.embedding_dim:
        raise InputError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use the features of that model"
        )
    sizes = catalog.codebook_sizes
    expected = [np.zeros(size, np.int64) for size in sizes]
    for table in catalog.tables():
        for level, codes in enumerate(codes_of(table).T):
            expected[level] += np.bincount(codes, minlength=sizes[level])
    actual, sums, relative = _stream(model, source, block_rows, progress)
    level_mse = [value / (source.num_rows * source.dim) for value in sums]
    reference = catalog.manifest.get("reference", {}).get("level_mse", [None] * len(sizes))
    ratio = [now / then if then else None for now, then in zip(level_mse, reference, strict=True)]
    psi = [population_stability_index(e, a) for e, a in zip(expected, actual, strict=True)]
    training = model.training_figures.get("holdout_relative_mse") or model.training_figures.get("relative_mse")
    figures = {
        "num_rows": source.num_rows,
        "level_mse": level_mse,
        "reference_level_mse": reference,
        "error_ratio": ratio,
        "relative_mse": relative,
        "training_relative_mse": training,
        "psi": [value for value, _ in psi],
        "psi_noise": [noise for _, noise in psi],
        "features": source.description,
    }
    return {**_judge(figures, sizes), **figures}


def _stream(
    model: SemanticIDModel, source: VectorSource, block_rows: int, progress: OnProgress | None
) -> tuple[List[np.ndarray], List[float], float | None]:
    """读一遍：各层用量、逐层误差之和、相对误差（定义同 `metrics.relative_mse`，没训练过的模型没有）。"""
    import torch

    counts = [np.zeros(size, np.int64) for size in model.codebook_sizes]
    sums = [0.0] * len(counts)
    mean = model.feature_mean.double().cpu().numpy()  # (D,)
    error = deviation = 0.0
    for block in source.blocks(block_rows):
        codes = encode_block(model, block)
        for level, column in enumerate(codes.T):
            counts[level] += np.bincount(column, minlength=len(counts[level]))
        for level, column in enumerate(errors_of(model, block.vectors, codes).T):
            sums[level] += math.fsum(column.tolist())
        device_codes = torch.from_numpy(codes.astype(np.int64)).to(model.feature_mean.device)
        decoded = model.decode_codes(device_codes).double().cpu().numpy()
        error += float(np.square(block.vectors - decoded).sum())
        deviation += float(np.square(block.vectors - mean).sum())
        if progress is not None:
            progress(block.start + len(codes), source.num_rows)
    return counts, sums, error / deviation if model.training_figures and deviation > 0 else None


def _judge(figures: Dict[str, Any], sizes: tuple[int, ...]) -> Dict[str, Any]:
    """数字 → 结论与理由；取最坏的一条。"""
    worst, reasons = 0, []

    def look(value: float | None, lines: tuple[float, float], text: str) -> None:
        nonlocal worst
        grade = 0 if value is None else sum(value > line for line in lines)
        if grade:
            reasons.append(text)
        worst = max(worst, grade)

    for level, ratio in enumerate(figures["error_ratio"]):
        shown = "–" if ratio is None else f"{ratio:.2f}"
        look(ratio, _ERROR_LINES, f"error after L{level + 1} is {shown} x the figure at encoding")
    now, then = figures["relative_mse"], figures["training_relative_mse"]
    if now is not None and then:
        look(now / then, _ERROR_LINES, f"relative_mse is {now / then:.2f} x the figure at training")
    for level, (psi, noise) in enumerate(zip(figures["psi"], figures["psi_noise"], strict=True)):
        enough = figures["num_rows"] >= 10 * sizes[level]
        look(psi - noise if enough else None, _PSI_LINES, f"usage of L{level + 1} moved: PSI {psi:.2f}")
    return {"verdict": _VERDICTS[worst], "reasons": reasons}
