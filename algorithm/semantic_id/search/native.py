"""编译内核的调用（ctypes，调用期间不持有 GIL）：最近码字与束搜索；加载与打包在 `isa.py`。

线程在这里开：每个线程各领一段行，段内单线程算到底。不用 OpenMP：它的忙等在繁忙的机器上能让两个线程比一个慢几倍。
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from typing import Callable, Sequence

import torch

from .isa import Isa, library
from .prepared import PreparedCodebook

__all__ = ["beam_search", "search"]

_CHUNK = 4032  # 一个线程一次最多领的行数，是它们的公倍数；束搜索靠它让几千行轮流用一片内积表
_FINE = 252  # 几个线程分活时一段不少于这么多行：再短，每段都要把码本从头读一遍


class _Book(ctypes.Structure):
    """与 kernel/book.h 的 struct Book 逐字段对应。"""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("table", "tiles", "bias", "norm", "panel_norm")),
        *((name, ctypes.c_int64) for name in ("size", "width", "num_panels")),
        *((name, ctypes.c_double) for name in ("top_norm", "limit", "slope", "curve", "eta", "tau", "loss")),
    ]


class _BeamLevel(ctypes.Structure):
    """与 kernel/book.h 的 struct BeamLevel 逐字段对应。"""

    _fields_ = [
        ("book", ctypes.POINTER(_Book)),
        *((name, ctypes.c_void_p) for name in ("weight", "table", "twin")),
        ("first", ctypes.c_int64),
    ]


class _Beam(ctypes.Structure):
    """与 kernel/book.h 的 struct Beam 逐字段对应。"""

    _fields_ = [
        ("levels", ctypes.POINTER(_BeamLevel)),
        ("gain", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_levels", "size", "width")),
        *((name, ctypes.c_double) for name in ("limit", "slope", "curve", "eta", "tau", "drift", "grain")),
    ]


def search(x: torch.Tensor, book: PreparedCodebook, out: torch.Tensor, threads: int) -> None:
    """`x` (B, H) 的最近码字写进 `out` (B,)。"""
    kernel = library()
    assert kernel is not None
    assert book.isa is not None
    (step, hop), isa, native = x.stride(), book.isa, _native_book(book)

    def part(start: int, rows: int) -> int:
        source, target = x.data_ptr() + 4 * step * start, out.data_ptr() + 8 * start
        return kernel.semid_nearest(ctypes.byref(native), isa.id, source, step, hop, rows, target)

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
    kernel = library()
    assert kernel is not None
    assert books[0].isa is not None
    size, levels, isa = codes.shape[1], len(books), books[0].isa
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
        return kernel.semid_beam(ctypes.byref(native), isa.id, source, rows, path, error)

    _in_threads(part, z.shape[0], isa, threads, first * z.shape[1], _CHUNK)


def _native_book(book: PreparedCodebook) -> _Book:
    """整理好的码本 → 内核认识的结构；指针指向 book 的张量，用完之前 book 不能释放。"""
    tiles = None if book.halves is None else book.halves.data_ptr()
    rest = (t.data_ptr() for t in (book.bias, book.norm, book.panel_norm))
    sizes = book.size, book.width, book.panel_norm.shape[0]
    return _Book(book.table.data_ptr(), tiles, *rest, *sizes, book.top_norm, *book.bound, book.top_loss)


def _in_threads(
    part: Callable[[int, int], int], count: int, isa: Isa, threads: int, work_per_row: int, fine: int = _FINE
) -> None:
    """`count` 行分段交给几个线程：`part(start, rows)` 做一段，返回非 0 表示内存不足；一段约不少于 `fine` 行。"""
    unit = isa.tile_rows
    if count * work_per_row < isa.worth_threads:
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
