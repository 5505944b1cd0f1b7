"""`.npy` 特征来源。

形状字母：N 为物品数，D 为特征维度。只由 `vectors.open_vectors` 构造；只读；从不使用 pickle。
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Tuple

import numpy as np

from .vectors import (
    DEFAULT_BLOCK_ROWS,
    Block,
    VectorSource,
    check_block_rows,
    check_numpy_dtype,
    check_shape,
    finish_block,
    one_line,
    row_numbers,
)

__all__ = ["NpySource"]


class NpySource(VectorSource):
    """`.npy` 文件，逐块 `fromfile`。

    不用 memmap：映射过的页会算进进程的常驻内存，读完一遍就等于「占了 N 行」；逐块读只占一块。
    """

    def __init__(self, path: Path) -> None:
        self._path, self._name = path, path.name
        shape, self._fortran, self._dtype, self._offset = _read_npy_header(path)
        check_shape(shape, self._name)
        check_numpy_dtype(self._dtype, self._name)
        self.num_rows, self.dim = shape
        need = self._offset + self.num_rows * self.dim * self._dtype.itemsize
        size = path.stat().st_size
        if size < need:
            raise ValueError(
                f"{path} is cut short: {size} bytes, but its header promises {need}; write or copy it again"
            )
        self.description = f"{self._name} ({self.num_rows} x {self.dim} {self._dtype.name})"

    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS) -> Iterator[Block]:
        """从头顺序读，约定见基类。"""
        check_block_rows(block_rows)
        if self._fortran:
            # 列优先的文件里一块行散落各处，只能映射；少见，且页缓存可被系统收回
            shape = (self.num_rows, self.dim)
            mapped = np.memmap(self._path, self._dtype, "r", self._offset, shape, order="F")
            for start in range(0, self.num_rows, block_rows):
                part = np.array(mapped[start : start + block_rows], order="C")
                yield finish_block(start, row_numbers(start, start + len(part)), part, self._name)
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            for start in range(0, self.num_rows, block_rows):
                rows = min(block_rows, self.num_rows - start)
                flat = np.fromfile(file, self._dtype, rows * self.dim)
                if flat.size != rows * self.dim:
                    raise ValueError(f"{self._path} became shorter while being read; do not write to it during a run")
                part = flat.reshape(rows, self.dim)
                yield finish_block(start, row_numbers(start, start + rows), part, self._name)


def _read_npy_header(path: Path) -> Tuple[Tuple[int, ...], bool, np.dtype, int]:
    """读 `.npy` 头（v1、v2），返回 (形状, 是否列优先, dtype, 数据起点)；头是字面量，解析它不会执行代码。"""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"format version {version} is not supported")
        except Exception as error:  # 头里的坏字节可以触发任何解析错误，对用户都是同一件事
            raise ValueError(
                f"{path} is not a readable .npy file: {one_line(error)}; write it again with numpy.save"
            ) from None
        return shape, fortran, dtype, file.tell()
