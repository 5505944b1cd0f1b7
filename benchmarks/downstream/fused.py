"""行为编号的实验材料：几种合成的向量、残差 k-means，与只看向量的代理。

形状字母：N 物品数，H 向量宽度，L 层数，U 用户数。只用训练部分的行为；命中率拿验证物品当答案。
"""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np
import torch

from algorithm.semantic_id.behaviour import factors, fuse
from algorithm.semantic_id.behaviour.log import Log
from algorithm.semantic_id.behaviour.recipe import Recipe, fuse_rows, learn_rows
from algorithm.semantic_id.training.kmeans import kmeans
from downstream.data import Interactions


def vectors_of(recipe: Recipe, data: Interactions) -> np.ndarray:
    """(N, H) float32：内容与训练部分的行为合成的向量。"""
    content = fuse.Input.centred_on("content", data.features).apply(data.features)
    log = Log.of_sequences(data.histories, data.num_items)
    return fuse_rows(content, learn_rows(content, log, recipe, np.float32), recipe)


def residual_kmeans(vectors: np.ndarray, sizes: Sequence[int], seed: int) -> Tuple[np.ndarray, np.ndarray]:
    """(N, L) 编号与 (N, H) 重建；逐层 k-means，没有精修。"""
    x = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    generator, residual, codes = torch.Generator().manual_seed(seed), x.clone(), []
    for size in sizes:
        found = kmeans(residual, size, generator=generator, iterations=15)
        codes.append(found.indices)
        residual = residual - found.centroids[found.indices]
    return torch.stack(codes, dim=1).numpy(), (x - residual).numpy()


def hit_rate(vectors: np.ndarray, queries: np.ndarray, targets: np.ndarray, k: int = 10) -> float:
    """目标在查询的前 k 个余弦近邻里的比例；同分的平分，查询自己不算。"""
    unit = factors.unit_rows(vectors.astype(np.float32))
    rows, inverse = np.unique(queries, return_inverse=True)
    hits = np.zeros(len(queries))
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        scores = unit[part] @ unit.T
        scores[np.arange(len(part)), part] = -2.0
        users = np.flatnonzero((inverse >= start) & (inverse < start + 1024))
        mine = scores[inverse[users] - start]
        wanted = mine[np.arange(len(users)), targets[users]][:, None]
        above, tied = (mine > wanted + 1e-6).sum(axis=1), (np.abs(mine - wanted) <= 1e-6).sum(axis=1)
        hits[users] = np.clip((k - above) / tied, 0.0, 1.0)
    return float(hits.mean())
