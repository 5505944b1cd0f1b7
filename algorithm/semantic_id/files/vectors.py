"""特征来源：张量、数组、`.npy`、Parquet 进来，(B, D) 的块出去，内存只随块长走，不随 N 走。

形状字母：N 为物品数，D 为特征维度，B 为一块的行数（最后一块可以更短）。

为什么重新分块：下游（k-means、训练、编码）的结果不该取决于文件怎么切、行组多大，
所以这里保证每块恰好 `block_rows` 行。坏数据也在这里拦下，并报出真正的行号与物品编号。
本文件只读；块是新内存，调用者可以随意改写，不会碰到用户的数组。读文件的细节在
`vectors_npy.py` 与 `vectors_parquet.py`。
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Sequence, Tuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Block", "VectorSource", "check_unique_ids", "open_vectors", "pick_rows"]

DEFAULT_BLOCK_ROWS = 65536

# 与 checks.MAX_ABS_FEATURE 同值（测试看着它们相等）；不从那里 import，因为 checks 会拉起 torch
MAX_ABS_FEATURE = 1e15


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


class _ArraySource(VectorSource):
    """内存里的数组、memmap 或 torch 张量。"""

    def __init__(self, array: Any, name: str) -> None:
        check_shape(array.shape, name)
        self._array, self._name = array, name
        self.num_rows, self.dim = (int(n) for n in array.shape)
        self.description = f"{name} ({self.num_rows} x {self.dim})"

    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        stop = self.num_rows if stop is None else stop
        for at in range(start, stop, check_block_rows(block_rows)):
            part = self._array[at : min(at + block_rows, stop)]
            if not isinstance(part, np.ndarray):
                part = part.detach().to("cpu")
                # NumPy 没有 bfloat16；float64 则留着原精度，免得溢出成 inf 后报错看不到原值
                part = (part if str(part.dtype) == "torch.float64" else part.float()).numpy()
            yield finish_block(at, row_numbers(at, at + len(part)), np.array(part), self._name)


def open_vectors(
    features: Any,
    *,
    id_column: str = "item_id",
    vector_column: str = "embedding",
    expected_dim: int | None = None,
) -> VectorSource:
    """把各种输入变成同一种来源，并在门口验收形状与类型（数值在读到时逐块验收）。

    Args:
        features: torch 张量、NumPy 数组或 memmap、`.npy` 路径、Parquet 文件或装有 Parquet 文件的目录
            （按文件名排序）；已经是 `VectorSource` 的原样返回。
        id_column: Parquet 里物品编号的列名。
        vector_column: Parquet 里特征向量的列名。
        expected_dim: 模型要求的维度；None 表示由数据决定。

    Returns:
        可反复从头读的来源。

    Raises:
        TypeError: 不支持的输入种类，或 dtype 不是实浮点。
        ValueError: 秩、宽度、行数不对，缺列，文件损坏，扩展名未知。
        FileNotFoundError: 路径不存在。
    """
    source = _open(features, id_column, vector_column)
    if expected_dim is not None and source.dim != expected_dim:
        raise ValueError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={expected_dim}; use features of that width or train a new model"
        )
    return source


def check_unique_ids(source: VectorSource) -> None:
    """确认没有两行用同一个物品编号；精确，额外内存只与编号本身相当。

    Raises:
        ValueError: 指出一个重复的编号与它的前两个行号。
    """
    if not source.has_ids:
        return
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.chunked_array(list(source.id_blocks()))
    if pa.types.is_integer(ids.type):
        # 整数排序比哈希表省内存，而且快
        ordered = np.sort(ids.to_numpy())
        if not bool((ordered[1:] == ordered[:-1]).any()):
            return
    elif pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)  # 按首次出现的顺序，所以报出的编号是确定的
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
    first = pc.index(ids, twice).as_py()
    second = first + 1 + pc.index(ids.slice(first + 1), twice).as_py()
    raise ValueError(
        f"item_id {twice.as_py()!r} appears more than once: rows {first} and {second}; "
        "item ids must be unique: drop or rename one of them"
    )


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
        raise ValueError(
            f"{name} row {start + row}{who} has {value} at column {column}; {bound}: clean or drop that row"
        )
    return Block(start, ids, np.ascontiguousarray(vectors, dtype=np.float32))


def stamp_files(paths: Sequence[Path]) -> str:
    """`VectorSource.stamp`：不含目录，搬过地方的同一份文件仍认得。"""
    stats = [(path.name, path.stat()) for path in paths]
    return ";".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def check_block_rows(block_rows: Any) -> int:
    """块长必须是正整数。

    Raises:
        TypeError: 不是整数。
        ValueError: 小于 1。
    """
    if isinstance(block_rows, bool) or not hasattr(block_rows, "__index__"):
        raise TypeError(f"block_rows must be an int, got {type(block_rows).__name__} ({block_rows!r})")
    if int(block_rows) < 1:
        raise ValueError(f"block_rows={int(block_rows)} is out of range; use an int >= 1")
    return int(block_rows)


def _open(features: Any, id_column: str, vector_column: str) -> VectorSource:
    """按输入的种类分派。"""
    if isinstance(features, VectorSource):
        return features
    if isinstance(features, (str, os.PathLike)):
        return _open_path(Path(features), id_column, vector_column)
    if isinstance(features, np.ndarray):
        if isinstance(features, np.ma.MaskedArray):
            raise TypeError(
                "features is a masked array, whose masked values have no meaning here; fill it with .filled()"
            )
        check_numpy_dtype(features.dtype, "features")
        return _ArraySource(features, "features")
    # 若输入真是张量，torch 必已被调用者 import；不在这里 import，纯 NumPy 的用法就不必付这几秒
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(features, torch.Tensor):
        if not features.dtype.is_floating_point:
            raise TypeError(f"features must have a real floating dtype, got {features.dtype}; convert with .float()")
        if features.layout != torch.strided:
            raise TypeError(f"features must be a dense tensor, got layout {features.layout}; convert with .to_dense()")
        return _ArraySource(features, "features")
    raise TypeError(
        f"features must be a tensor, a NumPy array, a .npy path or a Parquet path, got {type(features).__name__}; "
        "use numpy.asarray(..., dtype='float32')"
    )


def _open_path(path: Path, id_column: str, vector_column: str) -> VectorSource:
    """按扩展名分派；目录当作一组 Parquet 文件。"""
    if not path.exists():
        raise FileNotFoundError(
            f"features path {str(path)!r} does not exist; give a .npy file, a .parquet file or a folder"
        )
    if path.is_dir() or path.suffix == ".parquet":
        from .vectors_parquet import ParquetSource

        return ParquetSource(path, id_column, vector_column)
    if path.suffix == ".npy":
        from .vectors_npy import NpySource

        return NpySource(path)
    raise ValueError(
        f"features file {str(path)!r} has unknown extension {path.suffix!r}; "
        "use .npy, .parquet or a folder of .parquet files"
    )


def check_shape(shape: Sequence[int], name: str) -> None:
    """(N, D)，N 与 D 都至少为 1。"""
    if len(shape) != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(shape)}; one vector is x[None]")
    if shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"{name} is empty: shape {tuple(shape)}; at least one row and one column are needed")


def check_numpy_dtype(dtype: np.dtype, name: str) -> None:
    """只收实浮点：整数向量多半是拿错了列，object 则要靠 pickle。"""
    if dtype.kind != "f":
        raise TypeError(f"{name} must have a real floating dtype, got {dtype}; convert with .astype('float32')")


def row_numbers(start: int, stop: int) -> pa.Array:
    """没有编号列时，行号就是编号。"""
    import pyarrow as pa

    return pa.array(np.arange(start, stop, dtype=np.int64))


def one_line(error: BaseException) -> str:
    """别的库的错误可能有好几行；命令行承诺一行。"""
    return " ".join(str(error).split())[:200] or type(error).__name__
