"""语义 ID 编码器：特征向量 → (L1, L2, L3) 编号，相似物品共享前缀。

形状字母，全包通用：B 批大小，N 物品数，D 特征维度，H 隐向量宽度（默认 H = D），L 层数，K_l 第 l 层码本大小。

导入本包不会导入 torch：公开名字在第一次用到时才加载，所以 `semid --help` 一秒内就能回答。
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "SemanticIDConfig": "config",
    "TrainerConfig": "config",
    "VectorQuantizer": "codebook",
    "ResidualVectorQuantizer": "rq_vae",
    "FeatureEncoder": "encoder",
    "FeatureDecoder": "encoder",
    "SemanticIDEncoder": "encoder",
    "train_codebook": "trainer",
    "compute_codebook_utilization": "trainer",
    "evaluate": "evaluation.measure",
    "Catalog": "catalog",
    "encode_catalog": "catalog",
    "open_vectors": "files.vectors",
}

__all__ = [
    "Catalog",
    "FeatureDecoder",
    "FeatureEncoder",
    "ResidualVectorQuantizer",
    "SemanticIDConfig",
    "SemanticIDEncoder",
    "TrainerConfig",
    "VectorQuantizer",
    "compute_codebook_utilization",
    "encode_catalog",
    "evaluate",
    "open_vectors",
    "train_codebook",
]


def __getattr__(name: str) -> Any:
    """按需加载公开名字（PEP 562）。"""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """让补全工具看得到按需加载的名字。"""
    return sorted([*globals(), *__all__])
