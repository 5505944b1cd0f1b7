"""物品表的一代又一代：新物品得到 ID，老物品的 ID 一个字节不变，退役的编号不马上再用。

形状字母：n 为这次增量里的物品数，L 为层数，L' 为 ID 的位数。

每次更新写一代新的：新分片、受退役影响的分片、退役表、索引都先写好落盘，最后原子地换清单；读者看到的要么是旧的一代，要么是新的
一代，都是完整的。换下来的文件再留两次更新，正开着旧一代的读者才读得完。更新途中被杀，清单还是旧的，重跑即可。

增量装进内存（编码与编号，不含向量的全部候选）；物品表本身只流过。
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algorithm.interfaces import SemanticIDModel

from ...code_keys import Packing, comparable
from ...files.durable import lock_folder
from ...files.progress import OnProgress
from ...files.source import VectorSource
from ...files.vectors import check_unique_ids
from ..encoding.shards import encode_block, plan_shards, read_vectors
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY
from ..format.manifest import SUFFIX, CatalogError, files_of, find_stranger, write_manifest
from ..format.parts import full_ids_of, id_table, part_name, read_checked, write_table
from ..index.build import build_index
from ..table import Catalog
from ..unique.assign import Choices, nearest_free
from ..unique.candidates import candidates_of, errors_of

__all__ = ["check_model", "read_ids", "update_catalog"]

_GENERATION = "retired_in"


class _Graveyard(NamedTuple):
    """退役的物品：编号、ID (r, L')、哪一代退役的 (r,)。"""

    items: pa.Array
    ids: np.ndarray
    generation: np.ndarray

    def take(self, keep: np.ndarray) -> _Graveyard:
        """留下这些行。"""
        return _Graveyard(self.items.take(pa.array(keep)), self.ids[keep], self.generation[keep])


class _Delta(NamedTuple):
    """增量里的物品，按 item_id 排好。"""

    items: pa.Array
    rows: np.ndarray  # (n,) 在来源里的行号
    codes: np.ndarray  # (n, L) 现在编码会得到的


def update_catalog(
    model: SemanticIDModel,
    folder: str | os.PathLike[str],
    source: VectorSource | None,
    *,
    retire: pa.Array | None = None,
    reuse_after: int | None = None,
    block_rows: int = 16384,
    rows_per_part: int = 1 << 20,
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
        FileExistsError: 另一个进程正在更新，或目录里有别人的文件。
    """
    if reuse_after is not None and (isinstance(reuse_after, bool) or not isinstance(reuse_after, int)):
        raise TypeError(f"reuse_after must be an int or None, got {type(reuse_after).__name__} ({reuse_after!r})")
    if reuse_after is not None and reuse_after < 1:
        raise ValueError(f"reuse_after={reuse_after} is out of range; use an int >= 1, or None to never reuse")
    if source is None and (retire is None or not len(retire)):
        raise ValueError("nothing to do: give features to add, ids to retire, or both")
    path = Path(os.path.realpath(folder))
    Catalog.open(path)  # 先确认它是物品表，再上锁
    lock = lock_folder(path)
    try:
        catalog = Catalog.open(path)
        check_model(catalog, model)
        catalog.verify()
        _sweep(path, catalog)
        if source is not None and source.dim != model.embedding_dim:
            raise ValueError(
                f"features {source.description} has width {source.dim}, but the model was built with "
                f"embedding_dim={model.embedding_dim}; use the features of that model"
            )
        try:
            work = _Update(model, catalog, source, reuse_after, block_rows)
            return work.run(retire, rows_per_part, rows_in_memory, progress)
        except BaseException:
            _sweep(path, Catalog.open(path))  # 重新打开：若恰在换清单之后被打断，新的一代已经算数
            raise
    finally:
        os.close(lock)


def check_model(catalog: Catalog, model: SemanticIDModel) -> None:
    """只认写它的那个模型：别的模型的编码与表里的没有可比性。"""
    if catalog.fingerprint != model.fingerprint():
        raise CatalogError(
            f"catalog {str(catalog.folder)!r} was written by another model (fingerprint {catalog.fingerprint[:12]}…, "
            f"this one is {model.fingerprint()[:12]}…); use the model that wrote it, or move the catalog to the new "
            "one with `semid migrate`"
        )


def _sweep(path: Path, catalog: Catalog) -> None:
    """删掉这一代与上一代都不用的文件：更早的一代，以及中途被杀留下的；绝不碰别人的文件。"""
    stranger = find_stranger(path)
    if stranger is not None:
        raise FileExistsError(f"catalog folder {str(path)!r} holds {stranger!r}, not ours; move it away")
    keep = {entry["name"] for entry in files_of(catalog.manifest)} | {"MANIFEST.json"}
    keep |= set(catalog.manifest.get("previous", []))
    for leftover in path.iterdir():
        if leftover.name in keep:
            continue
        if leftover.is_dir():
            for inner in leftover.iterdir():
                inner.unlink()
            leftover.rmdir()
        else:
            leftover.unlink()


class _Update:
    """一次更新的中间状态。"""

    def __init__(
        self,
        model: SemanticIDModel,
        catalog: Catalog,
        source: VectorSource | None,
        reuse_after: int | None,
        block_rows: int,
    ) -> None:
        self.model, self.catalog, self.source, self.block_rows = model, catalog, source, block_rows
        self.generation = catalog.generation + 1
        self.levels = len(catalog.codebook_sizes)
        self.reuse_after = reuse_after
        self.graveyard = _read_graveyard(catalog)

    def run(
        self,
        retire: pa.Array | None,
        rows_per_part: int,
        rows_in_memory: int,
        progress: OnProgress | None,
    ) -> Dict[str, Any]:
        """增量 → 新的一代。"""
        catalog = self.catalog
        delta = self._read_delta(progress)
        leaving = self._leaving(retire, delta)
        known = catalog.find(delta.items)  # (n, L')
        here = known[:, 0] >= 0
        drifted = (known[here, : self.levels] != delta.codes[here]).any(axis=1)
        grave = _match(delta.items.filter(pa.array(~here)), self.graveyard.items)
        back = np.flatnonzero(~here)[grave >= 0]
        fresh = np.flatnonzero(~here)[grave < 0]
        ids = np.full((len(delta.items), len(catalog.id_columns)), -1, np.int32)
        ids[here] = known[here]
        ids[back] = self.graveyard.ids[grave[grave >= 0]]
        # 拿回去的不再是退役；其余的按年限保留
        rest = np.setdiff1d(np.arange(len(self.graveyard.items)), grave[grave >= 0])
        graveyard = self.graveyard.take(rest)
        ids[fresh] = self._new_ids(delta, fresh, np.concatenate([graveyard.ids[self._reserved(graveyard)], ids[back]]))
        # 过了年限、又给了别人的，原主再也拿不回来
        taken = _rows_in(graveyard.ids, ids[fresh] if catalog.unique != "none" else ids[:0])
        graveyard = _bury(graveyard.take(np.flatnonzero(~taken)), leaving, self.generation)
        joining = np.flatnonzero(~here)
        joining = joining[np.argsort(delta.rows[joining], kind="stable")]  # 新分片里的行序同来源
        manifest = self._write(delta, ids, joining, leaving, graveyard, rows_per_part, rows_in_memory, {
            "num_added": len(fresh),
            "num_kept": int(here.sum()),
            "num_readded": len(back),
            "num_retired": 0 if leaving is None else leaving.num_rows,
        })  # fmt: skip
        return {
            "output": os.fspath(catalog.folder),
            "num_items": manifest["num_items"],
            **manifest["history"][-1],
            "num_reserved": len(graveyard.items),
            "drifted_rate": float(drifted.mean()) if here.any() else None,
        }

    def _read_delta(self, progress: OnProgress | None) -> _Delta:
        """编码增量，按 item_id 排好。"""
        if self.source is None:
            none = np.zeros((0, self.levels), np.int32)
            return _Delta(pa.array([], self.catalog.id_type), np.zeros(0, np.int64), none)
        check_unique_ids(self.source)
        ids, codes = [], []
        for block in self.source.blocks(self.block_rows):
            ids.append(self.catalog.as_ids(block.ids))
            codes.append(encode_block(self.model, block))
            if progress is not None:
                progress(block.start + len(block.ids), self.source.num_rows)
        items = pa.concat_arrays(ids)
        order = _order(items)
        return _Delta(items.take(pa.array(order)), order, np.concatenate(codes)[order])

    def _leaving(self, retire: pa.Array | None, delta: _Delta) -> pa.Table | None:
        """要退役的物品与它们的 ID；不在表里、或又在增量里的，都是说不清的要求。"""
        if retire is None or not len(retire):
            return None
        items = self.catalog.as_ids(retire).unique()
        ids = self.catalog.find(items)
        if bool((ids[:, 0] < 0).any()):
            lost = items[int((ids[:, 0] < 0).argmax())].as_py()
            raise ValueError(f"--retire names item_id {lost!r}, which is not in the catalog; drop it from the list")
        twice = _match(items, delta.items)
        if bool((twice >= 0).any()):
            both = items[int((twice >= 0).argmax())].as_py()
            raise ValueError(f"item_id {both!r} is in the features and in --retire; drop it from one of them")
        return _id_rows(items, ids, self.levels)

    def _reserved(self, graveyard: _Graveyard) -> np.ndarray:
        """退役表里还不许再用的行。"""
        if self.reuse_after is None:
            return np.arange(len(graveyard.items))
        return np.flatnonzero(self.generation - graveyard.generation < self.reuse_after)

    def _new_ids(self, delta: _Delta, fresh: np.ndarray, reserved: np.ndarray) -> np.ndarray:
        """按策略给新物品 (m,) 安排 ID；`reserved` (r, L') 是不在表里、但也不许用的 ID。"""
        own = delta.codes[fresh]
        if self.catalog.unique == "none" or not len(fresh):
            return np.zeros((0, len(self.catalog.id_columns)), np.int32) if not len(fresh) else own
        if self.catalog.unique == "suffix":
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
        if not self.catalog.manifest["index"]:
            return set()
        start, stop = self.catalog.index.spans(np.array([code], np.int64))
        return set(self.catalog.index.ids_at(np.arange(start[0], stop[0]))[:, -1].tolist())

    def _free_codes(self, delta: _Delta, fresh: np.ndarray, own: np.ndarray, reserved: np.ndarray) -> np.ndarray:
        """nearest-free：表里的与保留的都不许占；要安置的只有与它们或与彼此冲突的新物品。"""
        sizes, packing = self.catalog.codebook_sizes, Packing(self.catalog.codebook_sizes)
        blocked = np.unique(comparable(packing.pack(reserved)))
        keys = comparable(packing.pack(own))
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        contend = self._occupied(own, blocked, packing) | (counts[inverse] > 1)
        alone = np.unique(keys[~contend])
        where = np.flatnonzero(contend)
        out = own.copy()
        if not len(where):
            return out
        assert self.source is not None
        source, shards = self.source, plan_shards(self.source.num_rows, 1 << 16)
        rows = delta.rows[fresh[where]]
        vectors = read_vectors(source, rows, shards, self.block_rows)
        price = self.catalog.manifest["history"][0].get("prefix_price", "1.0")
        wide = not math.isinf(float(price))

        def fetch(items: np.ndarray, num: int) -> Choices:
            step = max(1, 16384 // num)
            parts = []
            for i in range(0, len(items), step):
                some = items[i : i + step]
                found = candidates_of(self.model, vectors[some], own[where[some]], num, wide)
                parts.append(found._replace(item=some[found.item]))
            return Choices(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))

        def occupied(codes: np.ndarray) -> np.ndarray:
            return self._occupied(codes, blocked, packing) | np.isin(comparable(packing.pack(codes)), alone)

        out[where] = nearest_free(
            own[where],
            errors_of(self.model, vectors, own[where])[:, -1],
            fetch,
            occupied,
            sizes,
            float(price),
            lambda i: delta.items[int(fresh[where[i]])].as_py(),
        ).codes
        return out

    def _occupied(self, codes: np.ndarray, blocked: np.ndarray, packing: Packing) -> np.ndarray:
        """(E, L) 编码 → 是否在表里或被保留。"""
        taken = np.isin(comparable(packing.pack(codes)), blocked)
        if self.catalog.manifest["index"]:
            taken |= self.catalog.index.first_position(codes.astype(np.int64)) >= 0
        return taken

    def _write(
        self,
        delta: _Delta,
        ids: np.ndarray,
        joining: np.ndarray,
        leaving: pa.Table | None,
        graveyard: _Graveyard,
        rows_per_part: int,
        rows_in_memory: int,
        counts: Dict[str, int],
    ) -> Dict[str, Any]:
        """分片、退役表、索引，最后是清单。"""
        old, folder = self.catalog.manifest, self.catalog.folder
        number, parts = old["next_part"], []
        gone = None if leaving is None else leaving.column("item_id").combine_chunks()
        for entry, table in zip(old["parts"], self.catalog.tables(), strict=True):
            if gone is not None:
                stays = pc.invert(pc.is_in(table.column("item_id"), value_set=gone))
                kept = table.filter(stays)
                if kept.num_rows != table.num_rows:
                    if kept.num_rows:
                        parts.append(write_table(folder, part_name(number), kept))
                        number += 1
                    continue
            parts.append(entry)
        for shard in plan_shards(len(joining), rows_per_part):
            some = joining[shard.start : shard.stop]
            table = _id_rows(delta.items.take(pa.array(some)), ids[some], self.levels)
            parts.append(write_table(folder, part_name(number), table))
            number += 1
        retired = None
        if len(graveyard.items):
            table = _id_rows(graveyard.items, graveyard.ids, self.levels)
            table = table.append_column(_GENERATION, pa.array(graveyard.generation.astype(np.int32)))
            retired = write_table(folder, f"retired-{self.generation:05d}.parquet", table)
        total = sum(part["rows"] for part in parts)
        max_suffix = max([old["max_suffix"], *(ids[:, -1].tolist() if SUFFIX in self.catalog.id_columns else [])])
        fields = {
            **{key: value for key, value in old.items() if key not in ("format", "format_version")},
            "generation": self.generation,
            "num_items": total,
            "max_suffix": max_suffix,
            "parts": parts,
            "index": self._index(parts, total, max_suffix, rows_in_memory) if total else {},
            "retired": retired,
            "next_part": number,
            "previous": sorted(entry["name"] for entry in files_of(old)),
            "history": [
                *old["history"],
                {
                    "generation": self.generation,
                    "features": None if self.source is None else self.source.description,
                    **counts,
                },
            ],
        }
        return write_manifest(folder, fields)

    def _index(
        self, parts: List[Dict[str, Any]], total: int, max_suffix: int, rows_in_memory: int
    ) -> Dict[str, Dict[str, Any]]:
        """新一代的索引；行数、编号与 ID 的唯一性在这里再查一遍。"""
        catalog = self.catalog
        sizes = [*catalog.codebook_sizes, *([max_suffix + 1] if SUFFIX in catalog.id_columns else [])]
        staging = catalog.folder / "staging"
        staging.mkdir()
        entries = build_index(
            lambda: (read_checked(catalog.folder, part, catalog.manifest["columns"]) for part in parts),
            total,
            Packing(sizes),
            catalog.folder,
            staging,
            self.generation,
            unique=catalog.unique != "none",
            rows_in_memory=rows_in_memory,
        )
        staging.rmdir()
        return entries


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
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} has no readable column {column!r}: {reason}; choose one with --id-column") from None


def _read_graveyard(catalog: Catalog) -> _Graveyard:
    """读退役表；没有就是空的。"""
    entry = catalog.manifest["retired"]
    if entry is None:
        none = np.zeros((0, len(catalog.id_columns)), np.int32)
        return _Graveyard(pa.array([], catalog.id_type), none, np.zeros(0, np.int64))
    table = read_checked(catalog.folder, entry, [*catalog.manifest["columns"], _GENERATION])
    generation = table.column(_GENERATION).to_numpy().astype(np.int64)
    return _Graveyard(table.column("item_id").combine_chunks(), full_ids_of(table), generation)


def _bury(graveyard: _Graveyard, leaving: pa.Table | None, generation: int) -> _Graveyard:
    """把刚退役的加进退役表，按 item_id 排好。"""
    if leaving is not None:
        graveyard = _Graveyard(
            pa.concat_arrays([graveyard.items, leaving.column("item_id").combine_chunks()]),
            np.concatenate([graveyard.ids, full_ids_of(leaving)]),
            np.concatenate([graveyard.generation, np.full(leaving.num_rows, generation)]),
        )
    return graveyard.take(_order(graveyard.items))


def _id_rows(items: pa.Array, ids: np.ndarray, levels: int) -> pa.Table:
    """编号与 (n, L') ID 组成分片那样的表。"""
    return id_table(items, ids[:, :levels], ids[:, levels] if ids.shape[1] > levels else None)


def _match(items: pa.Array, pool: pa.Array) -> np.ndarray:
    """每个编号在 pool 里的下标，没有的是 −1。"""
    found = pc.index_in(items, value_set=pool)
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _order(items: pa.Array) -> np.ndarray:
    """按 item_id 排好的下标。"""
    keyed = items.cast(pa.binary()) if pa.types.is_fixed_size_binary(items.type) else items
    return pc.sort_indices(keyed).to_numpy().astype(np.int64)


def _rows_in(rows: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(r, L') 的每一行是否出现在 (m, L') 里。"""
    wanted = set(map(tuple, pool.tolist()))
    return np.array([tuple(row) in wanted for row in rows.tolist()], bool)
