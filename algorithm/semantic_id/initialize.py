"""依赖数据的初始化：只在训练开始前做一次，绝不藏在 forward 里。

形状字母：S k-means 用的行数，D 特征维度，K_l 码本大小。
"""

from __future__ import annotations

import logging
import math
from typing import List

import torch

from .config import TrainerConfig
from .encoder import SemanticIDEncoder
from .kmeans import kmeans
from .progress import Progress
from .training_rows import TrainingRows

__all__ = ["initialize_"]

_log = logging.getLogger(__name__)


@torch.no_grad()
def initialize_(encoder: SemanticIDEncoder, rows: TrainingRows, config: TrainerConfig, bar: Progress) -> List[str]:
    """初始化一个从未训练过的编码器（或在 `reinit=True` 时重来）。

    特征网络回到恒等映射；随机数全部来自 `config.seed`，与用户的全局随机状态无关。

    Args:
        encoder: 就地修改。
        rows: 训练行。
        config: 用到 init、kmeans_iterations、seed、batch_size。
        bar: 进度条。

    Returns:
        需要让人知道的事（英文，一句一条），例如行数少于码字数时做了什么。
    """
    generator = torch.Generator().manual_seed(config.seed)
    rq_vae = encoder.rq_vae
    for network in (rq_vae.encoder, rq_vae.decoder):
        network.reset_(generator)
        network.unit.fill_(2.0 ** math.frexp(rows.typical_size)[1])
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
    residual = rows.sample().to(encoder.feature_mean.device)  # (S, D)，新内存，可就地改写
    notes = []
    if len(residual) < rows.num_train_rows:
        notes.append(f"k-means init used a seeded sample of {len(residual)} of {rows.num_train_rows} training rows")
    for level, quantizer in enumerate(encoder.rq_vae.quantizers, start=1):
        size = quantizer.num_embeddings
        with bar.task(f"k-means L{level} ({size})", config.kmeans_iterations) as advance:
            result = kmeans(
                residual,
                size,
                generator=generator,
                iterations=config.kmeans_iterations,
                on_iteration=lambda iteration, _: advance(iteration),
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
