"""特征来源的基类与各种读者共用的门：块的约定、坏行怎样点名。

形状字母：N 为物品数，D 为特征维度，B 为一块的行数（最后一块可以更短）。只读；块是新内存，调用者可以随意改写。
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Sequence, Tuple

import numpy as np

from ..errors import InputError, InputTypeError
from ..limits import MAX_ABS_FEATURE, check_int

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "DEFAULT_BLOCK_ROWS",
    "Block",
    "VectorSource",
    "check_block_rows",
    "check_numpy_dtype",
    "check_shape",
    "finish_block",
    "one_line",
    "pick_rows",
    "row_numbers",
    "stamp_files",
]

DEFAULT_BLOCK_ROWS = 65536


class Block(NamedTuple):
    """一块连续的行。

    Attributes:
        start: 第一行在整个来源里的行号。
        ids: (B,) 物品编号，pyarrow 数组，类型与输入相同；没有编号列时是 int64 行号。
        vectors: (B, D) float32，C 连续，全部有限且绝对值 ≤ 1e15。
    """

    start: int
    ids: pa.Array
    vectors: np.ndarray


class VectorSource(ABC):
    """可以反复从头读的特征来源。

    Attributes:
        num_rows: 行数 N ≥ 1。
        dim: 特征维度 D ≥ 1。
        description: 一句英文描述，写进运行记录；只含文件名，不含目录，免得产物随机器而变。
        has_ids: 是否自带物品编号；否则编号就是行号。
        stamp: 文件名、字节数与修改时刻；续跑时据此发现文件换过。内存里的数组没有，为空串。
    """

    num_rows: int
    dim: int
    description: str
    has_ids: bool = False
    stamp: str = ""

    @abstractmethod
    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """顺序读 [start, stop) 行（默认全部）；除最后一块外每块恰好 `block_rows` 行，行号始终是整个来源里的。

        Raises:
            ValueError: 读到坏行（NaN、Inf、过大、空、长短不一），或文件已损坏。
        """

    def id_blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS) -> Iterator[pa.Array]:
        """只读编号（没有编号列时给出行号）；各段长短不定，至多 `block_rows`。"""
        for start in range(0, self.num_rows, check_block_rows(block_rows)):
            yield row_numbers(start, min(start + block_rows, self.num_rows))


def pick_rows(
    source: VectorSource,
    rows: np.ndarray,
    block_rows: int = DEFAULT_BLOCK_ROWS,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """从流里挑出几行：来源只会顺序读，所以读过 [start, stop) 的每一块，只交出有挑中的。

    Args:
        source: 特征来源。
        rows: (n,) 递增的行号，都在 [start, stop) 里。
        block_rows: 一次读多少行；只影响内存与速度。
        start: 从哪一行读起。
        stop: 读到哪一行之前；None 为到底。

    Yields:
        (这一块里挑中的行号 (b,)，它们的向量 (b, D) float32)，b ≥ 1；首尾相接就是 `rows`。
    """
    for block in source.blocks(block_rows, start, stop):
        low, high = np.searchsorted(rows, [block.start, block.start + len(block.vectors)])
        if low < high:
            yield rows[low:high], block.vectors[rows[low:high] - block.start]


def finish_block(start: int, ids: pa.Array, vectors: np.ndarray, name: str, named: bool = False) -> Block:
    """验收一块的数值并转成 float32。

    Args:
        start: 第一行的行号。
        ids: (B,) 物品编号。
        vectors: (B, D) 实浮点，原来的精度：报错时要给出原值，而不是溢出后的 inf。
        name: 错误信息里的来源名。
        named: 编号是否真是物品编号（行号就不必再报一遍）。

    Raises:
        ValueError: 含 NaN、Inf 或过大的值，指出第一个坏行。
    """
    # max/min 会传播 NaN，两次归约、不开新数组就能判定整块。
    # 先转成 Python float 再比：float16 会把 1e15 这个界限自己变成 inf，于是 inf ≤ inf 放行
    if not (float(vectors.max()) <= MAX_ABS_FEATURE and float(vectors.min()) >= -MAX_ABS_FEATURE):
        bad = ~(np.abs(vectors.astype(np.float64)) <= MAX_ABS_FEATURE)
        row = int(bad.any(axis=1).argmax())
        column = int(bad[row].argmax())
        value = float(vectors[row, column])
        who = f" (item_id {ids[row].as_py()!r})" if named else ""
        bound = f"absolute values must be <= {MAX_ABS_FEATURE:g}" if np.isfinite(value) else "values must be finite"
        raise InputError(
            f"{name} row {start + row}{who} has {value} at column {column}; {bound}: clean or drop that row"
        )
    return Block(start, ids, np.ascontiguousarray(vectors, dtype=np.float32))


def stamp_files(paths: Sequence[Path], names: Sequence[str] | None = None) -> str:
    """`VectorSource.stamp`：不含所在的目录，搬过地方的同一份文件仍认得；`names` 是各自的称呼，默认文件名。"""
    stats = [(name, path.stat()) for name, path in zip(names or [path.name for path in paths], paths, strict=True)]
    return ";".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def check_block_rows(block_rows: Any) -> int:
    """块长必须是正整数。"""
    return check_int("block_rows", block_rows, 1)


def check_shape(shape: Sequence[int], name: str) -> None:
    """(N, D)，N 与 D 都至少为 1。"""
    if len(shape) != 2:
        raise InputError(f"{name} must have shape (N, D), got {tuple(shape)}; one vector is x[None]")
    if shape[0] < 1 or shape[1] < 1:
        raise InputError(f"{name} is empty: shape {tuple(shape)}; at least one row and one column are needed")


def check_numpy_dtype(dtype: np.dtype, name: str) -> None:
    """只收实浮点：整数向量多半是拿错了列，object 则要靠 pickle。"""
    if dtype.kind != "f":
        raise InputTypeError(f"{name} must have a real floating dtype, got {dtype}; convert with .astype('float32')")


def row_numbers(start: int, stop: int) -> pa.Array:
    """没有编号列时，行号就是编号。"""
    import pyarrow as pa

    return pa.array(np.arange(start, stop, dtype=np.int64))


def one_line(error: BaseException) -> str:
    """别的库的错误可能有好几行；命令行承诺一行。"""
    return " ".join(str(error).split())[:200] or type(error).__name__
