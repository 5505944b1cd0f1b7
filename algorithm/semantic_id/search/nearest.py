"""最近码字：整理好的码本走哪条路径，就交给哪条路径；查找、训练、k-means 都从这里进。"""

from __future__ import annotations

import torch

from ..errors import InputError
from ..limits import check_int
from . import native, tiles
from .prepared import PreparedCodebook, prepare, untraced

__all__ = ["PreparedCodebook", "nearest", "prepare", "untraced"]


@untraced
def nearest(x: torch.Tensor, codebook: PreparedCodebook, *, num_threads: int | None = None) -> torch.Tensor:
    """每行的最近码字，定义见 `definition.py`。

    Args:
        x: (B, H) float32，B ≥ 0，任意步长；假定有限且 |x| ≤ 1e15。
        codebook: `prepare` 的结果，与 x 同设备。
        num_threads: 编译路径用几个线程，默认 `torch.get_num_threads()`；结果与它无关。

    Returns:
        (B,) int64，取值 [0, K)。

    Raises:
        TypeError: `num_threads` 不是整数。
        ValueError: x 的形状或设备与码本不符，或 `num_threads` 小于 1。
    """
    if x.ndim != 2 or x.shape[1] != codebook.width or x.device != codebook.table.device:
        raise InputError(
            f"x is {tuple(x.shape)} on {x.device}, but the codebook needs (B, {codebook.width}) "
            f"on {codebook.table.device}"
        )
    threads = torch.get_num_threads() if num_threads is None else check_int("num_threads", num_threads, 1)
    x = x.detach().float()
    out = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)  # (B,)
    if codebook.isa is not None:
        native.search(x, codebook, out, threads)
    else:
        tiles.search(x, codebook, out)
    return out
