"""依赖数据的初始化：只在训练开始前做一次，绝不藏在 forward 里。

形状字母：S k-means 用的行数，D 特征维度，H 隐向量宽度，K_l 码本大小。
"""

from __future__ import annotations

import logging
import math
from typing import List

import torch

from ..config import TrainerConfig
from ..encoder import SemanticIDEncoder
from ..files.progress import Progress
from ..metrics.principal_axes import principal_axes
from .behaviour import ItemPairs, align_
from .kmeans import kmeans
from .rows import TrainingRows

__all__ = ["initialize_", "latents_of"]

_log = logging.getLogger(__name__)
_BLOCK_ROWS = 8192


@torch.no_grad()
def initialize_(
    encoder: SemanticIDEncoder,
    rows: TrainingRows,
    config: TrainerConfig,
    bar: Progress,
    pairs: ItemPairs | None = None,
) -> List[str]:
    """初始化一个从未训练过的编码器（或在 `reinit=True` 时重来）。

    特征网络回到恒等映射；随机数全部来自 `config.seed`，与用户的全局随机状态无关。

    Args:
        encoder: 就地修改。
        rows: 训练行。
        config: 用到 init、kmeans_iterations、seed、batch_size。
        bar: 进度条。
        pairs: 给出时，做 k-means 之前先用它训练特征编码网络（`behaviour.py`）。

    Returns:
        需要让人知道的事（英文，一句一条），例如行数少于码字数时做了什么。
    """
    generator = torch.Generator().manual_seed(config.seed)
    rq_vae = encoder.rq_vae
    for network in (rq_vae.encoder, rq_vae.decoder):
        network.reset_(generator)
        network.unit.fill_(2.0 ** math.frexp(rows.typical_size)[1])
    if rq_vae.encoder.projects:
        _project_on_principal_components_(encoder, rows)
    if pairs is not None:
        align_(rq_vae.encoder, pairs, generator, bar)
    notes: List[str] = []
    if config.init == "uniform":
        for quantizer in rq_vae.quantizers:
            bound = 1 / quantizer.num_embeddings
            quantizer.reset_(torch.empty(quantizer.embedding.weight.shape).uniform_(-bound, bound, generator=generator))
    else:
        notes = _kmeans_levels_(encoder, rows, config, generator, bar)
    rq_vae.initialized.fill_(True)
    for note in notes:
        _log.warning(note)
    return notes


def _kmeans_levels_(
    encoder: SemanticIDEncoder,
    rows: TrainingRows,
    config: TrainerConfig,
    generator: torch.Generator,
    bar: Progress,
) -> List[str]:
    """逐层：在残差上做 k-means，减去码字，进入下一层。"""
    residual = latents_of(encoder, rows.sample())  # (S, H)
    notes = []
    if len(residual) < rows.num_train_rows:
        notes.append(f"k-means init used a seeded sample of {len(residual)} of {rows.num_train_rows} training rows")
    for level, quantizer in enumerate(encoder.rq_vae.quantizers, start=1):
        size = quantizer.num_embeddings
        with bar.task(f"k-means L{level} ({size})", config.kmeans_iterations) as report:
            result = kmeans(
                residual,
                size,
                generator=generator,
                iterations=config.kmeans_iterations,
                progress=report,
            )
        quantizer.reset_(result.centroids)  # 时钟归零，再记上 k-means 用过的这一遍
        quantizer.install_(result.centroids, result.indices, config.batch_size)
        if result.num_surplus:
            notes.append(
                f"L{level} has {size} codewords but only {size - result.num_surplus} distinct residuals in "
                f"{len(residual)} training rows; the other {result.num_surplus} codewords were placed between "
                f"random pairs of rows and wait for new items: consider a smaller codebook"
            )
        residual -= result.centroids[result.indices]
    return notes


def latents_of(encoder: SemanticIDEncoder, x: torch.Tensor) -> torch.Tensor:
    """(S, D) 特征 → (S, H) 隐向量，在模型的设备上；恒等时就是 x 自己，不复制。"""
    network, device = encoder.rq_vae.encoder, encoder.feature_mean.device
    if network.is_identity() and not network.projects:
        return x.to(device)
    with torch.no_grad():
        return torch.cat([network(block.to(device)) for block in x.split(_BLOCK_ROWS)])


def _project_on_principal_components_(encoder: SemanticIDEncoder, rows: TrainingRows) -> None:
    """投影 = 训练行协方差的前 H 个特征向量；解码网络用它的转置，并补回均值在其余方向上的分量。

    主成分是线性投影里重建误差最小的。
    """
    x, mean = rows.sample(), torch.from_numpy(rows.mean)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for block in x.split(_BLOCK_ROWS):
        centered = block.double() - mean
        covariance += centered.T @ centered
    basis = torch.from_numpy(principal_axes(covariance.numpy(), encoder.config.width))  # (D, H)
    encoder.rq_vae.encoder.projection.copy_(basis)
    encoder.rq_vae.decoder.projection.copy_(basis.T)
    encoder.rq_vae.decoder.shift.copy_(mean - basis @ (basis.T @ mean))
