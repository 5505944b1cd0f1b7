"""命令行怎样找到模型与设备：本地目录与设备名的门。"""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import torch

from ..encoder import SemanticIDEncoder
from ..errors import InputError

__all__ = ["choose_device", "load_model", "parse_sizes"]


def load_model(folder: Path, device: str) -> SemanticIDEncoder:
    """命令行只认本地目录：拼错的路径应当立刻报错，而不是去网上找同名仓库。"""
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {str(folder)!r} does not exist; train one with `semid train`")
    return SemanticIDEncoder.from_pretrained(folder).to(choose_device(device))


def choose_device(name: str) -> torch.device:
    """设备名的门；auto 有 CUDA 就用。"""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # 光能建张量不够：meta 上的没有值
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise InputError(f"--device {name!r} cannot be used here: {reason}; use cpu, cuda or auto") from None
    return device


def parse_sizes(text: str) -> Tuple[int, ...]:
    """解析 `256,256,256`。

    Raises:
        InputError: 不是逗号分隔的正整数。
    """
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"--codebook-sizes {text!r} must be positive ints separated by commas, e.g. 256,256,256")
    return sizes
