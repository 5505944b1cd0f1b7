"""配置：`SemanticIDConfig` 随权重一起保存，`TrainerConfig` 只管这一次训练。

`SemanticIDConfig` 按需求保持普通（可变）dataclass：用户可以先建再改。因此校验不放在 `__post_init__`，
而放在「门口」，即模型由它构造的时刻（`resolved()`），模型持有校验后的副本，之后再改原对象不影响模型。
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Dict, Tuple

from .errors import InputError, InputTypeError
from .limits import check_float, check_int

__all__ = ["EFFORTS", "MAX_BEAM_SIZE", "SemanticIDConfig", "TrainerConfig"]

_DEFAULT_NUM_CODEBOOKS = 3
EFFORTS = ("fast", "default", "max")  # 各档做什么见 training/plan.py
MAX_CODEBOOK_SIZE = 2**31 - 1  # 编号落盘时是 int32
MAX_BEAM_SIZE = 1024  # 一行的候选路径全在内存里；更宽只会更慢，误差早已不降


@dataclass
class SemanticIDConfig:
    """语义 ID 编码器的全部结构参数。

    Attributes:
        embedding_dim: 特征维度 D，≥ 1。
        num_codebooks: 层数 L。保持默认 3 时跟随 `codebook_sizes` 的长度；改成别的值就必须与之相等。
        codebook_sizes: 各层码本大小 (K_1, …, K_L)，每个 ≥ 1，不必是 2 的幂，不必相等。
        commitment_cost: 承诺损失权重 β ≥ 0（van den Oord et al., 2017, arXiv:1711.00937）。
        ema_decay: EMA 衰减率，[0, 1)。
        epsilon: EMA 计数的下限，> 0：一个码字的有效样本数低于它时，分母不再变小，避免除出天文数字。
        hidden_dim: 特征网络隐层宽度，≥ 1。网络是残差结构、输出层为零，所以起点严格等于恒等映射。
        beam_size: 编码时每层保留几条路径，[1, 1024]。1 是逐层取最近码字（贪心）；更大的束误差更低、编码更慢。
            它决定 ID，所以随模型保存，也在指纹里。None 是还没定：按 1 编码，第一次训练时由配方定下；给了的（包括 1）
            训练不改，除非 `TrainerConfig.beam_size` 明说。旧模型没有这个字段，训练过，所以一直按 1 读。
        latent_dim: 隐向量宽度 H，[1, embedding_dim]；None 为 H = D，即需求的形状。给出时特征先投影到训练行的前 H 个
            主成分：768 维以上的输入因此不必为低方差的方向付搜索的时间与码本的内存。
    """

    embedding_dim: int = 256
    num_codebooks: int = _DEFAULT_NUM_CODEBOOKS
    codebook_sizes: Tuple[int, ...] = (1024, 4096, 16384)
    commitment_cost: float = 0.25
    ema_decay: float = 0.99
    epsilon: float = 1e-5
    hidden_dim: int = 512
    beam_size: int | None = None
    latent_dim: int | None = None

    @property
    def width(self) -> int:
        """隐向量宽度 H，也是码字的宽度。"""
        return self.embedding_dim if self.latent_dim is None else self.latent_dim

    @property
    def beam(self) -> int:
        """编码真正用的束宽。"""
        return 1 if self.beam_size is None else self.beam_size

    def resolved(self) -> SemanticIDConfig:
        """校验并返回规范化的副本（层数补齐、列表转元组）。

        Raises:
            TypeError: 字段类型不对。
            ValueError: 字段取值越界或互相矛盾。
        """
        sizes = self.codebook_sizes
        if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
            raise InputTypeError(f"codebook_sizes must be a sequence of ints, got {sizes!r}; try (1024, 4096, 16384)")
        sizes = tuple(check_int(f"codebook_sizes[{i}]", k, 1, MAX_CODEBOOK_SIZE) for i, k in enumerate(sizes))
        if not sizes:
            raise InputError("codebook_sizes is empty; at least one level is needed, e.g. (1024, 4096, 16384)")
        levels = check_int("num_codebooks", self.num_codebooks, 1)
        if levels != len(sizes):
            if levels != _DEFAULT_NUM_CODEBOOKS:
                raise InputError(
                    f"num_codebooks={levels} contradicts codebook_sizes={sizes} of {len(sizes)} levels; "
                    f"drop num_codebooks (it follows codebook_sizes) or give {levels} sizes"
                )
            levels = len(sizes)
        embedding_dim = check_int("embedding_dim", self.embedding_dim, 1)
        latent_dim = None if self.latent_dim is None else check_int("latent_dim", self.latent_dim, 1)
        if latent_dim is not None and latent_dim > embedding_dim:
            raise InputError(
                f"latent_dim={latent_dim} is wider than embedding_dim={embedding_dim}; "
                f"use an int in [1, {embedding_dim}], or None for no projection"
            )
        return replace(
            self,
            embedding_dim=embedding_dim,
            num_codebooks=levels,
            codebook_sizes=sizes,
            commitment_cost=check_float("commitment_cost", self.commitment_cost, 0.0, math.inf),
            ema_decay=check_float("ema_decay", self.ema_decay, 0.0, 1.0, open_top=True),
            epsilon=check_float("epsilon", self.epsilon, 0.0, 1.0, open_bottom=True),
            hidden_dim=check_int("hidden_dim", self.hidden_dim, 1),
            beam_size=None if self.beam_size is None else check_beam_size(self.beam_size),
            latent_dim=latent_dim,
        )

    def to_dict(self) -> Dict[str, Any]:
        """转成可写入 JSON 的字典（元组写成列表）。

        后来加的字段没定（None）时不写：加它之前存下的模型因此仍是原来的指纹，已发布的物品表认得它。
        """
        out = asdict(self)
        out["codebook_sizes"] = list(self.codebook_sizes)
        for name in ("beam_size", "latent_dim"):
            if out[name] is None:
                del out[name]
        return out

    @classmethod
    def from_dict(cls, values: Dict[str, Any]) -> SemanticIDConfig:
        """从字典恢复并校验；多出的键是错误，免得拼错的名字被悄悄忽略。

        Raises:
            TypeError: 不是字典，或字段类型不对。
            ValueError: 未知字段或取值越界。
        """
        if not isinstance(values, dict):
            raise InputTypeError(f"config must be a JSON object, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"unknown config field {unknown[0]!r}; known fields: {', '.join(known)}")
        return cls(**values).resolved()


@dataclass(frozen=True)
class TrainerConfig:
    """一次训练的参数；默认值无需调整即可用于一万到上亿物品。

    Attributes:
        effort: 唯一的力气旋钮，`"fast"`、`"default"` 或 `"max"`：精修的轮数、编码的束宽、要不要试解码网络。
        beam_size: 训练好的模型用多宽的束编码；给了就用它；None 时，模型配置里定了的不变，没定的在
            第一次训练时由 `effort` 决定（1、4、8）。
        batch_size: 每步行数 B，≥ 1。
        learning_rate: Adam 的起始学习率，> 0，只作用于解码网络（码本由精修或 EMA 更新）。
        init: `"kmeans"`（逐层残差 k-means++ 与 Lloyd）或 `"uniform"`（需求里的 ±1/K）。
        kmeans_iterations: 每层 Lloyd 迭代的上限，≥ 1。
        seed: 划分、初始化、打乱的随机种子，[0, 2**63)。
        holdout_rate: 留出行的比例，[0, 0.5]；留出行用来挑选最好的状态，挑定之后才来教码本。
        max_train_rows: 最多用多少行训练（含留出行）；None 为全部。抽样由 seed 决定并写入记录。
    """

    effort: str = "default"
    beam_size: int | None = None
    batch_size: int = 1024
    learning_rate: float = 1e-3
    init: str = "kmeans"
    kmeans_iterations: int = 5
    seed: int = 0
    holdout_rate: float = 0.05
    max_train_rows: int | None = None

    def __post_init__(self) -> None:
        """冻结的 dataclass 没有「之后再改」的问题，所以构造时就校验。"""
        if self.effort not in EFFORTS:
            raise InputError(f"effort={self.effort!r} is not supported; use one of {', '.join(map(repr, EFFORTS))}")
        if self.beam_size is not None:
            check_beam_size(self.beam_size)
        check_int("batch_size", self.batch_size, 1)
        check_float("learning_rate", self.learning_rate, 0.0, math.inf, open_bottom=True)
        if self.init not in ("kmeans", "uniform"):
            raise InputError(f"init={self.init!r} is not supported; use 'kmeans' or 'uniform'")
        check_int("kmeans_iterations", self.kmeans_iterations, 1)
        check_int("seed", self.seed, 0, 2**63 - 1)
        check_float("holdout_rate", self.holdout_rate, 0.0, 0.5)
        if self.max_train_rows is not None:
            check_int("max_train_rows", self.max_train_rows, 1)

    def to_dict(self) -> Dict[str, Any]:
        """转成可写入 JSON 的字典。"""
        return asdict(self)


def check_beam_size(value: Any) -> int:
    """束宽的门。"""
    return check_int("beam_size", value, 1, MAX_BEAM_SIZE)
