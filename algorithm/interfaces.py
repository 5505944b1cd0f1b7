"""团队共用的接口：谁实现、谁调用，都只认这里。

形状字母：B 为批大小，D 为特征维度（默认 256），L 为层数（默认 3），K_l 为第 l 层码本大小。

`SemanticIDEncoderInterface` 是需求文档规定的三个方法，同事的模块（排序、召回、生成）依赖它。
`SemanticIDModel` 是「二楼」（物品表、评估）对模型的全部要求：二楼只 import 本文件，不 import 模型，
因此换成别的编码器也能建物品表。
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Dict, Protocol, Tuple, runtime_checkable

import torch

__all__ = ["SemanticIDEncoderInterface", "SemanticIDModel"]


class SemanticIDEncoderInterface(ABC):
    """语义 ID 编码器的契约：特征向量与 L1/L2/L3 编号的互相转换。"""

    @abstractmethod
    def encode(self, features: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """把物品特征编码为逐层编号。

        Args:
            features: (B, D) 浮点特征向量。

        Returns:
            L 个 (B,) int64 张量；默认配置下即 (L1_ids, L2_ids, L3_ids)。
        """

    @abstractmethod
    def decode(self, l1_ids: torch.Tensor, l2_ids: torch.Tensor, l3_ids: torch.Tensor) -> torch.Tensor:
        """从语义 ID 重建特征向量。

        Args:
            l1_ids: (B,) 整数，L1 编号。
            l2_ids: (B,) 整数，L2 编号。
            l3_ids: (B,) 整数，L3 编号。

        Returns:
            (B, D) float32 重建向量。
        """

    @abstractmethod
    def get_codebook_embeddings(self, level: int) -> torch.Tensor:
        """取某一层的码本矩阵。

        Args:
            level: 1、2、3 对应 L1、L2、L3。

        Returns:
            (K_level, H) float32 码本。
        """


@runtime_checkable
class SemanticIDModel(Protocol):
    """物品表与评估所需的模型：能编码、能解码、能证明自己是谁。"""

    @property
    def embedding_dim(self) -> int:
        """特征维度 D。"""

    @property
    def codebook_sizes(self) -> Tuple[int, ...]:
        """各层码本大小 (K_1, …, K_L)。"""

    @property
    def feature_mean(self) -> torch.Tensor:
        """(D,) float32，训练行的均值；`relative_mse` 的分母以它为中心。"""

    @property
    def training_figures(self) -> Dict[str, Any]:
        """训练时测得的数字（可直接写成 JSON）；从未训练过则为空字典。"""

    def fingerprint(self) -> str:
        """决定 ID 的一切（配置与权重）的 SHA-256，64 位十六进制。"""

    def encode_codes(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D) 特征 → (B, L) int64 编码，第 l 列属于第 l+1 层。"""

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, L) 整数编码 → (B, D) float32 重建向量。"""

    def encode_candidates(
        self, features: torch.Tensor, num_candidates: int, prefixes: torch.Tensor | None = None
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """候选编码 (B, M, L) int64 与误差 (B, M) float64，按（误差，编号字典序）递增，互不相同。

        凑不满 M 条的余下填 −1 与 inf。给出 `prefixes` (B, L − 1) 时只在各自的前缀之内挑，第一条是该前缀下最近的。
        一行的候选只由这一行与模型决定。
        """

    def path_errors(self, features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """(B, L) float64：走完前 l 层之后的误差，最后一列与 `encode_candidates` 的误差同义。"""
