"""数据、码本与 float64 的参照答案。"""

from __future__ import annotations

import numpy as np
import torch

from algorithm.semantic_id.search.nearest import nearest, prepare


def load_features(path: str | None, rows: int, seed: int) -> torch.Tensor:
    """(rows, D) float32：文件里随机取行，或由生成器造出低秩混合。"""
    generator = np.random.default_rng(seed)
    if path is not None:
        source = np.load(path, mmap_mode="r")
        picked = np.sort(generator.permutation(len(source))[:rows])
        return torch.from_numpy(source[picked].astype(np.float32))
    centers = generator.standard_normal((500, 256), dtype=np.float32)
    basis = generator.standard_normal((64, 256), dtype=np.float32) / 8
    coordinates = generator.standard_normal((rows, 64), dtype=np.float32)
    return torch.from_numpy(centers[generator.integers(0, 500, rows)] + coordinates @ basis)


def make_codebooks(train: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """逐层残差 Lloyd 两轮：足够像真的码本，又不依赖训练代码。"""
    books, residual = [], train.clone()
    for level, size in enumerate(sizes):
        picked = torch.randperm(len(residual), generator=torch.Generator().manual_seed(level))[:size]
        weight = residual[picked].clone()
        for _ in range(2):
            indices = nearest(residual, prepare(weight))
            counts = torch.bincount(indices, minlength=size)
            sums = torch.zeros_like(weight).index_add_(0, indices, residual)
            weight = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), weight)
        residual -= weight[nearest(residual, prepare(weight))]
        books.append(weight.contiguous())
    return books


def float64_codes(x: torch.Tensor, books: list[torch.Tensor]) -> torch.Tensor:
    """(B, L) 参照：残差仍是 float32，距离在 float64 里按定义的展开式之外的办法直接求差平方和。"""
    codes = []
    for weight in books:
        wide, found = weight.double(), []
        for row in x.double():
            found.append((wide - row).square_().sum(1).argmin())
        codes.append(torch.stack(found))
        x = x - weight[codes[-1]]
    return torch.stack(codes, 1)
