"""行为的配方：日志与内容 → 每个物品的行为行 → 要量化的向量。

形状字母：N 物品数，B 行数，D 内容宽度，F 因子数，R = D + F 行为行宽度，H 合成之后的宽度。

一个物品的行为行是 [邻居内容的平均的方向 | 因子]，与它自己的内容分开存：有行为的用自己的行，没有的由 `cold.py` 由内容猜
一行，合成（`fuse_rows`）是同一个函数，一行只看自己的内容与自己的行为行。
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict

import numpy as np

from ..limits import check_float, check_int
from .factors import FACTORS, factorise, to_ppmi, unit_rows
from .fuse import Fusion, Input, smooth
from .graph import SHRINK, WINDOW, co_consumption, neighbour_means, to_transition
from .log import Log

__all__ = ["Recipe", "fuse_rows", "learn_rows"]

_BLOCK_ROWS = 1 << 15


@dataclass(frozen=True)
class Recipe:
    """怎样用行为；默认值由验证物品挑出，见 docs/log.md。

    Attributes:
        window: 图的窗口 W ≥ 1。
        shrink: 图的收缩 ≥ 0。
        smoothing: 平滑的权重 a ≥ 0；0 为内容不动。
        hops: 平滑几遍 ≥ 1；第二遍用邻居平滑过的内容。
        num_factors: 因子数 F ≥ 1。
        blend: 因子的权重 b ≥ 0；0 为不接因子。
    """

    window: int = WINDOW
    shrink: float = SHRINK
    smoothing: float = 2.0
    hops: int = 1
    num_factors: int = FACTORS
    blend: float = 0.7

    def __post_init__(self) -> None:
        check_int("window", self.window, 1)
        check_int("hops", self.hops, 1)
        check_int("num_factors", self.num_factors, 1)
        for name in ("shrink", "smoothing", "blend"):
            check_float(name, getattr(self, name), 0.0, 1e3)

    def fusion(self, dim: int) -> Fusion:
        """平滑之后的内容与因子怎样相接；`dim` 是 D。"""
        factors = (Input.as_given("factors", self.num_factors, self.blend),) if self.blend else ()
        return Fusion((Input.as_given("content", dim), *factors))


def learn_rows(content: np.ndarray, log: Log, recipe: Recipe, dtype: Any = np.float16) -> np.ndarray:
    """全部物品的行为行；没有行为的是零行。

    Args:
        content: (N, D) float32，已归一（`Input.apply`）。
        log: 行为。
        recipe: 配方。
        dtype: 存成什么；默认 float16，合成只看方向，舍入无关紧要。

    Returns:
        (N, R)；blend 为 0 时只有 D 列。
    """
    edges = co_consumption(log, recipe.window)
    dim = content.shape[1]
    rows = np.zeros((len(content), dim + (recipe.num_factors if recipe.blend else 0)), dtype=dtype)
    transition = to_transition(edges, log.counts, recipe.shrink)
    around = content
    for hop in range(recipe.hops if recipe.smoothing else 0):
        smoothed = np.empty_like(content) if hop + 1 < recipe.hops else None
        for part in _blocks(len(content)):
            means = unit_rows(neighbour_means(transition[part], around))
            rows[part, :dim] = means
            if smoothed is not None:
                smoothed[part] = unit_rows(smooth(content[part], means, recipe.smoothing))
        around = around if smoothed is None else smoothed
    del transition
    if recipe.blend:
        rows[:, dim:] = factorise(to_ppmi(edges), recipe.num_factors)
    return rows


def fuse_rows(content: np.ndarray, rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    """归一过的内容与行为行 → 要量化的向量；一行只看自己。

    Args:
        content: (B, D) float32。
        rows: (B, R)，`learn_rows` 的或猜出来的。
        recipe: 配方。

    Returns:
        (B, H) float32。

    Examples:
        >>> recipe = Recipe(smoothing=1.0, num_factors=1, blend=0.5)
        >>> fuse_rows(np.array([[1.0, 0.0]]), np.array([[0.0, 3.0, -2.0]]), recipe).round(3).tolist()
        [[0.7070000171661377, 0.7070000171661377, -0.5]]
    """
    fusion, dim = recipe.fusion(content.shape[1]), content.shape[1]
    out = np.empty((len(content), fusion.width), dtype=np.float32)
    for part in _blocks(len(content)):
        mine = rows[part].astype(np.float32)
        inputs: Dict[str, np.ndarray] = {"content": smooth(content[part], mine[:, :dim], recipe.smoothing)}
        if recipe.blend:
            inputs["factors"] = mine[:, dim:]
        out[part] = fusion(inputs)
    return out


def _blocks(count: int) -> Any:
    """一块一块的切片：中间结果只占一块的内存。"""
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, count, _BLOCK_ROWS))
