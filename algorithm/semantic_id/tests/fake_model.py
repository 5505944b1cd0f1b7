"""测试用的假模型：满足 `SemanticIDModel` 协议，每个结果都能手算。

第 l 层的编号就是第 l 个特征四舍五入后夹进码本；解码把编号放回原位，其余维为 0。
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple

import torch


class FakeModel:
    """(B, D) → 取前 L 维的整数部分。"""

    def __init__(self, sizes: Sequence[int] = (4, 3), dim: int = 3, mean: Sequence[float] | None = None) -> None:
        self.codebook_sizes: Tuple[int, ...] = tuple(sizes)
        self.embedding_dim = dim
        self.feature_mean = torch.zeros(dim) if mean is None else torch.tensor(mean)
        self.training_figures: Dict[str, Any] = {} if mean is None else {"num_rows": 1}

    def fingerprint(self) -> str:
        return "f" * 64

    def encode_codes(self, features: torch.Tensor) -> torch.Tensor:
        tops = torch.tensor(self.codebook_sizes) - 1
        return features[:, : len(tops)].round().long().clamp_min(0).minimum(tops)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(codes), self.embedding_dim)
        out[:, : codes.shape[1]] = codes.float()
        return out
