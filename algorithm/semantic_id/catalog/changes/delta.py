"""增量：这次来的物品与它们现在的编码；怎样在已有的 ID 之外给新物品安排 ID。

形状字母：n 为增量里的物品数，m 为其中新来的，r 为保留着的 ID 数，L 为层数，L' 为 ID 的位数，E 为候选数。

增量装进内存（编码与编号，不含向量的全部候选）；物品表本身只查索引。
"""

from __future__ import annotations

import math
from typing import Dict, NamedTuple, Sequence

import numpy as np
import pyarrow as pa

from algorithm.interfaces import SemanticIDModel

from ...code_keys import Packing, comparable
from ...files.progress import OnProgress
from ...files.source import VectorSource
from ...files.vectors import check_unique_ids
from ..encoding.shards import encode_block, plan_shards, read_vectors
from ..format.parts import order_of_ids
from ..table import Catalog
from ..unique.assign import Choices, nearest_free
from ..unique.candidates import candidates_of, errors_of

__all__ = ["Delta", "FreshIds", "read_delta"]


class Delta(NamedTuple):
    """增量里的物品，按 item_id 排好，所以结果与来源的行序无关。"""

    items: pa.Array
    rows: np.ndarray  # (n,) 在来源里的行号
    codes: np.ndarray  # (n, L) 现在编码会得到的


def read_delta(
    model: SemanticIDModel,
    catalog: Catalog,
    source: VectorSource | None,
    block_rows: int,
    progress: OnProgress | None,
) -> Delta:
    """编码增量。

    Raises:
        TypeError: 编号的类型与物品表不符。
        ValueError: 编号重复，或数据有坏行。
    """
    levels = len(catalog.codebook_sizes)
    if source is None:
        return Delta(pa.array([], catalog.id_type), np.zeros(0, np.int64), np.zeros((0, levels), np.int32))
    check_unique_ids(source)
    ids, codes = [], []
    for block in source.blocks(block_rows):
        ids.append(catalog.as_ids(block.ids))
        codes.append(encode_block(model, block))
        if progress is not None:
            progress(block.start + len(block.ids), source.num_rows)
    items = pa.concat_arrays(ids)
    order = order_of_ids(items)
    return Delta(items.take(pa.array(order)), order, np.concatenate(codes)[order])


class FreshIds:
    """给增量里新来的物品安排 ID：表里有的、还保留着的都不许占。

    Args:
        model: 写这个物品表的模型。
        catalog: 已有的物品。
        source: 增量的来源，nearest-free 要从中取向量。
        block_rows: 一次处理多少行。
    """

    def __init__(self, model: SemanticIDModel, catalog: Catalog, source: VectorSource | None, block_rows: int) -> None:
        self._model, self._catalog, self._source, self._block_rows = model, catalog, source, block_rows

    def assign(self, delta: Delta, fresh: np.ndarray, reserved: np.ndarray) -> np.ndarray:
        """按物品表的策略安排。

        Args:
            delta: 增量。
            fresh: (m,) 新来的在增量里的下标。
            reserved: (r, L') 不在表里、但也不许用的 ID。

        Returns:
            (m, L') int32。

        Raises:
            NoFreeCodeError: nearest-free 没有码可用。
        """
        own = delta.codes[fresh]
        if not len(fresh):
            return np.zeros((0, len(self._catalog.id_columns)), np.int32)
        if self._catalog.unique == "none":
            return own
        if self._catalog.unique == "suffix":
            return np.concatenate([own, self._suffixes(own, reserved)[:, None]], axis=1)
        return self._free_codes(delta, fresh, own, reserved)

    def _suffixes(self, own: np.ndarray, reserved: np.ndarray) -> np.ndarray:
        """每个新物品取本组最小的空去重位；组内按 item_id。"""
        out = np.zeros(len(own), np.int32)
        used: Dict[tuple[int, ...], set[int]] = {}
        for row in reserved.tolist():
            used.setdefault(tuple(row[:-1]), set()).add(row[-1])
        taken: Dict[tuple[int, ...], set[int]] = {}
        lowest: Dict[tuple[int, ...], int] = {}  # 比它小的都占了：大组里不必每次从 0 数起
        for i, code in enumerate(map(tuple, own.tolist())):
            if code not in taken:
                taken[code] = self._live_suffixes(code) | used.get(code, set())
            free = lowest.get(code, 0)
            while free in taken[code]:
                free += 1
            out[i], lowest[code] = free, free + 1
        return out

    def _live_suffixes(self, code: Sequence[int]) -> set[int]:
        """这个编码在表里已有的去重位。"""
        if not self._catalog.num_items:
            return set()
        start, stop = self._catalog.index.spans(np.array([code], np.int64))
        return set(self._catalog.index.ids_at(np.arange(start[0], stop[0]))[:, -1].tolist())

    def _free_codes(self, delta: Delta, fresh: np.ndarray, own: np.ndarray, reserved: np.ndarray) -> np.ndarray:
        """nearest-free：要安置的只有与表里的、保留着的或彼此冲突的新物品。"""
        sizes, packing = self._catalog.codebook_sizes, Packing(self._catalog.codebook_sizes)
        blocked = np.unique(comparable(packing.pack(reserved)))
        keys = comparable(packing.pack(own))
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        contend = self._occupied(own, blocked, packing) | (counts[inverse] > 1)
        alone = np.unique(keys[~contend])
        where = np.flatnonzero(contend)
        out = own.copy()
        if not len(where):
            return out
        assert self._source is not None
        shards = plan_shards(self._source.num_rows, 1 << 16)
        vectors = read_vectors(self._source, delta.rows[fresh[where]], shards, self._block_rows)
        price = float(self._catalog.manifest["history"][0].get("prefix_price", "1.0"))

        def fetch(items: np.ndarray, num: int) -> Choices:
            return self._candidates(vectors, own[where], items, num, not math.isinf(price))

        def occupied(codes: np.ndarray) -> np.ndarray:
            return self._occupied(codes, blocked, packing) | np.isin(comparable(packing.pack(codes)), alone)

        out[where] = nearest_free(
            own[where],
            errors_of(self._model, vectors, own[where])[:, -1],
            fetch,
            occupied,
            sizes,
            price,
            lambda i: delta.items[int(fresh[where[i]])].as_py(),
        ).codes
        return out

    def _candidates(self, vectors: np.ndarray, own: np.ndarray, items: np.ndarray, num: int, wide: bool) -> Choices:
        """向模型要候选，一次的总数有界。"""
        step = max(1, 16384 // num)
        parts = []
        for i in range(0, len(items), step):
            some = items[i : i + step]
            found = candidates_of(self._model, vectors[some], own[some], num, wide)
            parts.append(found._replace(item=some[found.item]))
        return Choices(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))

    def _occupied(self, codes: np.ndarray, blocked: np.ndarray, packing: Packing) -> np.ndarray:
        """(E, L) 编码 → 是否在表里或被保留。"""
        taken = np.isin(comparable(packing.pack(codes)), blocked)
        if self._catalog.num_items:
            taken |= self._catalog.index.first_position(codes.astype(np.int64)) >= 0
        return taken
