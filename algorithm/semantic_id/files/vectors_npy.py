"""`.npy` 文件：逐块读，从不使用 pickle。

形状字母：N 为行数，D 为宽度，B 为一块的行数。`NpyFile` 也供编码文件（(N, L) 整数）使用；只读。
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Tuple

import numpy as np

from ..errors import InputError, InputTypeError
from .source import (
    DEFAULT_BLOCK_ROWS,
    Block,
    VectorSource,
    check_block_rows,
    check_numpy_dtype,
    check_shape,
    finish_block,
    one_line,
    row_numbers,
    stamp_files,
)

__all__ = ["NpyFile", "NpySource"]


class NpyFile:
    """一个二维 `.npy`；构造时验收文件头与长度，`blocks` 逐块 `fromfile`。

    不用 memmap：映射过的页会算进进程的常驻内存，读完一遍就等于「占了 N 行」；逐块读只占一块。

    Attributes:
        shape: 文件头里的形状，(N, D)，都 ≥ 1。
        dtype: 元素类型，不含 object。

    Raises:
        ValueError: 不是 `.npy`、版本不支持、不是二维、为空，或比文件头说的短。
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shape, self._fortran, self.dtype, self._offset = _read_header(path)
        check_shape(self.shape, path.name)
        if self.dtype.hasobject:
            raise InputTypeError(f"{path.name} has dtype {self.dtype}, which needs pickle; save plain numbers instead")
        need = self._offset + self.shape[0] * self.shape[1] * self.dtype.itemsize
        size = path.stat().st_size
        if size < need:
            raise InputError(
                f"{path} is cut short: {size} bytes, but its header promises {need}; write or copy it again"
            )

    def blocks(self, block_rows: int, start: int = 0, stop: int | None = None) -> Iterator[Tuple[int, np.ndarray]]:
        """顺序给出 [start, stop) 行的 (首行号, (B, D) 原 dtype 数组)；数组是新内存。"""
        check_block_rows(block_rows)
        num_rows, width = self.shape
        stop = num_rows if stop is None else stop
        if self._fortran:
            # 列优先的文件里一块行散落各处，只能映射；少见，且页缓存可被系统收回
            mapped = np.memmap(self._path, self.dtype, "r", self._offset, self.shape, order="F")
            for at in range(start, stop, block_rows):
                yield at, np.array(mapped[at : min(at + block_rows, stop)], order="C")
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset + start * width * self.dtype.itemsize)
            for at in range(start, stop, block_rows):
                rows = min(block_rows, stop - at)
                flat = np.fromfile(file, self.dtype, rows * width)
                if flat.size != rows * width:
                    raise InputError(f"{self._path} became shorter while being read; do not write to it during a run")
                yield at, flat.reshape(rows, width)


class NpySource(VectorSource):
    """`.npy` 特征来源；由 `vectors.open_vectors` 构造。"""

    def __init__(self, path: Path) -> None:
        self._file, self._name = NpyFile(path), path.name
        check_numpy_dtype(self._file.dtype, self._name)
        self.num_rows, self.dim = self._file.shape
        self.description = f"{self._name} ({self.num_rows} x {self.dim} {self._file.dtype.name})"
        self.stamp = stamp_files([path])

    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """顺序读一段，约定见基类。"""
        for at, part in self._file.blocks(block_rows, start, stop):
            yield finish_block(at, row_numbers(at, at + len(part)), part, self._name)


def _read_header(path: Path) -> Tuple[Tuple[int, ...], bool, np.dtype, int]:
    """读 v1、v2 文件头，返回 (形状, 是否列优先, dtype, 数据起点)；头是字面量，解析它不会执行代码。"""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise InputError(f"format version {version} is not supported")
            if not all(type(size) is int for size in shape):  # True 也是 int 的一种，NumPy 放它过来
                raise InputError(f"shape {shape} must hold plain ints")
        except Exception as error:  # 头里的坏字节可以触发任何解析错误，对用户都是同一件事
            raise InputError(
                f"{path} is not a readable .npy file: {one_line(error)}; write it again with numpy.save"
            ) from None
        return shape, fortran, dtype, file.tell()
