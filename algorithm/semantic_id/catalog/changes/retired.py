"""退役表：离开了的物品、它们的 ID、哪一代离开的；这些 ID 在年限之内不给别人，原主再来就拿回去。

形状字母：r 为退役的行数，L' 为 ID 的位数。
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..format.parts import full_ids_of, id_rows, order_of_ids, read_checked
from ..table import Catalog

__all__ = ["Retired", "add_leaving", "read_retired", "retired_table"]

_GENERATION = "retired_in"


class Retired(NamedTuple):
    """退役的物品：编号、ID (r, L')、哪一代退役的 (r,)。

    同一个物品可以有几行（换过模型、又退役了一次），后退役的排在前面，拿回的就是它。
    """

    items: pa.Array
    ids: np.ndarray
    generation: np.ndarray

    def take(self, keep: np.ndarray) -> Retired:
        """留下这些行。"""
        return Retired(self.items.take(pa.array(keep)), self.ids[keep], self.generation[keep])

    def resting(self, generation: int, reuse_after: int | None) -> np.ndarray:
        """到了第 `generation` 代还不许再用的行的下标；`reuse_after` 为 None 则永不再用。"""
        if reuse_after is None:
            return np.arange(len(self.items))
        return np.flatnonzero(generation - self.generation < reuse_after)


def read_retired(catalog: Catalog) -> Retired:
    """读退役表；没有就是空的。

    Raises:
        CatalogError: 退役表被改动或截断。
    """
    entry = catalog.manifest["retired"]
    if entry is None:
        none = np.zeros((0, len(catalog.id_columns)), np.int32)
        return Retired(pa.array([], catalog.id_type), none, np.zeros(0, np.int64))
    table = read_checked(catalog.folder, entry, [*catalog.manifest["columns"], _GENERATION])
    generation = table.column(_GENERATION).to_numpy().astype(np.int64)
    return Retired(table.column("item_id").combine_chunks(), full_ids_of(table), generation)


def add_leaving(retired: Retired, leaving: pa.Table | None, generation: int) -> Retired:
    """把第 `generation` 代退役的加进去，按 item_id 排好。"""
    if leaving is not None:
        retired = Retired(
            pa.concat_arrays([leaving.column("item_id").combine_chunks(), retired.items]),
            np.concatenate([full_ids_of(leaving), retired.ids]),
            np.concatenate([np.full(leaving.num_rows, generation), retired.generation]),
        )
    return retired.take(order_of_ids(retired.items))  # 排序是稳定的，所以后退役的在前


def retired_table(retired: Retired, levels: int) -> pa.Table:
    """落盘的样子：item_id, l1, …[, suffix], retired_in。"""
    table = id_rows(retired.items, retired.ids, levels)
    return table.append_column(_GENERATION, pa.array(retired.generation.astype(np.int32)))
