"""几路向量合成一个要量化的向量：每一路按同一条规则归一，乘上自己的权重，首尾相接。

形状字母：N 物品数，D 某一路的宽度，H 合成之后的宽度 = 各路之和。

一路的规则：减去这一路的均值（可以没有）→ 每行单位长 → 乘权重。零行（没有行为的物品）仍是零。单位长之后各路在距离里的
分量只由权重的平方决定，与原来的单位、维数无关。内容可以先沿图平滑（`smooth`），再当一路。
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Tuple

import numpy as np

from ..errors import InputError
from ..limits import check_float
from .factors import unit_rows

__all__ = ["Fusion", "Input", "smooth"]

MAX_WEIGHT = 1e3


@dataclass(frozen=True)
class Input:
    """一路输入。

    Attributes:
        name: 名字，在同一个 `Fusion` 里不重复。
        weight: 权重，(0, 1000]。
        mean: (D,) float32，归一之前减去的均值。
    """

    name: str
    weight: float
    mean: np.ndarray

    @classmethod
    def centred_on(cls, name: str, vectors: np.ndarray, weight: float = 1.0) -> Input:
        """以这些行的均值为中心；均值在 float64 里求，与分块无关。"""
        return cls(name, weight, vectors.mean(axis=0, dtype=np.float64).astype(np.float32))

    @classmethod
    def as_given(cls, name: str, dim: int, weight: float = 1.0) -> Input:
        """不移动中心：方向已经有意义的，例如因子。"""
        return cls(name, weight, np.zeros(dim, dtype=np.float32))

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) → 减均值、单位长，还没有乘权重。"""
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise InputError(f"input {self.name!r} must have shape (N, {len(self.mean)}), got {vectors.shape}")
        return unit_rows(vectors - self.mean)


@dataclass(frozen=True)
class Fusion:
    """几路输入与它们的权重；次序就是合成之后的次序。

    Examples:
        >>> content = Input("content", 1.0, np.array([1.0, 0.0], dtype=np.float32))
        >>> fusion = Fusion((content, Input.as_given("factors", 1, 0.5)))
        >>> rows = {"content": np.array([[1.0, 3.0]]), "factors": np.array([[-4.0]])}
        >>> fusion(rows).tolist()
        [[0.0, 1.0, -0.5]]
    """

    inputs: Tuple[Input, ...]

    def __post_init__(self) -> None:
        names = [one.name for one in self.inputs]
        if not names or len(set(names)) != len(names):
            raise InputError(f"fusion inputs must be one or more different names, got {names}")
        for one in self.inputs:
            check_float(f"weight of input {one.name!r}", one.weight, 0.0, MAX_WEIGHT, open_bottom=True)

    @property
    def width(self) -> int:
        """H。"""
        return sum(len(one.mean) for one in self.inputs)

    def __call__(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """名字 → (N, D) 的各路 → (N, H) float32；一行只看它自己。"""
        wanted = [one.name for one in self.inputs]
        if set(vectors) != set(wanted):
            raise InputError(f"fusion needs exactly the inputs {wanted}, got {sorted(vectors)}")
        parts = [one.apply(vectors[one.name]) * np.float32(one.weight) for one in self.inputs]
        if len({len(part) for part in parts}) > 1:
            raise InputError(
                f"fusion inputs have {[len(part) for part in parts]} rows; all must describe the same items"
            )
        return np.concatenate(parts, axis=1)


def smooth(content: np.ndarray, means: np.ndarray, weight: float) -> np.ndarray:
    """内容沿图平滑：x + a · unit(邻居的平均)；没有邻居的行不变。

    Args:
        content: (N, D) float32，已按 `Input.apply` 归一。
        means: (N, D) 邻居的平均，长度不拘；只有方向算数，否则邻居意见不一的物品（平均之后变短）几乎不动。
        weight: a ≥ 0。

    Returns:
        (N, D) float32，还没有单位长。

    Examples:
        >>> smooth(np.array([[1.0, 0.0]]), np.array([[0.0, 0.1]]), 2.0).tolist()
        [[1.0, 2.0]]
    """
    return (content + np.float32(weight) * unit_rows(means)).astype(np.float32)
