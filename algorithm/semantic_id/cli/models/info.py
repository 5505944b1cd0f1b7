"""`semid info`：查看模型的配置、指纹、大小与训练时的数字；只读。"""

from __future__ import annotations

import os
from typing import Any, Dict

from ..options import Model, Session
from ..page import Page

__all__ = ["run", "show"]


def run(session: Session, model: Model) -> Dict[str, Any]:
    """读模型目录。"""
    from ..loading import load_model

    encoder = load_model(model, "cpu")
    return {
        "model": os.fspath(model),
        "fingerprint": encoder.fingerprint(),
        "config": encoder.config.to_dict(),
        "num_parameters": sum(p.numel() for p in encoder.parameters()),
        "bytes": sum((model / name).stat().st_size for name in ("config.json", "model.safetensors")),
        "training": encoder.training_figures,
    }


def show(result: Dict[str, Any], page: Page) -> None:
    """三段：认得出它的、配置、训练时的数字。"""
    config = dict(result["config"])
    page.facts(
        [
            ("word.fingerprint", result["fingerprint"]),
            ("info.embedding_dim", str(config.pop("embedding_dim"))),
            ("info.codebook_sizes", " / ".join(map(str, config.pop("codebook_sizes")))),
            ("info.parameters", f"{result['num_parameters']:,}"),
            ("info.bytes", f"{result['bytes'] / 1e6:.1f} MB"),
        ]
    )
    page.fields((key, str(value)) for key, value in config.items())
    if result["training"]:
        page.fields((key, _plain(value)) for key, value in result["training"].items())
    else:
        page.say("info.untrained")


def _plain(value: Any) -> str:
    """浮点数留四位有效数字。"""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " / ".join(map(_plain, value)) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return str(value)
