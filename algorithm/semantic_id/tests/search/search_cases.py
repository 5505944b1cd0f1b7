"""最近码字搜索各测试共用的：按定义的穷举、近乎并列的行。"""

from __future__ import annotations

import numpy as np
import torch

from algorithm.semantic_id.search import isa

__all__ = ["PATHS", "brute_force", "gaussian", "near_ties"]

PATHS = ("numpy", "torch", *(row.name for row in isa.available()))


def brute_force(x: torch.Tensor, weight: torch.Tensor) -> list[int]:
    """定义的直译：float64，16 路，每路按 d 递增累加，再 8、4、2、1 折半；并列取最低编号。"""
    rows, codes = x.double().numpy(), weight.double().numpy()
    out = []
    for row in rows:
        lanes = np.zeros((len(codes), 16))
        for d in range(codes.shape[1]):
            gap = row[d] - codes[:, d]
            lanes[:, d % 16] += gap * gap
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half:]
        out.append(int(np.argmin(lanes[:, 0])))
    return out


def gaussian(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def near_ties(weight: torch.Tensor, count: int, seed: int = 1) -> torch.Tensor:
    """两个码字的中点：float32 的得分分不出谁近。"""
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.randint(len(weight), (2, count), generator=generator)
    return (weight[i] + weight[j]) / 2
