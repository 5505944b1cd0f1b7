"""`semid evaluate` 与 `semid advise` 背后的动作：把模型与物品表交给 `evaluation/run.py`。"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

from ...catalog import Catalog
from ...evaluation.opening import Request
from ...evaluation.run import run_evaluation
from ...files.progress import Progress
from ...files.vectors import open_vectors
from ...training.advise import advise_sizes
from ..loading import load_model, parse_sizes

__all__ = ["advise", "evaluate"]


def evaluate(
    model: Path | None,
    features: Path,
    *,
    device: str = "auto",
    block_rows: int = 8192,
    id_column: str = "item_id",
    vector_column: str = "embedding",
    progress: bool = False,
    codes: Path | None = None,
    codebook_sizes: str | None = None,
    items: Path | None = None,
    labels: str | None = None,
    interactions: Path | None = None,
    catalog: Path | None = None,
    unseen: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> Dict[str, Any]:
    """评估一个模型，或别人的编码。

    Args:
        model: 模型目录；给了 `codes` 时为 None。
        features: 物品特征。
        device: 同 `train`。
        block_rows: 一次处理多少行；只影响内存与速度。
        id_column: 各文件的物品编号列。
        vector_column: 特征的向量列。
        progress: 是否显示进度。
        codes: 别人的编码，(N, L) 整数 `.npy` 或含 l1…lL 的 Parquet。
        codebook_sizes: 与 `codes` 一起给的各层大小；None 由编码的最大值推出，结果里会说。
        items: 物品信息（title 与标签列）；None 时若 FEATURES 是一个 Parquet 文件就用它自己。
        labels: 标签列的名字。
        interactions: 用户行为。
        catalog: 物品表，量去重之后的冲突。
        unseen: 没见过的物品的特征，量泛化。
        output: 评估目录；None 则不写。
        overwrite: 允许替换已有的评估。

    Returns:
        全部指标（键见 `legend.py`），加上 verdicts、sampled、codebook_sizes、fingerprint、features、output。

    Raises:
        FileExistsError, FileNotFoundError, TypeError, ValueError: 见各扇门；出错时什么也没写。
    """
    request = Request(
        features,
        load_model=None if model is None else lambda: load_model(model, device),
        codes=codes,
        codebook_sizes=None if codebook_sizes is None else parse_sizes(codebook_sizes),
        items=items,
        labels=labels,
        interactions=interactions,
        open_catalog=None if catalog is None else lambda: Catalog.open(catalog),
        unseen=unseen,
        id_column=id_column,
        vector_column=vector_column,
    )
    return run_evaluation(request, block_rows=block_rows, output=output, overwrite=overwrite, progress=progress)


def advise(
    features: Path, *, num_levels: int, seed: int, id_column: str, vector_column: str, progress: bool
) -> Dict[str, Any]:
    """建议码本大小，见 `advise.advise_sizes`。"""
    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    with Progress(progress) as bar, bar.task("advise", num_levels) as report:
        return advise_sizes(source, num_levels=num_levels, seed=seed, progress=report)
