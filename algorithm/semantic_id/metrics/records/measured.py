"""指标的函数看到的全部东西：一次评估读完特征之后手里的数组。没有量的是 None。

形状字母：N 物品数，L 层数，D 特征维度，Q 查询物品数，M 邻居数，P 物品对数，K_l 码本大小。
只有 NumPy 数组，不认文件、模型与物品表；谁读文件谁填它（`evaluation/measure.py`）。
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from .. import codes as code_metrics
from .. import meaning
from ..prefix_means import PrefixError

__all__ = ["Labels", "Measured"]

SEED = 0  # 打乱标签的种子


@dataclass
class Labels:
    """有标签的物品：哪些行 (M,)，标签号 (M,)，与按种子打乱的标签号 (M,)。"""

    rows: np.ndarray
    numbers: np.ndarray

    @cached_property
    def shuffled(self) -> np.ndarray:
        """标签按种子 0 打乱：随机水平用它。"""
        return np.random.default_rng(SEED).permutation(self.numbers)


@dataclass
class Measured:
    """一次评估量到的。

    Attributes:
        codes: (N, L) int32。
        sizes: 各层码本大小 (K_1, …, K_L)。
        num_values: N · D。
        error: Σ‖x − x̂‖²。
        deviation: Σ‖x − μ‖²，μ 为训练均值，没有模型时为这批物品的均值；从未训练过的模型为 None。
        level_errors: L 个 Σ‖残差‖²，走完前 l 层之后。
        own_deviation: Σ‖x − 这批物品的均值‖²。
        duplicates: 与前面某一行逐字节相同的行数。
        prefixes: L 个 `PrefixError`。
        neighbours: (Q, M) 查询物品的精确近邻。
        queries: (Q,) 它们的行号。
        labels: 有标签的物品。
        pairs: (P, 2) 一起消费的物品对。
        partners: 每个行为查询的共同消费物品。
        near_features: (Q', K) 行为查询在特征上的余弦近邻。
        near_reconstructions: (Q', K) 在重建上的余弦近邻。
        assigned: (N, L[+1]) 物品表里的 ID，没有的物品整行是 −1。
        unseen: 同一个模型在没见过的物品上量到的。
        training: 训练时的数字；没有训练过为 None。
    """

    codes: np.ndarray
    sizes: Sequence[int]
    num_values: int = 0
    error: float | None = None
    deviation: float | None = None
    level_errors: Sequence[float] | None = None
    own_deviation: float | None = None
    duplicates: int | None = None
    prefixes: List[PrefixError] | None = None
    neighbours: np.ndarray | None = None
    queries: np.ndarray | None = None
    labels: Labels | None = None
    pairs: np.ndarray | None = None
    partners: List[np.ndarray] | None = None
    near_features: np.ndarray | None = None
    near_reconstructions: np.ndarray | None = None
    assigned: np.ndarray | None = None
    unseen: Measured | None = None
    training: Mapping[str, Any] | None = None

    @property
    def num_items(self) -> int:
        """N。"""
        return len(self.codes)

    @property
    def lengths(self) -> range:
        """各前缀长度 1…L。"""
        return range(1, self.codes.shape[1] + 1)

    @property
    def relative_mse(self) -> float | None:
        """相对误差；没有定义时为 None。"""
        if self.error is None or self.deviation is None:
            return None
        return code_metrics.relative_mse(self.error, self.deviation)

    @cached_property
    def counts(self) -> List[np.ndarray]:
        """L × (K_l,) 每个码字的使用次数。"""
        return [code_metrics.code_counts(self.codes[:, level], size) for level, size in enumerate(self.sizes)]

    @cached_property
    def collisions(self) -> Tuple[float, float, int]:
        """(冲突率, 与别人共用 ID 的物品, 最拥挤的 ID)。"""
        return code_metrics.collision_figures(self.codes)

    @cached_property
    def co_consumption(self) -> Tuple[List[float], List[float], List[float | None]]:
        """(实际, 期望, 提升)，见 `meaning.co_consumption`。"""
        assert self.pairs is not None
        return meaning.co_consumption(self.codes, self.pairs)

    @cached_property
    def label_figures(self) -> Dict[str, List[float]]:
        """标签纯度与 NMI，及打乱之后的；一起算，前缀组只求一遍。"""
        assert self.labels is not None
        out: Dict[str, List[float]] = {key: [] for key in ("purity", "purity_chance", "nmi", "nmi_chance")}
        for length in self.lengths:
            groups = meaning.prefix_groups(self.codes[self.labels.rows], length)
            for tail, given in (("", self.labels.numbers), ("_chance", self.labels.shuffled)):
                out["purity" + tail].append(meaning.label_purity(groups, given))
                out["nmi" + tail].append(meaning.normalized_mutual_information(groups, given))
        return out

    @cached_property
    def in_catalog(self) -> np.ndarray:
        """(N,) bool，物品表里有的。"""
        assert self.assigned is not None
        return self.assigned[:, 0] >= 0
