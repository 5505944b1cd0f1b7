"""重新训练之后：给新码本的码字重新编号，使尽可能多的物品保持原来的 ID；再写出旧 → 新的对照表。

码字叫几号本来是任意的：重新训练会把「电影」从 12 号换到 700 号，哪怕意思没变。所以逐层求一个一一对应（新号 → 旧号），
使旧 ID
还在的物品最多。先对齐 L1；L2 主要看 L1 已经对上的物品，L3 主要看前两层都对上的，因为前缀没对上，后面对上了也不算保住。

形状字母：N 为两次都有的物品数，L 为层数，K 为一层的码本大小，E 为出现过的（新号, 旧号）对数。
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algorithm.interfaces import SemanticIDModel

from ...files.durable import write_atomically
from ...files.source import VectorSource
from ..encoding.shards import encode_block
from ..table import Catalog
from ..unique.matching import Candidates, solve

__all__ = ["align_codes", "align_level", "encode_known", "write_moves"]


def align_codes(old: np.ndarray, new: np.ndarray, sizes: Sequence[int]) -> List[np.ndarray]:
    """逐层的重新编号。

    Args:
        old: (N, L) 旧编码。
        new: (N, L) 同一批物品的新编码。
        sizes: 各层码本大小，新旧相同。

    Returns:
        L 个 (K,) int64 排列：新模型的第 k 个码字应改叫 `labels[k]`。
    """
    labels = []
    agree = np.ones(len(old), bool)  # 前面各层都对上了的物品
    for level, size in enumerate(sizes):
        label = align_level(old[:, level], new[:, level], size, agree)
        labels.append(label)
        agree &= label[new[:, level]] == old[:, level]
    return labels


def align_level(old: np.ndarray, new: np.ndarray, size: int, agree: np.ndarray) -> np.ndarray:
    """一层的重新编号：对上的物品数最多；`agree` 之外的物品只在并列时算数。

    Args:
        old: (N,) 旧编号。
        new: (N,) 新编号。
        size: K。
        agree: (N,) bool，前缀已经对上的物品。

    Returns:
        (K,) int64 排列。

    Examples:
        >>> align_level(np.array([2, 2, 0]), np.array([1, 1, 2]), 3, np.ones(3, bool)).tolist()
        [1, 2, 0]
    """
    pair = new.astype(np.int64) * size + old
    pairs, inverse = np.unique(pair, return_inverse=True)  # (E,)
    count = np.bincount(inverse, minlength=len(pairs))
    strong = np.bincount(inverse, weights=agree.astype(np.float64), minlength=len(pairs))
    gain = strong * (len(old) + 1.0) + count
    item, code = pairs // size, pairs % size
    # 每个新号另有一条「谁也不对」的退路，费用 0，于是求最小费用就是求最大收益
    item = np.concatenate([item, np.arange(size)])
    code = np.concatenate([code, size + np.arange(size)])
    cost = np.concatenate([-gain, np.zeros(size)])
    order = np.lexsort((code, cost, item))
    start = np.searchsorted(item[order], np.arange(size + 1))
    candidates = Candidates(start, code[order], cost[order])
    chosen = candidates.code[solve(candidates, range(size))]
    label = np.where(chosen < size, chosen, -1)
    free = np.setdiff1d(np.arange(size), label)  # 没有对上的，按号补上余下的
    label[label < 0] = free
    return label.astype(np.int64)


def encode_known(
    model: SemanticIDModel, catalog: Catalog, source: VectorSource, block_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """用新模型编码一遍，给出表里已有的物品的旧编码与新编码，各 (N, L)。"""
    levels = len(catalog.codebook_sizes)
    old, new = [np.zeros((0, levels), np.int32)], [np.zeros((0, levels), np.int32)]
    for block in source.blocks(block_rows):
        known = catalog.find(block.ids)[:, :levels]
        here = known[:, 0] >= 0
        old.append(known[here])
        new.append(encode_block(model, block)[here])
    return np.concatenate(old), np.concatenate(new)


def write_moves(before: Catalog, after: Catalog, path: Path) -> Dict[str, Any]:
    """写旧 → 新的对照表：item_id, old_l1, …, l1, …, changed；只含两边都有的物品。

    Returns:
        num_common, num_changed, changed_rate（没有共同物品时为 None）, num_added, num_dropped。
    """
    common = changed = 0
    temporary = path.with_name(path.name + ".writing")
    writer = None
    try:
        for table in after.tables():
            items = table.column("item_id").combine_chunks()
            old = before.find(items.cast(before.id_type))  # (n, L')
            here = np.flatnonzero(old[:, 0] >= 0)
            now = table.take(pa.array(here))
            fresh = np.stack([now.column(name).to_numpy() for name in after.id_columns], axis=1)
            moved = (old[here] != fresh).any(axis=1)
            columns = {"item_id": now.column("item_id")}
            columns |= {f"old_{name}": pa.array(old[here, i]) for i, name in enumerate(before.id_columns)}
            columns |= {name: now.column(name) for name in after.id_columns}
            rows = pa.table({**columns, "changed": pa.array(moved)})
            writer = writer or pq.ParquetWriter(temporary, rows.schema, write_page_checksum=True)
            writer.write_table(rows)
            common, changed = common + len(here), changed + int(moved.sum())
    finally:
        if writer is not None:
            writer.close()
    write_atomically(path, temporary.read_bytes())
    os.unlink(temporary)
    return {
        "num_common": common,
        "num_changed": changed,
        "changed_rate": changed / common if common else None,
        "num_added": after.num_items - common,
        "num_dropped": before.num_items - common,
    }
