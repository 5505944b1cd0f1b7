"""把物品表搬到另一个模型上：ID 还对的物品原样带走，退役的 ID 接着休息，其余的重新安排。

对齐（`migrate.py`）之后，新模型的第 k 个码字就叫旧表里的 k 号，所以旧 ID 直接是新编号里的 ID，退役表也不必换算。

- 同一个模型（指纹相同）：已有的物品一个不动，去重位与退役表照旧；什么也没有增减时，逐字节照抄。
- 换了模型：编码没变的物品带着完整的 ID（去重位在内）走；编码变了的、新来的，在带走的与休息的 ID 之外安排。
- 旧表里有、这次没有的物品算退役：它们的 ID 不会马上给别人。

形状字母：N 为两次都有的物品数，L 为层数，L' 为 ID 的位数。
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algorithm.interfaces import SemanticIDModel

from ...files.durable import replacing, write_atomically
from ...files.progress import OnProgress
from ...files.source import VectorSource
from ...files.vectors import check_unique_ids
from ..encoding.shards import encode_block, sampled_errors
from ..format.manifest import MANIFEST_NAME, files_of
from ..format.parts import id_rows
from ..table import Catalog
from .generation import Change, write_generation
from .retired import add_leaving, read_retired
from .update import Update

__all__ = ["Survey", "carry_over", "survey", "write_moves"]

CARRIED_NAME = "carried"


class Survey(NamedTuple):
    """用新模型把来源编码一遍看到的。

    Attributes:
        source_items: 来源里的全部编号。
        items: (N,) 旧表里也有的编号。
        old: (N, L) 它们的旧编码。
        new: (N, L) 它们的新编码，还没有对齐。
        reference: 新模型逐层的误差，`semid drift` 的参照。
    """

    source_items: pa.Array
    items: pa.Array
    old: np.ndarray
    new: np.ndarray
    reference: Dict[str, Any]


def survey(model: SemanticIDModel, catalog: Catalog, source: VectorSource, block_rows: int) -> Survey:
    """编码一遍。

    Raises:
        TypeError: 编号的类型与物品表不符。
        ValueError: 编号重复，或数据有坏行。
    """
    check_unique_ids(source)
    levels = len(catalog.codebook_sizes)
    everyone, items = [pa.array([], catalog.id_type)], [pa.array([], catalog.id_type)]
    old, new = [np.zeros((0, levels), np.int32)], [np.zeros((0, levels), np.int32)]
    rows, sums = 0, np.zeros(levels)
    for block in source.blocks(block_rows):
        ids = catalog.as_ids(block.ids)
        known = catalog.find(ids)[:, :levels]
        here = known[:, 0] >= 0
        codes = encode_block(model, block)
        everyone.append(ids)
        items.append(ids.filter(pa.array(here)))
        old.append(known[here])
        new.append(codes[here])
        errors = sampled_errors(model, source, block, codes)
        rows, sums = rows + len(errors), sums + errors.sum(axis=0)
    reference = {"rows": rows, "level_mse": (sums / (rows * source.dim)).tolist()}
    return Survey(
        pa.concat_arrays(everyone), pa.concat_arrays(items), np.concatenate(old), np.concatenate(new), reference
    )


def carry_over(
    model: SemanticIDModel,
    before: Catalog,
    source: VectorSource,
    into: Path,
    seen: Survey,
    aligned: np.ndarray,
    *,
    block_rows: int = 16384,
    progress: OnProgress | None = None,
) -> None:
    """写出搬过去的物品表。

    Args:
        model: 已经对齐的新模型。
        before: 旧表。
        source: 新特征；它的物品就是新表的物品。
        into: 新表的目录，还不存在；旁边会有一个临时的 `carried`。
        seen: `survey` 的结果。
        aligned: (N, L) `seen.new` 对齐之后的样子。
        block_rows: 一次编码多少行。
        progress: 每编码完一块调用一次。

    Raises:
        CatalogError: 旧表损坏。
        NoFreeCodeError: nearest-free 没有码可用。
    """
    before.verify()
    into.mkdir()
    dropped = _items_of(before, seen.source_items, inside=False)
    if before.fingerprint == model.fingerprint():
        if not len(dropped) and len(seen.items) == len(seen.source_items):
            for name in (*(entry["name"] for entry in files_of(before.manifest)), MANIFEST_NAME):
                write_atomically(into / name, (before.folder / name).read_bytes())
            return
        Update(model, before, source, block_rows=block_rows).run(into, dropped, progress=progress)
        return
    carried = into.with_name(CARRIED_NAME)
    carried.mkdir()
    base = _carry(model, before, carried, seen, aligned, dropped)
    note = {"migrated_from": before.fingerprint, "num_retired": len(dropped)}
    work = Update(model, base, source, block_rows=block_rows, only_own_code=True)
    work.run(into, None, progress=progress, note=note)
    shutil.rmtree(carried)


def _carry(
    model: SemanticIDModel, before: Catalog, folder: Path, seen: Survey, aligned: np.ndarray, dropped: pa.Array
) -> Catalog:
    """编码没变的物品组成的物品表，ID 与旧表相同；离开了的进退役表。"""
    stays = seen.items.filter(pa.array((seen.old == aligned).all(axis=1)))
    ids = before.find(dropped)  # (n, L')
    leaving = id_rows(dropped, ids, len(before.codebook_sizes)) if len(dropped) else None
    change = Change(
        generation=before.generation,
        joining=id_rows(dropped.slice(0, 0), ids[:0], len(before.codebook_sizes)),
        leaving=_items_of(before, stays, inside=False),
        retired=add_leaving(read_retired(before), leaving, before.generation + 1),
        entry=None,
        fields={"model_fingerprint": model.fingerprint(), "reference": seen.reference},
    )
    write_generation(before, change, folder)
    return Catalog.open(folder)


def _items_of(catalog: Catalog, pool: pa.Array, *, inside: bool) -> pa.Array:
    """物品表里在（不在）`pool` 里的编号。"""
    found = [pa.array([], catalog.id_type)]
    for table in catalog.tables():
        items = table.column("item_id").combine_chunks()
        here = pc.is_in(items, value_set=pool)
        found.append(items.filter(here if inside else pc.invert(here)))
    return pa.concat_arrays(found)


def write_moves(before: Catalog, after: Catalog, path: Path) -> Dict[str, Any]:
    """写旧 → 新的对照表：item_id, old_l1, …, l1, …, changed；只含两边都有的物品。

    Returns:
        num_common, num_changed, changed_rate（没有共同物品时为 None）, num_added, num_dropped。
    """
    common = changed = 0
    with replacing(path) as file:
        writer = None
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
            writer = writer or pq.ParquetWriter(file, rows.schema, write_page_checksum=True)
            writer.write_table(rows)
            common, changed = common + len(here), changed + int(moved.sum())
        if writer is not None:
            writer.close()
    return {
        "num_common": common,
        "num_changed": changed,
        "changed_rate": changed / common if common else None,
        "num_added": after.num_items - common,
        "num_dropped": before.num_items - common,
    }
