"""模型卡：由测得的数字生成，不手写任何数字。"""

from __future__ import annotations

from typing import Any, Mapping

from ..config import SemanticIDConfig

__all__ = ["model_card"]

_HEADER = """---
library_name: semid
tags:
- semantic-id
- rq-vae
- generative-recommendation
---

# 语义 ID 编码器（RQ-VAE）

把 {dim} 维物品特征编码为 {levels} 层语义 ID，码本大小 {sizes}；相似物品共享前缀。

```python
from algorithm.semantic_id import SemanticIDEncoder

encoder = SemanticIDEncoder.from_pretrained("<this folder or repo>")
codes = encoder.encode(features)  # features: (B, {dim}) float32
```

| 项目 | 值 |
|---|---|
| 指纹 | `{fingerprint}` |
"""


def model_card(config: SemanticIDConfig, figures: Mapping[str, Any], fingerprint: str) -> str:
    """生成模型卡（Markdown，中文正文，YAML 头供 Hub 检索）。

    Args:
        config: 校验过的结构参数。
        figures: 训练时测得的数字；为空表示从未训练。
        fingerprint: 模型指纹。

    Returns:
        README.md 的全文。
    """
    sizes = "/".join(map(str, config.codebook_sizes))
    text = _HEADER.format(dim=config.embedding_dim, levels=config.num_codebooks, sizes=sizes, fingerprint=fingerprint)
    if not figures:
        return text + "| 训练 | 从未训练 |\n"
    for key, value in figures.items():
        text += f"| {key} | {_show(value)} |\n"
    return text + "\n数字由训练程序测得，口径见各指标的文档字符串。\n"


def _show(value: Any) -> str:
    """浮点数留四位有效数字，列表逐项，其余原样。"""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " / ".join(_show(item) for item in value)
    if isinstance(value, Mapping):
        return "；".join(f"{key} {_show(item)}" for key, item in value.items())
    return str(value).replace("|", "\\|")
