"""把编码（物品表、Parquet 或 `.npy`）解码成一个 float32 `.npy`，行序不变。

形状字母：N 为行数，B 为一块的行数，L 为层数，D 为特征维度。
只认 `SemanticIDModel` 协议。内存只随块长（物品表则是一个分片）走；输出先写临时文件，写完才改名。
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algorithm.interfaces import SemanticIDModel

from ..errors import InputError, InputTypeError
from ..files.durable import FileTarget, one_writer
from ..files.progress import OnProgress
from ..files.source import check_block_rows, one_line
from ..files.vectors_npy import NpyFile
from .format.manifest import CatalogError, level_columns
from .format.parts import check_range, codes_of
from .table import Catalog

__all__ = ["decode_codes_file"]


def decode_codes_file(
    model: SemanticIDModel,
    codes: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    block_rows: int = 16384,
    progress: OnProgress | None = None,
) -> Dict[str, Any]:
    """解码一个编码文件。

    Args:
        model: 满足协议的模型。
        codes: 物品表目录、带 l1…lL 列的 Parquet 文件，或 (N, L) 整数 `.npy`。
        output: 输出的 `.npy` 路径。
        overwrite: 允许替换已有的输出文件。
        block_rows: 一次解码多少行；只影响内存与速度。
        progress: 每完成一块调用一次 `progress(done_rows, total_rows)`。

    Returns:
        摘要：output, num_items, embedding_dim, fingerprint。

    Raises:
        FileExistsError: 输出已存在而没有 overwrite。
        FileNotFoundError: 编码文件不存在。
        CatalogError: 物品表属于另一个模型，或编码越界。
        ValueError: 文件损坏、缺列、层数不符、扩展名未知。
        TypeError: 编码不是整数。
    """
    path = Path(os.path.realpath(output))  # 若是符号链接，写的是它指向的文件
    if path.suffix != ".npy":
        raise InputError(f"output {str(output)!r} must end in .npy")
    target = FileTarget(path, overwrite)
    check_block_rows(block_rows)
    total, blocks = _open_codes(Path(codes), model, block_rows)

    def vectors() -> Iterator[np.ndarray]:
        done = 0
        for block in blocks:
            for start in range(0, len(block), block_rows):
                part = _decode_block(model, block[start : start + block_rows], done)
                done += len(part)
                yield part
                if progress is not None:
                    progress(done, total)

    _write_npy(target, (total, model.embedding_dim), vectors())
    return {
        "output": os.fspath(output),
        "num_items": total,
        "embedding_dim": model.embedding_dim,
        "fingerprint": model.fingerprint(),
    }


def _write_npy(target: FileTarget, shape: Tuple[int, int], parts: Iterator[np.ndarray]) -> None:
    """逐块写 float32 `.npy`：行数事先知道，所以文件头先写，写完才换上。"""
    with one_writer(target.path), target.writing() as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        rows = 0
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4").data)
            rows += len(part)
        if rows != shape[0]:
            raise CatalogError(
                f"codes promised {shape[0]} rows, but {rows} were read; do not write to them during a run"
            )


def _decode_block(model: SemanticIDModel, codes: np.ndarray, row_offset: int) -> np.ndarray:
    """(B, L) 编码 → (B, D)；先验收取值，报错的行号才是文件里的行号。"""
    import torch

    check_range(codes, model.codebook_sizes, "codes", row_offset)
    tensor = torch.from_numpy(codes.astype(np.int64)).to(model.feature_mean.device)  # (B, L)
    return model.decode_codes(tensor).cpu().numpy()  # (B, D)


def _open_codes(path: Path, model: SemanticIDModel, block_rows: int) -> Tuple[int, Iterator[np.ndarray]]:
    """按种类打开，返回 (行数, 逐块的 (B, L) 整数)。"""
    levels = len(model.codebook_sizes)
    if not path.exists():
        raise FileNotFoundError(f"codes path {str(path)!r} does not exist; give a catalog folder, .parquet or .npy")
    if path.is_dir():
        catalog = Catalog.open(path)
        if catalog.fingerprint != model.fingerprint():
            raise CatalogError(
                f"catalog {str(path)!r} was written by another model (fingerprint {catalog.fingerprint[:12]}…, "
                f"this one is {model.fingerprint()[:12]}…); use the model that wrote it"
            )
        return catalog.num_items, (codes_of(table) for table in catalog.tables())
    if path.suffix == ".npy":
        file = NpyFile(path)
        if file.dtype.kind not in "iu":
            raise InputTypeError(f"{path.name} must have an integer dtype, got {file.dtype}; give codes, not vectors")
        if file.shape[1] != levels:
            raise InputError(f"{path.name} has {file.shape[1]} columns, but the model has {levels} levels")
        return file.shape[0], (block for _, block in file.blocks(block_rows))
    if path.suffix == ".parquet":
        return _open_parquet(path, level_columns(levels), block_rows)
    raise InputError(
        f"codes file {str(path)!r} has unknown extension {path.suffix!r}; use a catalog folder, .parquet or .npy"
    )


def _open_parquet(path: Path, columns: list[str], block_rows: int) -> Tuple[int, Iterator[np.ndarray]]:
    """别处来的 Parquet：列齐、都是整数、没有空值。"""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {one_line(error)}; write or copy it again") from None
    names = file.schema_arrow.names
    missing = [name for name in columns if name not in names]
    extra = f"l{len(columns) + 1}"
    if missing or extra in names:
        what = f"no column {missing[0]!r}" if missing else f"an extra column {extra!r}"
        raise InputError(
            f"{path.name} has {what}; the model has {len(columns)} levels and needs {', '.join(columns)}; "
            f"columns present: {', '.join(names)}"
        )
    for name in columns:
        kind = file.schema_arrow.field(name).type
        if not pa.types.is_integer(kind):
            raise InputTypeError(f"{path.name} column {name!r} has type {kind}; codes must be integers")
    if file.metadata.num_rows == 0:
        raise InputError(f"{path.name} is empty: 0 rows; at least one is needed")
    return file.metadata.num_rows, _parquet_blocks(file, path, columns, block_rows)


def _parquet_blocks(file: pq.ParquetFile, path: Path, columns: list[str], block_rows: int) -> Iterator[np.ndarray]:
    """逐批读出 (B, L) int64；坏页与空值变成一行清楚的错误。"""
    row = 0
    batches = file.iter_batches(block_rows, columns=columns, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged near row {row}: {one_line(error)}; copy it again") from None
        if batch is None:
            return
        for name in columns:
            nulls = batch.column(name).is_null().to_numpy(zero_copy_only=False)
            if nulls.any():
                raise InputError(
                    f"{path.name} column {name!r} is null at row {row + int(nulls.argmax())}; fill or drop it"
                )
        # uint64 里超过 2**63 的值会变负，随后被取值检查拦下
        yield np.stack([batch.column(name).to_numpy().astype(np.int64) for name in columns], axis=1)
        row += batch.num_rows
