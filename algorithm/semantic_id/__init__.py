"""语义 ID 编码器：特征向量 → (L1, L2, L3) 编号，相似物品共享前缀。

形状字母，全包通用：B 批大小，N 物品数，D 特征维度，H 隐向量宽度（默认 H = D），L 层数，K_l 第 l 层码本大小。

导入本包不会导入 torch：公开名字在第一次用到时才加载，所以 `semid --help` 一秒内就能回答。
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # 给类型检查看的：`as` 表示转交出去；与 `_ROOMS` 相同由测试看着
    from .catalog import Catalog as Catalog
    from .catalog import encode_catalog as encode_catalog
    from .codebook import VectorQuantizer as VectorQuantizer
    from .config import SemanticIDConfig as SemanticIDConfig
    from .config import TrainerConfig as TrainerConfig
    from .encoder import FeatureDecoder as FeatureDecoder
    from .encoder import FeatureEncoder as FeatureEncoder
    from .encoder import SemanticIDEncoder as SemanticIDEncoder
    from .evaluation.measure import evaluate as evaluate
    from .files.vectors import open_vectors as open_vectors
    from .rq_vae import ResidualVectorQuantizer as ResidualVectorQuantizer
    from .trainer import compute_codebook_utilization as compute_codebook_utilization
    from .trainer import train_codebook as train_codebook

__version__ = "0.1.0"

# 公开的名字 → 它住的模块；用到时才导入
_ROOMS = {
    "Catalog": "catalog",
    "FeatureDecoder": "encoder",
    "FeatureEncoder": "encoder",
    "ResidualVectorQuantizer": "rq_vae",
    "SemanticIDConfig": "config",
    "SemanticIDEncoder": "encoder",
    "TrainerConfig": "config",
    "VectorQuantizer": "codebook",
    "compute_codebook_utilization": "trainer",
    "encode_catalog": "catalog",
    "evaluate": "evaluation.measure",
    "open_vectors": "files.vectors",
    "train_codebook": "trainer",
}

__all__ = list(_ROOMS)


if not TYPE_CHECKING:  # 类型检查看不到它，拼错的名字才是错误

    def __getattr__(name: str) -> Any:
        """按需加载公开名字（PEP 562）。"""
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """让补全工具看得到按需加载的名字。"""
    return sorted([*globals(), *__all__])
