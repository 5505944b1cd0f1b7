"""训练中的评判：在给定行上重新编码、解码，数一遍；只读。

形状字母：M 评判用的行数，D 特征维度，L 层数。`evaluation/measure.py` 面向任意模型与任意来源，这里只为训练器服务：
行已在内存里，且要看到逐层的残差。
"""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import torch

from ..encoder import SemanticIDEncoder
from ..metrics import codes as metrics

__all__ = ["judge"]

_BLOCK_ROWS = 8192


@torch.no_grad()
def judge(encoder: SemanticIDEncoder, rows: torch.Tensor, mean: np.ndarray) -> Dict[str, Any]:
    """在给定行上评判编码器，不写任何状态。

    Args:
        encoder: 编码器。
        rows: (M, D) float32。
        mean: (D,) 训练行均值，`relative_mse` 的分母以它为中心。

    Returns:
        `mse`（每个分量的均方误差）、`relative_mse`（所有行都相同时为 None）、`collision_rate`、每层的 `level_mse`
        （残差均方，即各层承诺损失）、`utilization`、`perplexity`、`gini`。
    """
    rq_vae, center = encoder.rq_vae, torch.from_numpy(mean)
    error = deviation = 0.0
    level_error = np.zeros(len(encoder.codebook_sizes))
    codes = []
    for start in range(0, len(rows), _BLOCK_ROWS):
        x = rows[start : start + _BLOCK_ROWS].to(encoder.feature_mean.device)
        block = []
        z = rq_vae.encoder(x)  # (B, H)
        total = torch.zeros_like(z)
        for level, (_, residual, indices, codewords) in enumerate(rq_vae.residuals(z)):
            block.append(indices)
            total += codewords
            level_error[level] += float((residual - codewords).double().square().sum())
        codes.append(torch.stack(block, dim=1).cpu())
        error += float((x - rq_vae.decoder(total)).double().square().sum())
        deviation += float((x.cpu().double() - center).square().sum())
    table = torch.cat(codes).numpy()  # (M, L)
    counts = [metrics.code_counts(table[:, i], k) for i, k in enumerate(encoder.codebook_sizes)]
    return {
        "mse": error / rows.numel(),
        "relative_mse": metrics.relative_mse(error, deviation),
        "collision_rate": metrics.collision_rate(table),
        "level_mse": [float(e) / (len(rows) * encoder.config.width) for e in level_error],
        "utilization": [metrics.utilization(c) for c in counts],
        "perplexity": [metrics.perplexity(c) for c in counts],
        "gini": [metrics.gini(c) for c in counts],
    }
