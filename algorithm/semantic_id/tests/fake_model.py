"""测试用的假模型：满足 `SemanticIDModel` 协议，每个结果都能手算。

第 l 层的编号就是第 l 个特征四舍五入后夹进码本；解码把编号放回原位，其余维为 0。
"""

from __future__ import annotations

import os
import signal
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

    def encode_candidates(self, features, num_candidates, prefixes=None):
        """全部路径逐一算距离；只配小码本。"""
        paths = torch.cartesian_prod(*(torch.arange(k) for k in self.codebook_sizes)).reshape(
            -1, len(self.codebook_sizes)
        )
        levels = paths.shape[1]
        codes = torch.full((len(features), num_candidates, levels), -1)
        errors = torch.full((len(features), num_candidates), torch.inf, dtype=torch.float64)
        for row, x in enumerate(features):
            here = paths if prefixes is None else paths[(paths[:, :-1] == prefixes[row]).all(1)]
            far, order = torch.sort((x[:levels].double() - here).square().sum(1), stable=True)
            count = min(num_candidates, len(here))
            codes[row, :count], errors[row, :count] = here[order[:count]], far[:count]
        return codes, errors

    def path_errors(self, features, codes):
        x = features[:, : codes.shape[1]].double()  # (B, L)
        done, rest = (x - codes).square().cumsum(1), x.square()
        return done + rest.sum(1, keepdim=True) - rest.cumsum(1)


class DeadlyModel(FakeModel):
    """编码到第 4 维等于 40 的行，就把自己所在的进程杀掉；给了 `marker` 路径则只杀一次。"""

    def __init__(self, sizes: Sequence[int], dim: int, marker: str) -> None:
        super().__init__(sizes, dim)
        self.marker = marker

    def encode_codes(self, features: torch.Tensor) -> torch.Tensor:
        if 40 in features[:, 3] and not (self.marker and os.path.exists(self.marker)):
            if self.marker:
                open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_codes(features)
