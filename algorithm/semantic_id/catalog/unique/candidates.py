"""向模型要候选：一块物品的候选路径，供 nearest-free 挑选；只认 `SemanticIDModel` 协议，是编码之外第二个可分布的映射。

形状字母：n 为行数，D 为特征维度，L 为层数，M 为每行几条候选。
"""

from __future__ import annotations

import numpy as np

from algorithm.interfaces import SemanticIDModel

from .assign import MAX_WIDE, Choices

__all__ = ["candidates_of", "errors_of"]


def candidates_of(model: SemanticIDModel, vectors: np.ndarray, codes: np.ndarray, num: int, wide: bool) -> Choices:
    """每行最便宜的候选：自己前缀之内的，`wide` 时再加上束搜索找到的别的前缀的。

    束搜索里同前缀的路径都已在前缀之内的候选里，所以两边拼起来没有重复。

    Args:
        model: 满足协议的模型。
        vectors: (n, D) float32。
        codes: (n, L) 现在的编码。
        num: M。
        wide: 是否允许离开前 L − 1 层；少于三层时前缀就是 L1，永不离开。
    """
    import torch

    device = model.feature_mean.device
    features = torch.from_numpy(vectors).to(device)  # (n, D)
    prefixes = torch.from_numpy(codes[:, :-1].astype(np.int64)).to(device)  # (n, L − 1)
    near = model.encode_candidates(features, min(num, model.codebook_sizes[-1]), prefixes)
    parts = [_flat(*(tensor.cpu().numpy() for tensor in near))]
    if wide and codes.shape[1] > 2:
        far = _flat(*(tensor.cpu().numpy() for tensor in model.encode_candidates(features, min(num, MAX_WIDE))))
        mine = codes[far.item]
        keep = (far.codes[:, :-1] != mine[:, :-1]).any(axis=1) & (far.codes[:, 0] == mine[:, 0])
        parts.append(Choices(*(part[keep] for part in far)))
    return Choices(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))


def errors_of(model: SemanticIDModel, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(n, L) float64：走完前 l 层之后的误差。"""
    import torch

    device = model.feature_mean.device
    given = torch.from_numpy(codes.astype(np.int64)).to(device)
    return model.path_errors(torch.from_numpy(vectors).to(device), given).cpu().numpy()


def _flat(codes: np.ndarray, errors: np.ndarray) -> Choices:
    """(n, M, L) 与 (n, M) → 一条一行，去掉补位的 −1。"""
    item, rank = np.nonzero(codes[:, :, 0] >= 0)
    return Choices(item, codes[item, rank].astype(np.int32), errors[item, rank])
