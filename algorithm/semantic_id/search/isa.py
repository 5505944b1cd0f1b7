"""指令集的表：一行一种；再加上编译内核的加载与打包（ctypes，调用期间不持有 GIL）。没有编译过就当内核不存在。

一种指令集 = 这里的一行 + `kernel/` 里的一个特征（trait）；别处只问行里写的，从不按名字分支。
"""

from __future__ import annotations

import ctypes
import functools
import math
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Callable, NamedTuple, Tuple

import torch

__all__ = ["ISAS", "Isa", "available", "library", "pack"]

_VERSION = 6  # 与 kernel/native.cpp 的 semid_version 一致，不一致说明留着旧的构建产物
_PANEL = 32


class Packing(NamedTuple):
    """提名用的码字怎样存放。

    Attributes:
        dtype: 元素类型。
        shape: (面板数 P, 宽度 H) → 形状。
        rows: 是否另按行存一份 (K', H) 的 float32 供裁决；低精度的排法都要。
        table_rows: 束搜索至少多少行才值得查内积表；更少时各路径再乘一遍更快，inf 是乘积总比查表便宜。
    """

    dtype: torch.dtype
    shape: Callable[[int, int], Tuple[int, ...]]
    rows: bool
    table_rows: float


_FLOAT32 = Packing(torch.float32, lambda panels, width: (panels, width, _PANEL), False, 0)
# 每个 int32 是相邻两维，末行是各码字的 s，见 `kernel/int16.h`
_INT16 = Packing(torch.int32, lambda panels, width: (panels, -(-width // 2) + 1, _PANEL), True, 192)
_BFLOAT16 = Packing(torch.bfloat16, lambda panels, width: (panels, -(-width // 32), 2, 16, 32), True, math.inf)


class Isa(NamedTuple):
    """一种指令集。

    Attributes:
        name: `SEMID_SEARCH` 里的名字。
        id: 在 `kernel/native.cpp` 的 kIsas 里的下标。
        tile_rows: 一片瓦片的行数，等于那边的 kRows；每段取它的倍数，才没有半空的瓦片。
        worth_threads: 乘加次数低于它（一个线程约 20 毫秒）就用一个线程：忙机器上被叫醒的线程可能要等一个时间片，
            活太短便赔本。
        packing: 码字怎样存放。
    """

    name: str
    id: int
    tile_rows: int
    worth_threads: int
    packing: Packing


ISAS = (  # 从慢到快
    Isa("generic", 0, 4, 1 << 31, _FLOAT32),
    Isa("avx2", 1, 6, 1 << 31, _FLOAT32),
    Isa("avx2-int16", 3, 6, 1 << 31, _INT16),
    Isa("avx512", 2, 14, 1 << 31, _FLOAT32),
    Isa("avx512-int16", 4, 14, 1 << 32, _INT16),
    Isa("amx", 5, 32, 1 << 34, _BFLOAT16),
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """找到并打开编译好的内核；没有就返回 None。"""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_native" + suffix)
        if not path.exists():
            continue
        found = ctypes.CDLL(str(path))
        if found.semid_version() == _VERSION:
            pointer, number, isa = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
            found.semid_pack.argtypes = [isa, pointer, pointer, number, number, pointer, pointer]
            found.semid_nearest.argtypes = [pointer, isa, pointer, number, number, number, pointer]
            found.semid_beam.argtypes = [pointer, isa, pointer, number, pointer, pointer]
            return found
        warnings.warn(f"{path.name} is stale and ignored; rebuild: python setup.py build_ext --inplace", stacklevel=2)
    return None


def available() -> Tuple[Isa, ...]:
    """本机能跑的指令集，从慢到快；没有编译内核时为空。"""
    kernel = library()
    found = 0 if kernel is None else kernel.semid_isas()
    return tuple(isa for isa in ISAS if found >> isa.id & 1)


def pack(isa: Isa, codes: torch.Tensor, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """把 `codes` (R, H) 写成 `target` 里的第 `rows` (R,) 个码字，排法见 `isa.packing`。

    Returns:
        (R,) float64，‖c − c̃‖ / ‖c‖ 的上界；float32 的排法不丢精度，是 0。
    """
    kernel = library()
    assert kernel is not None
    codes, rows = codes.contiguous(), rows.contiguous()
    losses = torch.zeros(len(codes), dtype=torch.float64)
    pointers = target.data_ptr(), losses.data_ptr()
    if kernel.semid_pack(isa.id, codes.data_ptr(), rows.data_ptr(), *codes.shape, *pointers):
        raise MemoryError("packing the codebook ran out of memory; use a smaller width")
    return losses
