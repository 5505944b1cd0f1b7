"""别人的编码：整数 `.npy` 或 Parquet；层与行都要对得上，对不上就报错，绝不猜。

形状字母：N 物品数，L 层数。只读；格式写在 `docs/guides/evaluate.md`。
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import InputError, InputTypeError
from ..files.parquet_bytes import read_table
from ..files.source import VectorSource
from ..files.vectors_npy import NpyFile
from .inputs import lookup_ids, same_rows, source_ids

__all__ = ["GivenCodes", "read_codes"]

# 像是一层编号的列名：l1、L2、l_3；认出来才好说它为什么不行
_LEVEL = re.compile(r"[lL]_?\d+")


class GivenCodes(NamedTuple):
    """别人的编码，与特征逐行对齐。

    Attributes:
        codes: (N, L) int32。
        matched_by: id（按物品编号对齐）或 row（文件里没有编号，按行序，次序由给的人保证）。
    """

    codes: np.ndarray
    matched_by: str


def read_codes(path: Path, source: VectorSource, id_column: str) -> GivenCodes:
    """别人的编码：整数 `.npy` (N, L)，或含 l1…lL 的 Parquet。

    Args:
        path: 文件。
        source: 特征；行数须相同。Parquet 里有编号列就按编号对齐；除了各层编号什么也没有的，才按行序。
        id_column: 编号列的名字。

    Raises:
        FileNotFoundError: 文件不存在。
        TypeError: 不是整数。
        ValueError: 行数不同、层不是从 l1 连着数的、有空值或负数、编号对不上，或编号列叫别的名字。
    """
    if not path.exists():
        raise FileNotFoundError(f"codes path {str(path)!r} does not exist; give an integer .npy or a .parquet file")
    if path.suffix == ".npy":
        file = NpyFile(path)
        if file.dtype.kind not in "iu":
            raise InputTypeError(f"{path.name} must have an integer dtype, got {file.dtype}; give codes, not vectors")
        codes = np.concatenate([block for _, block in file.blocks(1 << 16)])
        same_rows(len(codes), source, path)
        matched_by = "row"
    elif path.suffix == ".parquet":
        table = read_table(path)
        codes = _code_columns(table, path)
        same_rows(len(codes), source, path)
        matched_by = _matched_by(table, path, id_column)
        if matched_by == "id":
            codes = codes[_places(table, path, source, id_column)]
    else:
        raise InputError(f"codes file {str(path)!r} has unknown extension {path.suffix!r}; use .npy or .parquet")
    if codes.min() < 0 or codes.max() >= 2**31:
        row = int(((codes < 0) | (codes >= 2**31)).any(axis=1).argmax())
        raise InputError(f"{path.name} row {row} has codes {codes[row].tolist()}; codes must be in [0, 2**31)")
    return GivenCodes(codes.astype(np.int32), matched_by)


def _matched_by(table: pa.Table, path: Path, id_column: str) -> str:
    """按编号还是按行序对齐；没有编号列、却有别的列的，多半是编号叫别的名字，不猜。"""
    if id_column in table.column_names:
        return "id"
    others = [name for name in table.column_names if not _LEVEL.fullmatch(name) and name != "suffix"]
    if others:
        raise InputError(
            f"{path.name} has no column {id_column!r} to match its rows by, but has {', '.join(others)}; rename the id "
            f"column or choose one with --id-column, or drop these columns if the rows are in the order of the features"
        )
    return "row"


def _places(table: pa.Table, path: Path, source: VectorSource, id_column: str) -> np.ndarray:
    """特征的每一行在文件的哪一行；须一一对应。"""
    places = lookup_ids(table.column(id_column), source_ids(source))
    if (places < 0).any() or len(np.unique(places)) != len(places):
        row = int((places < 0).argmax())
        hint = "" if source.has_ids else "; the features have no item ids, so theirs are row numbers"
        raise InputError(
            f"{path.name} and {source.description} do not hold the same items: "
            f"{int((places < 0).sum())} items have no codes, the first in row {row}{hint}"
        )
    return places


def _code_columns(table: pa.Table, path: Path) -> np.ndarray:
    """l1…lL 列，从 1 连着数，一层不多、一层不少。"""
    found = [name for name in table.column_names if _LEVEL.fullmatch(name)]
    names = [f"l{level}" for level in range(1, len(found) + 1)]
    present = ", ".join(table.column_names)
    if not names:
        raise InputError(f"{path.name} has no column 'l1'; columns present: {present}")
    if sorted(found) != sorted(names):
        hint = f"rename {', '.join(found)} to {', '.join(names)}" if "l0" in found else f"give {', '.join(names)}"
        raise InputError(
            f"{path.name} has the level columns {', '.join(found)}; levels are counted from 1 without a gap: {hint}"
        )
    for name in names:
        column = table.column(name)
        if not pa.types.is_integer(column.type):
            raise InputTypeError(f"{path.name} column {name!r} has type {column.type}; codes must be integers")
        if column.null_count:
            raise InputError(f"{path.name} column {name!r} has {column.null_count} nulls; every item needs a code")
    return np.stack([table.column(name).to_numpy().astype(np.int64) for name in names], axis=1)
