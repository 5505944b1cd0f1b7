"""一次编码怎样切成分片，一个分片怎样编码：`plan_shards` → `encode_shard` → `seal.seal`，单机与集群用的是同样的函数。

形状字母：N 为物品数，B 为一块的行数，R 为一个分片的行数，L 为层数，D 为特征维度。

一个分片只由（模型、来源、行的范围）决定，写成一个文件：临时文件 → fsync → 改名。所以谁来算、算几遍、在哪台机器上，
文件都逐字节相同；已经写好的就不必再算，这就是续跑。
"""

from __future__ import annotations

import json
import math
import os
import uuid
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algorithm.interfaces import SemanticIDModel

from ...files.durable import sync_folder, write_synced
from ...files.progress import OnProgress
from ...files.source import Block, VectorSource, pick_rows
from ...limits import check_int
from ..format.manifest import CatalogError
from ..format.parts import check_range, codes_of, id_table, read_staged
from ..unique.assign import Choices
from ..unique.candidates import candidates_of, errors_of

__all__ = [
    "DEFAULT_ROWS_PER_PART",
    "Shard",
    "candidate_name",
    "encode_block",
    "encode_candidate_shard",
    "encode_shard",
    "is_done",
    "note_of",
    "plan_shards",
    "read_candidates",
    "read_vectors",
    "sampled_errors",
    "shard_name",
]

DEFAULT_ROWS_PER_PART = 1 << 20
_NOTE = b"semid"
_MANY_ROWS = 1 << 16


class Shard(NamedTuple):
    """第 `number` 个分片是来源的 [start, stop) 行。"""

    number: int
    start: int
    stop: int


def plan_shards(num_rows: int, rows_per_shard: int) -> List[Shard]:
    """把 N 行切成分片，每片 `rows_per_shard` 行，最后一片可以更短。

    Raises:
        TypeError, ValueError: `rows_per_shard` 不是 ≥ 1 的整数。

    Examples:
        >>> plan_shards(5, 2)
        [Shard(number=0, start=0, stop=2), Shard(number=1, start=2, stop=4), Shard(number=2, start=4, stop=5)]
    """
    rows_per_shard = check_int("rows_per_part", rows_per_shard, 1)
    starts = range(0, num_rows, rows_per_shard)
    return [Shard(i, start, min(start + rows_per_shard, num_rows)) for i, start in enumerate(starts)]


def encode_block(model: SemanticIDModel, block: Block) -> np.ndarray:
    """一块向量 → (B, L) int32 编码；纯函数，也可以放进 Spark 的 `mapInArrow`。"""
    import torch

    features = torch.from_numpy(block.vectors).to(model.feature_mean.device)  # (B, D)
    return model.encode_codes(features).cpu().numpy().astype(np.int32)  # (B, L)


def encode_shard(
    model: SemanticIDModel,
    source: VectorSource,
    shard: Shard,
    staging: Path,
    block_rows: int = 16384,
    progress: OnProgress | None = None,
) -> None:
    """编码一个分片，写成 `staging/shard-NNNNN.parquet`。

    文件的元数据里另记这些行逐层误差之和，`semid drift` 日后拿它作参照；行多时每 16 行抽一行。

    Args:
        model: 满足协议的模型。
        source: `open_vectors` 的结果。
        shard: `plan_shards` 给出的一片。
        staging: 放编码途中文件的目录。
        block_rows: 一次编码多少行；只影响内存与速度。
        progress: 每完成一块以（来源里的行号, 来源的行数）调用一次。

    Raises:
        ValueError: 数据有坏行。
        CatalogError: 模型交来越界的编码，或行数不符。
    """
    ids, codes, errors = [], [], []
    for block in source.blocks(block_rows, shard.start, shard.stop):
        found = encode_block(model, block)
        if found.shape != (len(block.ids), len(model.codebook_sizes)):
            raise CatalogError(f"the model returned codes of shape {found.shape} for {len(block.ids)} rows")
        check_range(found, model.codebook_sizes, "codes", block.start)
        ids.append(block.ids)
        codes.append(found)
        errors.append(sampled_errors(model, source, block, found))
        if progress is not None:
            progress(block.start + len(found), source.num_rows)
    rows = sum(map(len, codes))
    if rows != shard.stop - shard.start:
        raise CatalogError(
            f"read {shard.start + rows} rows, but {source.description} promised {source.num_rows}; "
            "do not write to it during a run"
        )
    error = np.concatenate(errors)  # (S, L)
    note = {"rows": len(error), "error_sum": [math.fsum(level.tolist()) for level in error.T]}
    table = id_table(pa.concat_arrays(ids), np.concatenate(codes))
    write_staged(staging / shard_name(shard), table, note)


