"""一次训练的料（`Job`，不变）与它记住的事（`RunState`，每个 epoch 都变）。

断点存取的恰是 `RunState` 加模型的张量；其余一切（计划、隐向量、编号）都能由料重新算出。
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Tuple

import torch

from ..config import TrainerConfig
from ..encoder import SemanticIDEncoder
from ..files.progress import Progress
from .behaviour import ItemPairs
from .rows import TrainingRows

__all__ = ["Job", "RunState"]


class Job(NamedTuple):
    """给定的东西。

    Attributes:
        encoder: 被训练的编码器，只有它会被写。
        rows: 训练行与留出行。
        num_epochs: epoch 数。
        config: 训练参数。
        pairs: 物品对，没有为 None。
        bar: 进度条。
    """

    encoder: SemanticIDEncoder
    rows: TrainingRows
    num_epochs: int
    config: TrainerConfig
    pairs: ItemPairs | None
    bar: Progress


@dataclass
class RunState:
    """训练到现在记住的事。

    Attributes:
        phases: 各个 epoch 属于哪一期；初始化之后定下。
        num_taught_rows: 开始之前，同样的数据里已有几行（含留出行）教过码本；0 为没有。
        epoch: 已经做完几个 epoch。
        notes: 要让人知道的事。
        history: 每个 epoch 一行记录，第 0 行是初始化之后；就是 metrics.jsonl。
        best_key: 最好状态的（留出误差，冲突率）。
        best_epoch: 它出自哪个 epoch。
        best_tensors: 它的状态字典。
        residual_std: 精修跨轮记着的误差逐维标准差，见 `Refiner`。
    """

    phases: List[str] = field(default_factory=list)
    num_taught_rows: int = 0
    epoch: int = 0
    notes: List[str] = field(default_factory=list)
    history: List[Dict[str, Any]] = field(default_factory=list)
    best_key: Tuple[float, float] = (math.inf, math.inf)
    best_epoch: int = -1
    best_tensors: Dict[str, torch.Tensor] = field(default_factory=dict)
    residual_std: torch.Tensor | None = None

    def keep_if_best(self, encoder: SemanticIDEncoder, judged: Dict[str, Any]) -> bool:
        """编码器此刻若比最好的还好，记下它；先比误差，再比冲突率。"""
        key = (judged["mse"], judged["collision_rate"])
        if not key < self.best_key:
            return False
        self.best_key, self.best_epoch = key, self.epoch
        self.best_tensors = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
        return True

    def refining_paid(self) -> bool:
        """有没有哪个精修 epoch 的留出误差低于精修之前的。"""
        before = min(r["holdout_mse"] for r in self.history if r["phase"] in ("init", "ema"))
        return any(r["holdout_mse"] < before for r in self.history if r["phase"] == "refine")
