"""Parquet 特征来源：一个文件，或一个目录（连同子目录）里按相对路径排序的若干文件。

形状字母：N 为物品数，D 为特征维度，B 为一块的行数。只由 `vectors.open_vectors` 构造；只读。

内存：行组可能有几个 GB，因此边读边解码（`buffer_size` 打开流式读），读出的小批再拼成恰好 `block_rows` 行的块。

目录里有什么就读什么，读不了的指名道姓地拒绝，绝不悄悄漏掉几个文件。认文件看开头的四个字节，不看扩展名：Spark 的
`.snappy.parquet`、Hive 的 `000000_0` 都是 Parquet。不算数据的只有：写完的标记与汇总（`_SUCCESS`、`_metadata`……）、校验
和（`.crc`）、说明文字（README、LICENSE），以及点或下划线开头、内容又不是 Parquet 的（别的程序的临时文件）。
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterator, List, Set, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InputError, InputTypeError
from .source import DEFAULT_BLOCK_ROWS, Block, VectorSource, check_block_rows, finish_block, one_line, stamp_files

__all__ = ["ParquetSource", "is_parquet"]

# 列块按此大小流式读入；0（默认）会把整个列块一次读进内存
_STREAM_BYTES = 1 << 20
# 解码批的行数上限：与块长无关，免得大块再乘上解码的中间副本
_BATCH_ROWS = 8192

_MAGIC = b"PAR1"
# Spark、Hive、Arrow 写完之后留下的标记与汇总，里面没有行
_MARKERS = ("_SUCCESS", "_metadata", "_common_metadata", "_committed_", "_started_")
_PROSE = ("readme", "license", "notice", ".gitattributes", ".ds_store")
# 目录里有它，就是别的表格式：它的日志才知道哪些文件还有效，照单全读会读到已经删除的行
_TABLES = {"_delta_log": "Delta Lake", "metadata": "Iceberg", ".hoodie": "Hudi"}


class ParquetSource(VectorSource):
    """带物品编号的 Parquet 来源。"""

    has_ids = True

    def __init__(self, path: Path, id_column: str, vector_column: str) -> None:
        self._id_column, self._vector_column = id_column, vector_column
        self._files = _list_files(path) if path.is_dir() else [path]
        # 子目录里的文件常常同名，所以用相对路径称呼
        self._names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in self._files]
        self.num_rows, self.id_type, vector_type = self._scan_footers()
        if self.num_rows == 0:
            raise InputError(f"{path} is empty: 0 rows in {len(self._files)} file(s); at least one row is needed")
        self.dim = self._find_dim(vector_type)
        self.description = f"{path.name} ({self.num_rows} x {self.dim}, columns {id_column!r} and {vector_column!r})"
        self.stamp = stamp_files(self._files, self._names)

    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """顺序读一段，约定见基类；跳过的行组一个字节不碰。"""
        check_block_rows(block_rows)
        stop, filled = self.num_rows if stop is None else stop, 0
        pending_ids: List[pa.Array] = []
        buffer = None  # 原精度；验收要看原值，见 finish_block
        for batch, name, row in self._batches([self._id_column, self._vector_column], start=start, stop=stop):
            ids = self._check_ids(batch.column(0), name, row)
            vectors = self._to_numpy(batch.column(1), ids, name, row)  # (b, D)
            used = 0
            while used < len(ids):
                if buffer is None:
                    rows = min(block_rows, max(stop - start, 1))
                    buffer = np.empty((rows, self.dim), vectors.dtype)  # (B, D)
                take = min(len(buffer) - filled, len(ids) - used)
                buffer[filled : filled + take] = vectors[used : used + take]
                pending_ids.append(ids.slice(used, take))
                filled, used = filled + take, used + take
                if filled == len(buffer):
                    yield finish_block(start, pa.concat_arrays(pending_ids), buffer, self._vector_column, named=True)
                    start, filled, pending_ids, buffer = start + filled, 0, [], None
        if start != stop or filled:
            raise InputError(f"{self.description}: rows changed while being read; do not write to it during a run")

    def id_blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS) -> Iterator[pa.Array]:
        """只读编号列，特征列的字节一个不碰。"""
        check_block_rows(block_rows)
        for batch, name, row in self._batches([self._id_column], rows=block_rows):
            yield self._check_ids(batch.column(0), name, row)

    def _scan_footers(self) -> Tuple[int, pa.DataType, pa.DataType]:
        """只读各文件尾部：行数、列是否齐、类型是否一致。"""
        num_rows, types, first = 0, None, ""
        self._file_rows: List[int] = []
        for path, here in zip(self._files, self._names, strict=True):
            with _open(path) as file:
                schema = file.schema_arrow
                for flag, column in (("--id-column", self._id_column), ("--vector-column", self._vector_column)):
                    if schema.get_field_index(column) < 0:
                        raise InputError(
                            f"{here} has no column {column!r} (or has it twice); columns present: "
                            f"{', '.join(schema.names)}; choose one with {flag}"
                        )
                found = (schema.field(self._id_column).type, schema.field(self._vector_column).type)
                if types is not None and found != types:
                    raise InputError(
                        f"{here} has column types {_show(found)}, but {first} has {_show(types)}; make them agree"
                    )
                types, first = found, first or here
                num_rows += file.metadata.num_rows
                self._file_rows.append(file.metadata.num_rows)
        assert types is not None
        return num_rows, _plain_id_type(types[0], self._id_column), _list_type(types[1], self._vector_column)

    def _find_dim(self, vector_type: pa.DataType) -> int:
        """定长列表的宽度在类型里；变长列表以第一行为准，其余行必须与它一样长。"""
        if pa.types.is_fixed_size_list(vector_type):
            dim = vector_type.list_size
        else:
            batch, name, _ = next(self._batches([self._id_column, self._vector_column], rows=1))
            first = _storage(batch.column(1))
            if not first.is_valid()[0].as_py():
                raise InputError(_null_vector(name, 0, batch.column(0)[0].as_py(), self._vector_column))
            dim = len(first[0])
        if dim < 1:
            raise InputError(f"column {self._vector_column!r} has width 0; at least one value per vector is needed")
        return dim

    def _batches(
        self, columns: List[str], rows: int = _BATCH_ROWS, start: int = 0, stop: int | None = None
    ) -> Iterator[Tuple[Any, str, int]]:
        """逐批读出 (batch, 文件名, 首行的全局行号)；读坏了的页在这里变成一行清楚的错误。"""
        row = 0
        for path, name, file_rows in zip(self._files, self._names, self._file_rows, strict=True):
            if row + file_rows <= start:
                row += file_rows
                continue
            with _open(path) as file:
                groups = list(range(file.metadata.num_row_groups))
                while groups and row + file.metadata.row_group(groups[0]).num_rows <= start:
                    row += file.metadata.row_group(groups.pop(0)).num_rows
                batches = file.iter_batches(
                    min(rows, _BATCH_ROWS), row_groups=groups, columns=columns, use_threads=False
                )
                while True:
                    try:
                        batch = next(batches, None)
                    except (pa.ArrowException, OSError) as error:
                        raise InputError(
                            f"{path} is damaged near row {row}: {one_line(error)}; copy it again"
                        ) from None
                    if batch is None:
                        break
                    first, last = max(start - row, 0), batch.num_rows if stop is None else stop - row
                    if last <= 0:
                        return
                    kept = batch.slice(first, max(last - first, 0))
                    if kept.num_rows:
                        # 列的先后跟着文件走，这里按名字取，保证与 columns 同序
                        yield kept.select(columns), name, row + first
                    row += batch.num_rows

    def _check_ids(self, ids: Any, name: str, row: int) -> pa.Array:
        """编号不许为空；字典编码展开成值的类型，否则各批字典不同，无法拼接。"""
        if ids.null_count:
            at = row + int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(
                f"{name}: {self._id_column!r} is null at row {at}; every item needs an id: fill or drop that row"
            )
        return ids if ids.type == self.id_type else ids.cast(self.id_type)

    def _to_numpy(self, column: Any, ids: pa.Array, name: str, row: int) -> np.ndarray:
        """一批列表 → (b, D) 原精度数组；空向量、长短不一、空元素都点名。"""
        lists = _storage(column)
        if lists.null_count:
            at = int(np.argmax(lists.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(_null_vector(name, row + at, ids[at].as_py(), self._vector_column))
        if not pa.types.is_fixed_size_list(lists.type):
            lengths = pc.list_value_length(lists).to_numpy()  # (b,)
            if bool((lengths != self.dim).any()):
                at = int(np.argmax(lengths != self.dim))
                raise InputError(
                    f"{name} row {row + at} (item_id {ids[at].as_py()!r}) has a vector of length {lengths[at]}, but "
                    f"the first row has {self.dim}; all vectors of {self._vector_column!r} need the same length"
                )
        values = lists.flatten()
        if values.null_count:
            flat = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            at, where = divmod(flat, self.dim)
            raise InputError(
                f"{name} row {row + at} (item_id {ids[at].as_py()!r}) has a null at column {where} of "
                f"{self._vector_column!r}; fill it or drop that row"
            )
        return values.to_numpy(zero_copy_only=False).reshape(len(lists), self.dim)


def is_parquet(path: Path) -> bool:
    """开头是不是 Parquet 的记号。"""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _list_files(folder: Path) -> List[Path]:
    """目录（连同子目录）里的全部 Parquet 文件，按相对路径的字典序。

    Raises:
        ValueError: 没有 Parquet 文件，或有认不出的东西，指出是哪一个。
    """
    found: List[Path] = []
    for path in _walk(folder, {os.path.realpath(folder)}):
        name = path.name
        if name.startswith(_MARKERS) or name.endswith(".crc") or name.lower().startswith(_PROSE):
            continue
        hidden = any(part[0] in "._" for part in path.relative_to(folder).parts)
        if is_parquet(path) and hidden:
            raise _refuse(folder, path, "its name marks a file that another program hides or is still writing")
        if hidden:
            continue
        if not is_parquet(path):
            raise _refuse(folder, path, "it is no Parquet file")
        found.append(path)
    if not found:
        raise InputError(f"folder {str(folder)!r} holds no .parquet file; give a folder of Parquet files")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _walk(folder: Path, seen: Set[str]) -> Iterator[Path]:
    """全部普通文件；符号链接照样跟进去，绕回来的拒绝。"""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path
            continue
        kind = _TABLES.get(path.name)
        if kind is not None and (path.name[0] in "._" or any(path.glob("*.metadata.json"))):
            raise _refuse(folder, path, f"it belongs to a {kind} table, whose log decides which files count")
        real = os.path.realpath(path)
        if real in seen:
            raise _refuse(folder, path, "it is a link back to a folder that was read already")
        yield from _walk(path, seen | {real})


def _refuse(folder: Path, path: Path, why: str) -> ValueError:
    return InputError(
        f"features folder {str(folder)!r} holds {path.relative_to(folder).as_posix()!r}, which cannot be read: {why}; "
        "move it away, or give the files to read in a folder of their own"
    )


def _open(path: Path) -> pq.ParquetFile:
    """打开一个文件；有页校验和就核对。"""
    try:
        return pq.ParquetFile(path, buffer_size=_STREAM_BYTES, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise InputError(f"{path} is not a readable Parquet file: {one_line(error)}; write or copy it again") from None


def _plain_id_type(found: pa.DataType, column: str) -> pa.DataType:
    """可作编号的类型：整数、字符串、字节串；浮点与布尔不能做键。"""
    plain = found.value_type if pa.types.is_dictionary(found) else found
    if str(plain) == "string_view":  # pyarrow 15 还没有 pa.types.is_string_view
        plain = pa.large_string()
    good = (
        pa.types.is_integer, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary,
    )  # fmt: skip
    if not any(test(plain) for test in good):
        raise InputTypeError(
            f"id column {column!r} has type {found}; item ids must be integers, strings or bytes: cast the column"
        )
    return plain


def _list_type(found: pa.DataType, column: str) -> pa.DataType:
    """特征列必须是浮点的列表；张量扩展类型看它的存储。"""
    plain = found.storage_type if isinstance(found, pa.BaseExtensionType) else found
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    if not any(test(plain) for test in lists) or not pa.types.is_floating(plain.value_type):
        raise InputTypeError(
            f"vector column {column!r} has type {found}; it must be a list or fixed-size list of float16, float32 or "
            "float64: cast the column or choose another with --vector-column"
        )
    return plain


def _storage(column: Any) -> Any:
    """扩展数组取出底下的列表。"""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _null_vector(name: str, row: int, item: Any, column: str) -> str:
    return f"{name} row {row} (item_id {item!r}) has a null vector in {column!r}; fill it or drop that row"


def _show(types: Tuple[pa.DataType, pa.DataType]) -> str:
    return f"({types[0]}, {types[1]})"