def sampled_errors(model: SemanticIDModel, source: VectorSource, block: Block, codes: np.ndarray) -> np.ndarray:
    """一块里抽到的行逐层的误差 (S, L)；抽哪些行只看行号，与怎样分块无关。"""
    stride = 16 if source.num_rows > _MANY_ROWS else 1
    sampled = np.arange(-block.start % stride, len(codes), stride)
    if not len(sampled):
        return np.zeros((0, len(model.codebook_sizes)))
    return errors_of(model, block.vectors[sampled], codes[sampled])


def encode_candidate_shard(
    model: SemanticIDModel,
    source: VectorSource,
    shard: Shard,
    staging: Path,
    rows: np.ndarray,
    num: int,
    wide: bool,
    block_rows: int = 16384,
) -> None:
    """为一个分片里与别人同码的行要候选，写成 `staging/candidates-NNNNN.parquet`。

    Args:
        model: 同 `encode_shard`。
        source: 同 `encode_shard`。
        shard: 同 `encode_shard`。
        staging: 同 `encode_shard`；其中已有这个分片的编码。
        rows: (n,) 递增的行号，都在这个分片里。
        num: 每行几条候选。
        wide: 是否要别的前缀的候选。
        block_rows: 同 `encode_shard`。
    """
    own = codes_of(read_staged(staging / shard_name(shard)))
    item, codes, error = [np.zeros(0, np.int64)], [np.zeros((0, own.shape[1]), np.int32)], [np.zeros(0)]
    own_error = [np.zeros(0)]
    done = 0
    for inside, vectors in pick_rows(source, rows, block_rows, shard.start, shard.stop):
        mine = own[inside - shard.start]
        for start in range(0, len(inside), 1024):  # 候选比向量大得多，另按小块走
            part = slice(start, start + 1024)
            found = candidates_of(model, vectors[part], mine[part], num, wide)
            item.append(found.item + done)
            codes.append(found.codes)
            error.append(found.error)
            own_error.append(errors_of(model, vectors[part], mine[part])[:, -1])
            done += len(mine[part])
    columns = {"item": np.concatenate(item), "error": np.concatenate(error)}
    columns |= {f"l{i + 1}": level for i, level in enumerate(np.concatenate(codes).T)}
    note = {"rows": rows.tolist(), "own_error": np.concatenate(own_error).tolist()}
    write_staged(staging / candidate_name(shard), pa.table(columns), note)


def read_candidates(staging: Path, shard: Shard) -> tuple[np.ndarray, np.ndarray, Choices]:
    """读回 `encode_candidate_shard` 的结果：行号 (n,)、现在的误差 (n,)、候选（`item` 是这 n 行里的第几行）。"""
    table = read_staged(staging / candidate_name(shard))
    note = note_of(table)
    choices = Choices(table.column("item").to_numpy(), codes_of(table), table.column("error").to_numpy())
    return np.array(note["rows"], np.int64), np.array(note["own_error"], np.float64), choices


def read_vectors(source: VectorSource, rows: np.ndarray, shards: List[Shard], block_rows: int = 16384) -> np.ndarray:
    """取出这些行的向量 (n, D)；只读它们所在的分片。"""
    out = np.empty((len(rows), source.dim), np.float32)
    for shard in shards:
        if not ((rows >= shard.start) & (rows < shard.stop)).any():
            continue
        for block in source.blocks(block_rows, shard.start, shard.stop):
            inside = np.flatnonzero((rows >= block.start) & (rows < block.start + len(block.ids)))
            out[inside] = block.vectors[rows[inside] - block.start]
    return out


def shard_name(shard: Shard) -> str:
    """编码途中的分片文件名。"""
    return f"shard-{shard.number:05d}.parquet"


def candidate_name(shard: Shard) -> str:
    """候选文件名。"""
    return f"candidates-{shard.number:05d}.parquet"


def is_done(path: Path, rows: int | None = None) -> bool:
    """这个文件是否已经写好；文件都是原子地出现的，能读出尾部、行数对得上就是完整的。"""
    try:
        with pq.ParquetFile(path) as file:
            return rows is None or file.metadata.num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def write_staged(path: Path, table: pa.Table, note: Dict[str, Any]) -> None:
    """写一个编码途中的文件。临时名里有随机数：集群上同一分片可能有两份在写，后改名的那份内容相同。"""
    table = table.replace_schema_metadata({_NOTE: json.dumps(note).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    write_synced(temporary, sink.getvalue())
    os.replace(temporary, path)
    sync_folder(path.parent)


def note_of(table: pa.Table) -> Dict[str, Any]:
    """`write_staged` 记下的数字。"""
    return json.loads((table.schema.metadata or {}).get(_NOTE, b"{}"))
