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
from pathlib import Path
from typing import Any, Iterator

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
    row_numbers,
)
from .vectors_npy import NpySource

__all__ = ["Block", "VectorSource", "check_unique_ids", "open_vectors"]


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
            （连同子目录，按相对路径排序；读不了的文件指名拒绝）；已经是 `VectorSource` 的原样返回。
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
        raise InputError(
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
    raise InputError(
        f"item_id {twice.as_py()!r} appears more than once: rows {first} and {second}; "
        "item ids must be unique: drop or rename one of them"
    )


def _open(features: Any, id_column: str, vector_column: str) -> VectorSource:
    """按输入的种类分派。"""
    if isinstance(features, VectorSource):
        return features
    if isinstance(features, (str, os.PathLike)):
        return _open_path(Path(features), id_column, vector_column)
    if isinstance(features, np.ndarray):
        if isinstance(features, np.ma.MaskedArray):
            raise InputTypeError(
                "features is a masked array, whose masked values have no meaning here; fill it with .filled()"
            )
        check_numpy_dtype(features.dtype, "features")
        return _ArraySource(features, "features")
    # 若输入真是张量，torch 必已被调用者 import；不在这里 import，纯 NumPy 的用法就不必付这几秒
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(features, torch.Tensor):
        if not features.dtype.is_floating_point:
            raise InputTypeError(
                f"features must have a real floating dtype, got {features.dtype}; convert with .float()"
            )
        if features.layout != torch.strided:
            raise InputTypeError(
                f"features must be a dense tensor, got layout {features.layout}; convert with .to_dense()"
            )
        return _ArraySource(features, "features")
    raise InputTypeError(
        f"features must be a tensor, a NumPy array, a .npy path or a Parquet path, got {type(features).__name__}; "
        "use numpy.asarray(..., dtype='float32')"
    )


def _open_path(path: Path, id_column: str, vector_column: str) -> VectorSource:
    """按扩展名分派；目录当作一组 Parquet 文件，没有扩展名的看内容。"""
    if not path.exists():
        raise FileNotFoundError(
            f"features path {str(path)!r} does not exist; give a .npy file, a .parquet file or a folder"
        )
    if path.suffix == ".npy":
        return NpySource(path)
    from .vectors_parquet import ParquetSource, is_parquet  # pyarrow 要半秒，给数组的人不必等

    if path.is_dir() or path.suffix == ".parquet" or is_parquet(path):
        return ParquetSource(path, id_column, vector_column)
    raise InputError(
        f"features file {str(path)!r} has unknown extension {path.suffix!r}; "
        "use .npy, .parquet or a folder of .parquet files"
    )
