"""模型里的行为：自己的行为表、冷启动的规则、内容的均值，合起来把 (编号, 内容) 变成要量化的向量。

形状字母：n 表里的物品数，B 行数，K 中心数，D 内容宽度，R 行为行宽度，H 合成之后的宽度。

全部是 buffer，所以随权重保存，也在指纹里。一个物品的行为行取自这里的表；没有的由冷启动的规则由内容猜。表里不存编号，
只存编号的摘要的前八个字节（`name_keys`）：宽度固定、不泄露编号、字符串与整数同样对待。一个物品 8 + 2R 字节。

合成在 CPU 上用 NumPy 算，一行只看自己，所以同一行在任何批里、任何设备上都得到同样的字节。
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ..errors import InputError
from .cold import CENTRES, ColdRule, fit_cold_rule
from .fuse import Input
from .log import Log, name_keys
from .recipe import Recipe, fuse_rows, learn_rows

__all__ = ["MAX_TABLE_ITEMS", "Behaviour", "fit_content_map"]

MAX_TABLE_ITEMS = 1 << 20  # 384 列时 0.8 GB；再多时留行为最多的，其余按冷启动
RIDGE = 1e-3  # 相对于平均对角元
_ITEMS_PER_CENTRE = 8  # 一个中心至少摊到这么多物品，它的平均行为行才可信

# (内容 (n, D), K) → (中心 (K, D), 各行属于哪个)；k-means 住在训练那一层，由调用者递进来
Cluster = Callable[[torch.Tensor, int], Tuple[torch.Tensor, torch.Tensor]]


class Behaviour(nn.Module):
    """行为的全部状态。

    Attributes:
        mean: (D,) float32，内容的均值。
        keys: (n,) int64，升序，编号的摘要（uint64 按位读成 int64 之前先排序）。
        rows: (n, R) float16，行为行。
        centres: (K, D) float32，冷启动的中心。
        cold_rows: (K, R) float32，各中心的平均行为行。
        content_map: (H + 1, D) float32，从要量化的向量回到内容；最后一行是常数。
    """

    mean: torch.Tensor
    keys: torch.Tensor
    rows: torch.Tensor
    centres: torch.Tensor
    cold_rows: torch.Tensor
    content_map: torch.Tensor

    def __init__(self, dim: int, recipe: Recipe, num_items: int, num_centres: int) -> None:
        super().__init__()
        self.recipe = recipe
        width = dim + (recipe.num_factors if recipe.blend else 0)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("keys", torch.zeros(num_items, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(num_items, width, dtype=torch.float16))
        self.register_buffer("centres", torch.zeros(num_centres, dim))
        self.register_buffer("cold_rows", torch.zeros(num_centres, width))
        self.register_buffer("content_map", torch.zeros(self.width + 1, dim))

    @property
    def width(self) -> int:
        """H。"""
        return self.recipe.fusion(len(self.mean)).width

    @classmethod
    def learn(cls, ids: pa.Array, features: np.ndarray, log: Log, recipe: Recipe, cluster: Cluster) -> Behaviour:
        """从内容与日志学出全部状态；同样的输入同样的字节。

        Args:
            ids: (N,) 物品编号，次序同 `log` 的行号。
            features: (N, D) float32。
            log: 行为。
            recipe: 配方。
            cluster: 把有行为的物品的内容分成几群。

        Raises:
            ValueError: 两个编号的摘要相同（对百万个物品，概率约一亿分之三）。
        """
        centre = Input.centred_on("content", features)
        content = centre.apply(features)
        rows = learn_rows(content, log, recipe)
        known = np.flatnonzero(log.counts)
        warm = torch.from_numpy(content[known])
        centres, owners = cluster(warm, max(1, min(CENTRES, len(known) // _ITEMS_PER_CENTRE)))
        cold = fit_cold_rule(centres, owners, rows[known].astype(np.float32))
        if len(known) > MAX_TABLE_ITEMS:
            known = np.sort(known[np.argsort(-log.counts[known], kind="stable")[:MAX_TABLE_ITEMS]])
        keys = name_keys(ids.take(pa.array(known)).to_pylist())
        order = np.argsort(keys, kind="stable")
        keys, known = keys[order], known[order]
        if (keys[1:] == keys[:-1]).any():
            raise InputError("two item ids have the same 64-bit digest; rename one of them")
        out = cls(features.shape[1], recipe, len(known), len(cold.centres))
        found: Dict[str, Any] = {"mean": centre.mean, "keys": keys.view(np.int64), "rows": rows[known]}
        for name, value in found.items():
            getattr(out, name).copy_(torch.from_numpy(np.ascontiguousarray(value)))
        out.centres.copy_(cold.centres)
        out.cold_rows.copy_(cold.rows)
        out.content_map.copy_(fit_content_map(out.fuse(features, ids), features))
        return out

    def fuse(self, features: np.ndarray, ids: pa.Array | None = None) -> np.ndarray:
        """要量化的向量。

        Args:
            features: (B, D) float32。
            ids: (B,) 物品编号；None 为全按冷启动，即 `encode(x)` 的意思。

        Returns:
            (B, H) float32。
        """
        content = Input("content", 1.0, self.mean.cpu().numpy()).apply(np.asarray(features, dtype=np.float32))
        places = np.full(len(content), -1) if ids is None else self.places(ids)
        rows = np.zeros((len(content), self.rows.shape[1]), dtype=np.float32)
        warm = places >= 0
        rows[warm] = self.rows.cpu().numpy()[places[warm]].astype(np.float32)
        if not warm.all():
            rule = ColdRule(self.centres.cpu(), self.cold_rows.cpu())
            rows[~warm] = rule(torch.from_numpy(content[~warm])).numpy()
        return fuse_rows(content, rows, self.recipe)

    def places(self, ids: pa.Array) -> np.ndarray:
        """(B,) int64：各编号在表的第几行，没有的是 −1。"""
        keys, wanted = self.keys.cpu().numpy().view(np.uint64), name_keys(ids.to_pylist())
        if len(keys) == 0:
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[places] == wanted, places, -1)


def fit_content_map(fused: np.ndarray, features: np.ndarray) -> torch.Tensor:
    """从要量化的向量回到内容的岭回归：x ≈ [z, 1] · M；常数不收缩。

    Args:
        fused: (N, H)。
        features: (N, D)。

    Returns:
        (H + 1, D) float32。
    """
    width = fused.shape[1] + 1
    gram, cross = np.zeros((width, width)), np.zeros((width, features.shape[1]))
    for start in range(0, len(fused), 8192):
        block = np.concatenate([fused[start : start + 8192], np.ones((len(fused[start : start + 8192]), 1))], axis=1)
        gram += block.T @ block
        cross += block.T @ features[start : start + 8192].astype(np.float64)
    ridge = np.full(width, RIDGE * max(float(gram.diagonal()[:-1].mean()), np.finfo(np.float32).tiny))
    ridge[-1] = 0.0
    return torch.from_numpy(np.linalg.solve(gram + np.diag(ridge), cross).astype(np.float32))
