"""读物品表：打开只看清单；内容在读到时核对 SHA-256 与页校验和；查找走内存映射的索引。

形状字母：N 为物品数，Q 为查询数，L 为层数，L' 为 ID 的位数（各层，策略为 suffix 时再加去重位）。
磁盘格式见 `docs/artefact.md`。
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import pyarrow as pa

from ..code_keys import Packing
from ..errors import InputError, InputTypeError
from ..limits import check_int
from .format.manifest import (
    MANIFEST_NAME,
    SUFFIX,
    CatalogError,
    files_of,
    gone,
    id_columns,
    is_replaced,
    old_format_note,
    read_manifest,
)
from .format.parts import check_range, codes_of, id_table, read_checked
from .index.build import build_index
from .index.lookup import CatalogIndex

__all__ = ["Catalog", "CatalogError"]

_log = logging.getLogger(__name__)


class Catalog:
    """一代写完的物品表，只读。

    打开之后看到的始终是打开时的那一份：清单在内存里，它列出的每个文件都按清单里的校验和核对。所以别的进程写了新的
    一代、或整个换成了别的物品表，这里要么照旧（换下来的文件再留两次更新才删），要么说「被换掉了，重新打开」，绝不给出
    另一份的 ID。

    Attributes:
        folder: 目录。
        manifest: 清单原文。
        num_items: 物品数 N。
        codebook_sizes: (K_1, …, K_L)。
        unique: 去重策略，none、suffix 或 nearest-free。
        generation: 第几代，从 0 起。
        fingerprint: 写它的模型的指纹。
        format_note: 旧版本写的物品表缺什么，一句英文；None 表示什么也不缺。
    """

    def __init__(self, folder: Path, manifest: Dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.num_items: int = manifest["num_items"]
        self.codebook_sizes: Tuple[int, ...] = tuple(manifest["codebook_sizes"])
        self.unique: str = manifest["unique"]
        self.generation: int = manifest["generation"]
        self.fingerprint: str = manifest["model_fingerprint"]
        self.id_columns: List[str] = id_columns(len(self.codebook_sizes), self.unique)
        self.format_note: str | None = old_format_note(folder, manifest)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Catalog:
        """打开一个写完的物品表。

        Raises:
            FileNotFoundError: 目录不存在。
            CatalogError: 没有清单、清单损坏、版本不认识、文件缺失或名字越界。
        """
        path = Path(folder)
        catalog = cls(path, read_manifest(path))
        if catalog.format_note is not None:
            _log.warning(catalog.format_note)
        return catalog

    def tables(self) -> Iterator[pa.Table]:
        """逐分片读出并核对；内存只占一个分片。

        Raises:
            CatalogError: 分片被改动、截断，或内容与清单不符。
        """
        row = 0
        for part in self.manifest["parts"]:
            with self._unreplaced():
                table = read_checked(self.folder, part, self.manifest["columns"])
            check_range(codes_of(table), self.codebook_sizes, part["name"], row)
            row += table.num_rows
            yield table

    def read(self) -> pa.Table:
        """整张表：item_id, l1, l2, …[, suffix]，行序与编码时的输入相同，后来加入的排在后面。"""
        tables = list(self.tables())
        return pa.concat_tables(tables) if tables else self._empty()

    def verify(self) -> None:
        """核对清单列出的每个文件的 SHA-256，索引在内。

        Raises:
            CatalogError: 有文件与清单不符。
        """
        for entry in files_of(self.manifest):
            with self._unreplaced():
                if _sha256(self.folder / entry["name"]) != entry["sha256"]:
                    raise CatalogError(f"{self.folder / entry['name']} does not match its SHA-256 in {MANIFEST_NAME}")

    @cached_property
    def packing(self) -> Packing:
        """ID 的打包方式，含去重位。"""
        extra = [self.manifest["max_suffix"] + 1] if SUFFIX in self.id_columns else []
        return Packing([*self.codebook_sizes, *extra])

    @property
    def id_sizes(self) -> Tuple[int, ...]:
        """ID 各位的取值个数，次序同 `id_columns`：各层码本大小，带去重位时再加（最大去重位 + 1）。"""
        return self.packing.sizes

    @cached_property
    def id_type(self) -> pa.DataType:
        """item_id 的 Arrow 类型。"""
        name = self.manifest["item_id_type"]
        fixed = re.fullmatch(r"fixed_size_binary\[(\d+)\]", name)
        try:
            return pa.binary(int(fixed[1])) if fixed else pa.type_for_alias(name)
        except ValueError:
            raise CatalogError(
                f"{MANIFEST_NAME} has item_id_type={name!r}, which is no id type; encode again"
            ) from None

    @cached_property
    def index(self) -> CatalogIndex:
        """查找索引；第一次用到才映射。

        Raises:
            CatalogError: 没有物品，或索引的长度与清单不符。
        """
        if not self.num_items:
            raise CatalogError(f"catalog {str(self.folder)!r} has no items, so it has no index")
        if self.manifest["index"]:
            with self._unreplaced():
                return CatalogIndex(self.folder, self.manifest["index"], self.packing, self.id_type)
        with tempfile.TemporaryDirectory(prefix="semid-index-") as name:  # 版本 1 没有索引；映射之后删掉也无妨
            folder = Path(name)
            entries = build_index(self.tables, self.num_items, self.packing, folder, folder, 0, unique=False)
            return CatalogIndex(folder, entries, self.packing, self.id_type)

    def find(self, items: Any) -> np.ndarray:
        """物品 → ID。

        Args:
            items: (Q,) 物品编号：pyarrow 数组，或能转成它的列表、NumPy 数组。

        Returns:
            (Q, L') int32；没有的物品整行是 −1。

        Raises:
            TypeError: 类型与物品表的编号不符。
        """
        ids = self.as_ids(items)
        if not self.num_items:
            return np.full((len(ids), len(self.id_columns)), -1, np.int32)
        return self.index.ids_at(self.index.positions_of(ids))

    def items_of(self, ids: Any) -> pa.Array:
        """ID → 物品。

        Args:
            ids: (Q, L') 整数。

        Returns:
            (Q,) 物品编号，没有的是 null；策略为 none 时一个 ID 可能有几个物品，给出 item_id 最小的。

        Raises:
            ValueError: 形状不符。
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.shape[1] != len(self.id_columns) or ids.dtype.kind not in "iu":
            raise InputError(
                f"ids must be integers of shape (Q, {len(self.id_columns)}) for {', '.join(self.id_columns)}, got "
                f"{ids.dtype} {ids.shape}"
            )
        if not self.num_items:
            return pa.nulls(len(ids), self.id_type)
        return self.index.items_at(self.index.first_position(ids.astype(np.int64)))

    def with_prefix(self, prefix: Sequence[int], limit: int | None = None) -> pa.Table:
        """前缀 → 物品，按 ID（再按 item_id）排好。

        Args:
            prefix: 前 0…L' 位。
            limit: 至多几个；None 为全部。

        Raises:
            ValueError: 太长，或编号越界。
        """
        sizes = self.packing.sizes
        if len(prefix) > len(sizes):
            raise InputError(f"prefix {tuple(prefix)} has {len(prefix)} codes, but an ID has {len(sizes)}")
        for name, code, size in zip(self.id_columns, prefix, sizes, strict=False):
            if not 0 <= code < size:
                raise InputError(f"prefix {tuple(prefix)} has {name}={code}; codes must be in [0, {size})")
        if not self.num_items:
            return self._empty()
        start, stop = self._span(prefix)
        stop = stop if limit is None else min(stop, start + limit)
        positions = np.arange(start, stop)
        ids = self.index.ids_at(positions)  # (n, L')
        levels = len(self.codebook_sizes)
        suffix = ids[:, levels] if len(self.id_columns) > levels else None
        return id_table(self.index.items_at(positions), ids[:, :levels], suffix)

    def count(self, prefix: Sequence[int]) -> int:
        """前缀下有多少物品。"""
        start, stop = self._span(prefix) if self.num_items else (0, 0)
        return stop - start

    def items_under(self, prefixes: Any, limit: int | None = None) -> pa.LargeListArray:
        """一批同样长的前缀 → 各自的物品，向量化；`with_prefix` 一次只查一个，但连 ID 一起给。

        Args:
            prefixes: (Q, l) 整数，l ≤ L'。
            limit: 每个前缀至多几个，≥ 0；None 为全部。

        Returns:
            Q 个列表，每个里面是 item_id，按 ID（再按 item_id）排好；没有物品的、编号越界的是空列表。

        Raises:
            ValueError: 形状不符，或 `limit` 是负数。
        """
        prefixes = np.asarray(prefixes)
        if prefixes.ndim != 2 or prefixes.shape[1] > len(self.id_columns) or prefixes.dtype.kind not in "iu":
            raise InputError(
                f"prefixes must be integers of shape (Q, 0..{len(self.id_columns)}) for {', '.join(self.id_columns)}, "
                f"got {prefixes.dtype} {prefixes.shape}"
            )
        if limit is not None:
            check_int("limit", limit, 0)
        start = stop = np.zeros(len(prefixes), np.int64)
        if self.num_items:
            start, stop = self.index.spans(prefixes.astype(np.int64))
        count = stop - start if limit is None else np.minimum(stop - start, limit)
        offsets = np.concatenate([[0], np.cumsum(count)])
        positions = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], count)
        items = self.index.items_at(positions) if self.num_items else pa.array([], self.id_type)
        return pa.LargeListArray.from_arrays(pa.array(offsets), items)

    def as_ids(self, items: Any) -> pa.Array:
        """转成物品表的编号类型。

        Raises:
            TypeError: 转不过去。
        """
        try:
            if isinstance(items, (pa.Array, pa.ChunkedArray)):
                array = items
            else:
                big = pa.types.is_uint64(self.id_type) and isinstance(items, (list, tuple))
                array = pa.array(items, self.id_type) if big else pa.array(items)  # 不说类型，2⁶³ 以上放不进 int64
            array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
            if pa.types.is_integer(array.type) != pa.types.is_integer(self.id_type) and len(array):
                raise pa.ArrowInvalid(f"{array.type} given")
            return array.cast(self.id_type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OverflowError) as error:
            raise InputTypeError(f"item ids must be of type {self.id_type}: {' '.join(str(error).split())}") from None

    @contextmanager
    def _unreplaced(self) -> Iterator[None]:
        """按名字打开文件时出了错：是坏了，还是目录已经换了一份。"""
        try:
            yield
        except CatalogError as error:
            if is_replaced(self.folder, self.manifest):
                raise CatalogError(
                    f"catalog {str(self.folder)!r} was replaced or moved on to a later generation while it was open; "
                    f"open it again ({error})"
                ) from None
            raise

    def _span(self, prefix: Sequence[int]) -> Tuple[int, int]:
        """一个验收过的前缀的位置区间。"""
        start, stop = self.index.spans(np.array(prefix, np.int64).reshape(1, -1))
        return int(start[0]), int(stop[0])

    def _empty(self) -> pa.Table:
        """没有物品的表。"""
        levels = len(self.codebook_sizes)
        suffix = np.zeros(0, np.int32) if len(self.id_columns) > levels else None
        return id_table(pa.array([], self.id_type), np.zeros((0, levels), np.int32), suffix)


def _sha256(path: Path) -> str:
    """整个文件的 SHA-256。"""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise gone(path) from None
    return digest.hexdigest()
