"""物品表的一代又一代：新物品得到 ID，老物品的 ID 一个字节不变，退役的编号不马上再用。

形状字母：n 为这次增量里的物品数，L 为层数，L' 为 ID 的位数。

更新途中被杀，清单还是旧的，重跑即可；怎样写见 `generation.py`，退役的规矩见 `retired.py`。
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algorithm.interfaces import SemanticIDModel

from ...errors import InputError
from ...files.durable import one_writer
from ...files.progress import OnProgress
from ...files.source import VectorSource, one_line
from ...limits import check_int
from ..encoding.shards import DEFAULT_ROWS_PER_PART
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY
from ..format.manifest import CatalogError
from ..format.parts import id_rows
from ..format.publish import sweep
from ..table import Catalog
from .delta import Delta, FreshIds, read_delta
from .generation import Change, write_generation
from .retired import add_leaving, read_retired

__all__ = ["Update", "check_model", "check_width", "read_ids", "update_catalog"]


def update_catalog(
    model: SemanticIDModel,
    folder: str | os.PathLike[str],
    source: VectorSource | None,
    *,
    retire: pa.Array | None = None,
    reuse_after: int | None = None,
    block_rows: int = 16384,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
    rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
    progress: OnProgress | None = None,
) -> Dict[str, Any]:
    """写新的一代。

    - 增量里已有的物品：ID 不变，哪怕向量变了。
    - 曾经退役的：拿回原来的 ID（若还没有给别人）。
    - 新的：按物品表的策略得到唯一的 ID，结果与增量的行序无关。
    - `retire` 里的：退役；它们的 ID 至少 `reuse_after` 代之内不给别人。

    Args:
        model: 写这个物品表的模型。
        folder: 物品表目录。
        source: 增量；None 表示只退役。
        retire: 要退役的 item_id。
        reuse_after: 退役满几代之后可以再用，≥ 1；None 为永不。
        block_rows: 一次编码多少行。
        rows_per_part: 新分片至多多少行。
        rows_in_memory: 外部排序一桶多少行。
        progress: 每编码完一块调用一次 `progress(done_rows, total_rows)`。

    Returns:
        摘要：output, generation, num_items, num_added, num_kept, num_readded, num_retired, num_reserved（退役而保留的
        ID 数），drifted_rate（已有的物品里，现在编码会得到不同编码的比例；没有则为 None）。

    Raises:
        FileNotFoundError, CatalogError: 不是物品表、属于另一个模型。
        ValueError: 要退役的不在表里，或同时出现在增量里；维度不符；数据有坏行。
        TypeError: 编号类型不符。
        FileExistsError: 另一个进程正在写它，或目录里有别人的文件。
    """
    if reuse_after is not None:
        check_int("reuse_after", reuse_after, 1)
    if source is None and (retire is None or not len(retire)):
        raise InputError("nothing to do: give features to add, ids to retire, or both")
    path = Path(os.path.realpath(folder))
    Catalog.open(path)  # 先确认它是物品表，再上锁
    with one_writer(path):
        catalog = Catalog.open(path)
        check_model(catalog, model)
        catalog.verify()
        sweep(path, catalog.manifest)
        if source is not None:
            check_width(model, source)
        try:
            work = Update(model, catalog, source, reuse_after=reuse_after, block_rows=block_rows)
            return work.run(path, retire, rows_per_part=rows_per_part, rows_in_memory=rows_in_memory, progress=progress)
        except BaseException:
            sweep(path, Catalog.open(path).manifest)  # 重新打开：若恰在换清单之后被打断，新的一代已经算数
            raise


def check_model(catalog: Catalog, model: SemanticIDModel) -> None:
    """只认写它的那个模型：别的模型的编码与表里的没有可比性。"""
    if catalog.fingerprint != model.fingerprint():
        raise CatalogError(
            f"catalog {str(catalog.folder)!r} was written by another model (fingerprint {catalog.fingerprint[:12]}…, "
            f"this one is {model.fingerprint()[:12]}…); use the model that wrote it, or move the catalog to the new "
            "one with `semid migrate`"
        )


def check_width(model: SemanticIDModel, source: VectorSource) -> None:
    """特征的维度须是模型的。"""
    if source.dim != model.embedding_dim:
        raise InputError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use the features of that model"
        )


class Update:
    """一次更新：已有的不动、曾经退役的拿回去、新的安排 ID。

    Args:
        model: 写这个物品表的模型。
        catalog: 上一代。
        source: 增量；None 表示只退役。
        reuse_after: 退役满几代之后可以再用；None 为永不。
        block_rows: 一次编码多少行。
        only_own_code: 曾经退役的只在编码没变时拿回原来的 ID；换过模型时用，否则会拿到与内容不符的 ID。
    """

    def __init__(
        self,
        model: SemanticIDModel,
        catalog: Catalog,
        source: VectorSource | None,
        *,
        reuse_after: int | None = None,
        block_rows: int = 16384,
        only_own_code: bool = False,
    ) -> None:
        self._model, self._catalog, self._source, self._block_rows = model, catalog, source, block_rows
        self._generation = catalog.generation + 1
        self._levels = len(catalog.codebook_sizes)
        self._reuse_after, self._only_own_code = reuse_after, only_own_code
        self._retired = read_retired(catalog)

    def run(
        self,
        into: Path,
        retire: pa.Array | None,
        *,
        rows_per_part: int = DEFAULT_ROWS_PER_PART,
        rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
        progress: OnProgress | None = None,
        note: Dict[str, Any] | None = None,
    ) -> Dict[str, Any]:
        """增量 → 新的一代，写进 `into`；`note` 另记进 `history` 的一项。返回摘要，见 `update_catalog`。"""
        catalog = self._catalog
        delta = read_delta(self._model, catalog, self._source, self._block_rows, progress)
        leaving = self._leaving(retire, delta)
        known = catalog.find(delta.items)  # (n, L')
        here = known[:, 0] >= 0
        drifted = (known[here, : self._levels] != delta.codes[here]).any(axis=1)
        ids, back, fresh, retired = self._settle(delta, known, here)
        retired = add_leaving(retired, leaving, self._generation)
        joining = np.flatnonzero(~here)
        joining = joining[np.argsort(delta.rows[joining], kind="stable")]  # 新分片里的行序同来源
        entry = {
            "generation": self._generation,
            "features": None if self._source is None else self._source.description,
            "num_added": len(fresh),
            "num_kept": int(here.sum()),
            "num_readded": len(back),
            "num_retired": 0 if leaving is None else leaving.num_rows,
            **(note or {}),
        }
        change = Change(
            self._generation,
            id_rows(delta.items.take(pa.array(joining)), ids[joining], self._levels),
            None if leaving is None else leaving.column("item_id").combine_chunks(),
            retired,
            entry,
        )
        manifest = write_generation(catalog, change, into, rows_per_part=rows_per_part, rows_in_memory=rows_in_memory)
        return {
            "output": os.fspath(into),
            "num_items": manifest["num_items"],
            **manifest["history"][-1],
            "num_reserved": len(retired.items),
            "drifted_rate": float(drifted.mean()) if here.any() else None,
        }

    def _settle(self, delta: Delta, known: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, Any, Any, Any]:
        """每个物品的 ID (n, L')、拿回去的与新来的下标、剩下的退役表。"""
        retired = self._retired
        grave = np.full(len(delta.items), -1, np.int64)  # 各自在退役表的哪一行
        grave[~here] = _match(delta.items.filter(pa.array(~here)), retired.items)
        if self._only_own_code:
            same = (retired.ids[grave, : self._levels] == delta.codes).all(axis=1) if len(retired.items) else ~here
            grave[~same] = -1
        back, fresh = np.flatnonzero(grave >= 0), np.flatnonzero(~here & (grave < 0))
        ids = np.full((len(delta.items), len(self._catalog.id_columns)), -1, np.int32)
        ids[here], ids[back] = known[here], retired.ids[grave[back]]
        # 拿回去的不再是退役；其余的按年限保留
        retired = retired.take(np.setdiff1d(np.arange(len(retired.items)), grave[back]))
        resting = retired.ids[retired.resting(self._generation, self._reuse_after)]
        maker = FreshIds(self._model, self._catalog, self._source, self._block_rows)
        ids[fresh] = maker.assign(delta, fresh, np.concatenate([resting, ids[back]]))
        # 过了年限、又给了别人的，原主再也拿不回来
        taken = _rows_in(retired.ids, ids[fresh] if self._catalog.unique != "none" else ids[:0])
        return ids, back, fresh, retired.take(np.flatnonzero(~taken))

    def _leaving(self, retire: pa.Array | None, delta: Delta) -> pa.Table | None:
        """要退役的物品与它们的 ID；不在表里、或又在增量里的，都是说不清的要求。"""
        if retire is None or not len(retire):
            return None
        items = self._catalog.as_ids(retire).unique()
        ids = self._catalog.find(items)
        if bool((ids[:, 0] < 0).any()):
            lost = items[int((ids[:, 0] < 0).argmax())].as_py()
            raise InputError(f"--retire names item_id {lost!r}, which is not in the catalog; drop it from the list")
        twice = _match(items, delta.items)
        if bool((twice >= 0).any()):
            both = items[int((twice >= 0).argmax())].as_py()
            raise InputError(f"item_id {both!r} is in the features and in --retire; drop it from one of them")
        return id_rows(items, ids, self._levels)


def read_ids(path: Path, column: str) -> pa.Array:
    """读一个只为取编号的 Parquet 文件，例如 `--retire`。

    Raises:
        ValueError: 不是 Parquet，或没有这一列。
        FileNotFoundError: 文件不存在。
    """
    if not path.is_file():
        raise FileNotFoundError(f"ids file {str(path)!r} does not exist; give a .parquet file with a column {column!r}")
    try:
        table = pq.read_table(path, columns=[column], page_checksum_verification=True)
        return table.column(column).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{path} has no readable column {column!r}: {one_line(error)}; choose one with --id-column"
        ) from None


def _match(items: pa.Array, pool: pa.Array) -> np.ndarray:
    """每个编号在 pool 里第一次出现的下标，没有的是 −1。"""
    found = pc.index_in(items, value_set=pool)
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _rows_in(rows: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(r, L') 的每一行是否出现在 (m, L') 里。"""
    wanted = set(map(tuple, pool.tolist()))
    return np.array([tuple(row) in wanted for row in rows.tolist()], bool)
