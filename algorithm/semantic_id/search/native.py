"""编译内核的加载与调用（ctypes，调用期间不持有 GIL）；没有编译过就当它不存在。

线程在这里开：每个线程各领一段行，段内单线程算到底。不用 OpenMP：它的忙等在繁忙的机器上能让两个线程比一个慢几倍。
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Sequence

import torch

if TYPE_CHECKING:
    from .prepared import PreparedCodebook

__all__ = ["PATHS", "available", "beam_search", "pack", "pack_bfloat16", "pack_int16", "search"]

_VERSION = 5  # 与 kernel/native.cpp 的 semid_version 一致，不一致说明留着旧的构建产物
_ISAS = ("generic", "avx2", "avx512", "amx", "avx2-int16", "avx512-int16")  # 下标即 kernel/native.cpp 里的编号
PATHS = ("generic", "avx2", "avx2-int16", "avx512", "avx512-int16", "amx")  # 从慢到快
_TILE_ROWS = (4, 6, 14, 32, 6, 14)  # 各指令集一片瓦片的行数；每段取它的倍数，才没有半空的瓦片
_CHUNK = 4032  # 一个线程一次最多领的行数，是它们的公倍数；束搜索靠它让几千行轮流用一片内积表
# 乘加次数低于它（一个线程约 20 毫秒）就用一个线程：忙机器上被叫醒的线程可能要等一个时间片，活太短便赔本
_WORTH_THREADS = (1 << 31, 1 << 31, 1 << 31, 1 << 34, 1 << 31, 1 << 32)
_FINE = 252  # 几个线程分活时一段不少于这么多行：再短，每段都要把码本从头读一遍


class _Book(ctypes.Structure):
    """与 _native.cpp 的 struct Book 逐字段对应。"""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("table", "tiles", "bias", "norm", "panel_norm")),
        *((name, ctypes.c_int64) for name in ("size", "width", "num_panels")),
        *((name, ctypes.c_double) for name in ("top_norm", "limit", "slope", "curve", "eta", "tau", "loss")),
    ]


class _BeamLevel(ctypes.Structure):
    """与 _native_beam.cpp 的 struct BeamLevel 逐字段对应。"""

    _fields_ = [
        ("book", ctypes.POINTER(_Book)),
        *((name, ctypes.c_void_p) for name in ("weight", "table", "twin")),
        ("first", ctypes.c_int64),
    ]


class _Beam(ctypes.Structure):
    """与 _native_beam.cpp 的 struct Beam 逐字段对应。"""

    _fields_ = [
        ("levels", ctypes.POINTER(_BeamLevel)),
        ("gain", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_levels", "size", "width")),
        *((name, ctypes.c_double) for name in ("limit", "slope", "curve", "eta", "tau", "drift", "grain")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """找到并打开编译好的内核；没有就返回 None。"""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_native" + suffix)
        if not path.exists():
            continue
        library = ctypes.CDLL(str(path))
        if library.semid_version() == _VERSION:
            pointer, number = ctypes.c_void_p, ctypes.c_int64
            library.semid_pack.argtypes = [pointer, pointer, number, number, pointer]
            library.semid_pack.restype = None
            if hasattr(library, "semid_pack_amx"):
                library.semid_pack_amx.argtypes = [pointer, pointer, number, number, pointer]
                library.semid_pack_amx.restype = None
            if hasattr(library, "semid_pack_int16"):
                library.semid_pack_int16.argtypes = [pointer, pointer, number, number, ctypes.c_int, pointer, pointer]
            library.semid_nearest.argtypes = [pointer, ctypes.c_int, pointer, number, number, number, pointer]
            library.semid_beam.argtypes = [pointer, ctypes.c_int, pointer, number, pointer, pointer]
            return library
        warnings.warn(f"{path.name} is stale and ignored; rebuild: python setup.py build_ext --inplace", stacklevel=2)
    return None


def available() -> tuple[str, ...]:
    """本机能跑的指令集，从慢到快；没有编译内核时为空。"""
    library = _library()
    found = 0 if library is None else library.semid_isas()
    return tuple(name for name in PATHS if found >> _ISAS.index(name) & 1)


def pack(codes: torch.Tensor, rows: torch.Tensor, panels: torch.Tensor) -> None:
    """把 `codes` (R, H) 写进面板 (P, H, 32) 的第 `rows` (R,) 个码字。"""
    _pack("semid_pack", codes, rows, panels)


def pack_bfloat16(codes: torch.Tensor, rows: torch.Tensor, tiles: torch.Tensor) -> None:
    """把 `codes` (R, H) 舍入成 bfloat16，写成瓦片 (P, C, 2, 16, 32) 里的第 `rows` (R,) 个码字。"""
    _pack("semid_pack_amx", codes, rows, tiles)


def _pack(function: str, codes: torch.Tensor, rows: torch.Tensor, target: torch.Tensor) -> None:
    library = _library()
    assert library is not None
    codes, rows = codes.contiguous(), rows.contiguous()
    getattr(library, function)(codes.data_ptr(), rows.data_ptr(), *codes.shape, target.data_ptr())


def pack_int16(codes: torch.Tensor, rows: torch.Tensor, panels: torch.Tensor, path: str) -> torch.Tensor:
    """把 `codes` (R, H) 舍入成定点数，写进面板 (P, ⌈H/2⌉ + 1, 32) 的第 `rows` (R,) 个码字。

    Returns:
        (R,) float64，‖c − c̃‖ / ‖c‖ 的上界；范数不到 2⁻¹⁰⁵ 的码字记 0，内核另外算它。
    """
    library = _library()
    assert library is not None
    codes, rows = codes.contiguous(), rows.contiguous()
    losses = torch.empty(len(codes), dtype=torch.float64)
    pointers = panels.data_ptr(), losses.data_ptr()
    if library.semid_pack_int16(codes.data_ptr(), rows.data_ptr(), *codes.shape, _ISAS.index(path), *pointers):
        raise MemoryError("packing the codebook ran out of memory; use a smaller width")
    return losses


def search(x: torch.Tensor, book: PreparedCodebook, out: torch.Tensor, threads: int) -> None:
    """`x` (B, H) 的最近码字写进 `out` (B,)。"""
    library = _library()
    assert library is not None
    (step, hop), isa, native = x.stride(), _ISAS.index(book.path), _native_book(book)

    def part(start: int, rows: int) -> int:
        source, target = x.data_ptr() + 4 * step * start, out.data_ptr() + 8 * start
        return library.semid_nearest(ctypes.byref(native), isa, source, step, hop, rows, target)

    _in_threads(part, x.shape[0], isa, threads, book.size * book.width)


def beam_search(
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    books: Sequence[PreparedCodebook],
    tables: Sequence[torch.Tensor | None],
    gain: torch.Tensor,
    bound: Sequence[float],
    codes: torch.Tensor,
    errors: torch.Tensor,
    threads: int,
) -> None:
    """`z` (B, H) 连续的路径与误差写进 `codes` (B, M, L) 与 `errors` (B, M)；空位不写。"""
    library = _library()
    assert library is not None
    size, levels, isa = codes.shape[1], len(books), _ISAS.index(books[0].path)
    natives = [_native_book(book) for book in books]
    weights = [weight.contiguous() for weight in weights]
    array, first = (_BeamLevel * levels)(), 0
    for level, (book, weight, table) in enumerate(zip(books, weights, tables, strict=True)):
        pointers = (weight.data_ptr(), None if table is None else table.data_ptr(), book.twin.data_ptr())
        array[level] = _BeamLevel(ctypes.pointer(natives[level]), *pointers, first)
        first += book.size
    native = _Beam(array, gain.data_ptr(), levels, size, z.shape[1], *bound)

    def part(start: int, rows: int) -> int:
        source = z.data_ptr() + 4 * z.shape[1] * start
        path, error = codes.data_ptr() + 8 * size * levels * start, errors.data_ptr() + 8 * size * start
        return library.semid_beam(ctypes.byref(native), isa, source, rows, path, error)

    _in_threads(part, z.shape[0], isa, threads, first * z.shape[1], _CHUNK)


def _native_book(book: PreparedCodebook) -> _Book:
    """整理好的码本 → 内核认识的结构；指针指向 book 的张量，用完之前 book 不能释放。"""
    tiles = None if book.halves is None else book.halves.data_ptr()
    rest = (t.data_ptr() for t in (book.bias, book.norm, book.panel_norm))
    sizes = book.size, book.width, book.panel_norm.shape[0]
    return _Book(book.table.data_ptr(), tiles, *rest, *sizes, book.top_norm, *book.bound, book.top_loss)


def _in_threads(
    part: Callable[[int, int], int], count: int, isa: int, threads: int, work_per_row: int, fine: int = _FINE
) -> None:
    """`count` 行分段交给几个线程：`part(start, rows)` 做一段，返回非 0 表示内存不足；一段约不少于 `fine` 行。"""
    unit = _TILE_ROWS[isa]
    if count * work_per_row < _WORTH_THREADS[isa]:
        threads = 1
    each = 1 if threads == 1 else min(4, max(1, count // (threads * fine)))  # 多分几段：谁先做完谁多领，少等最后一段
    pieces = max(each, -(-max(count, 1) // (_CHUNK * threads))) * threads  # 段长相近
    chunk = -(-count // (pieces * unit)) * unit
    starts, failed = itertools.count(0, chunk or 1), []

    def work() -> None:
        for start in starts:
            if start >= count:
                return
            if part(start, min(chunk, count - start)):
                failed.append(start)

    helpers = [threading.Thread(target=work) for _ in range(min(threads, -(-count // (chunk or 1))) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if failed:
        raise MemoryError("nearest-codeword search ran out of memory; use fewer threads")
