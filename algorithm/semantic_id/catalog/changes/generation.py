"""写新的一代：新分片、受退役影响的分片、退役表、索引都先写好落盘，最后原子地换清单。

读者看到的要么是旧的一代，要么是新的一代，都是完整的。就地写时换下来的文件再留两次更新，正开着旧一代的读者才读得完。
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ...code_keys import Packing
from ..encoding.shards import DEFAULT_ROWS_PER_PART, plan_shards
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY
from ..format.manifest import STAGING_NAME, SUFFIX, files_of, write_manifest
from ..format.parts import part_name, read_checked, write_table
from ..index.build import build_index
from ..table import Catalog
from .retired import Retired, retired_table

__all__ = ["Change", "write_generation"]


class Change(NamedTuple):
    """这一代与上一代差在哪里。

    Attributes:
        generation: 第几代。
        joining: 加入的行，次序就是新分片里的次序。
        leaving: 离开的物品编号；None 为没有。
        retired: 这一代的退役表。
        entry: 写进 `history` 的一项；None 则不写。
        fields: 清单里另要改的字段，换模型时用。
    """

    generation: int
    joining: pa.Table
    leaving: pa.Array | None
    retired: Retired
    entry: Dict[str, Any] | None
    fields: Mapping[str, Any] = {}


def write_generation(
    catalog: Catalog,
    change: Change,
    into: Path,
    *,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
    rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
) -> Dict[str, Any]:
    """写 `catalog` 的下一代。

    Args:
        catalog: 上一代，只读。
        change: 差在哪里。
        into: 写到哪个目录；就是 `catalog.folder` 时没有变的分片不动，否则照抄过去。
        rows_per_part: 新分片至多多少行。
        rows_in_memory: 外部排序一桶多少行。

    Returns:
        新的清单。

    Raises:
        CatalogError: 旧分片损坏，或 ID 没能唯一。
        ValueError: 物品编号重复。
    """
    old = catalog.manifest
    parts, number = _kept_parts(catalog, change.leaving, into)
    for shard in plan_shards(change.joining.num_rows, rows_per_part):
        parts.append(write_table(into, part_name(number), change.joining.slice(shard.start, shard.stop - shard.start)))
        number += 1
    retired = None
    if len(change.retired.items):
        table = retired_table(change.retired, len(catalog.codebook_sizes))
        retired = write_table(into, f"retired-{change.generation:05d}.parquet", table)
    total = sum(part["rows"] for part in parts)
    max_suffix = old["max_suffix"]
    if SUFFIX in catalog.id_columns and change.joining.num_rows:
        max_suffix = max(max_suffix, pc.max(change.joining.column(SUFFIX)).as_py())
    fields = {
        **old,
        "generation": change.generation,
        "num_items": total,
        "max_suffix": max_suffix,
        "parts": parts,
        "index": _index(catalog, into, parts, total, max_suffix, change.generation, rows_in_memory),
        "retired": retired,
        "next_part": number,
        "previous": sorted(entry["name"] for entry in files_of(old)) if into == catalog.folder else [],
        "history": [*old["history"], *([] if change.entry is None else [change.entry])],
        **change.fields,
    }
    return write_manifest(into, fields)


def _kept_parts(catalog: Catalog, leaving: pa.Array | None, into: Path) -> tuple[List[Dict[str, Any]], int]:
    """没有离开的行；就地写时，没有变的分片沿用原来的文件。返回各分片与下一个编号。"""
    number, parts = catalog.manifest["next_part"], []
    for entry, table in zip(catalog.manifest["parts"], catalog.tables(), strict=True):
        kept = table
        if leaving is not None:
            kept = table.filter(pc.invert(pc.is_in(table.column("item_id"), value_set=leaving)))
        if kept.num_rows == table.num_rows:
            parts.append(entry if into == catalog.folder else write_table(into, entry["name"], table))
        elif kept.num_rows:
            parts.append(write_table(into, part_name(number), kept))
            number += 1
    return parts, number


def _index(
    catalog: Catalog,
    into: Path,
    parts: List[Dict[str, Any]],
    total: int,
    max_suffix: int,
    generation: int,
    rows_in_memory: int,
) -> Dict[str, Dict[str, Any]]:
    """新一代的索引；行数、编号与 ID 的唯一性在这里再查一遍。"""
    if not total:
        return {}
    sizes = [*catalog.codebook_sizes, *([max_suffix + 1] if SUFFIX in catalog.id_columns else [])]
    staging = into / STAGING_NAME
    staging.mkdir()
    entries = build_index(
        lambda: (read_checked(into, part, catalog.manifest["columns"]) for part in parts),
        total,
        Packing(sizes),
        into,
        staging,
        generation,
        unique=catalog.unique != "none",
        rows_in_memory=rows_in_memory,
    )
    staging.rmdir()
    return entries
