"""把特征来源编码成物品表：计划 → 编码每个分片 → 去重 → 封存。

形状字母：N 为物品数，B 为一块的行数，D 为特征维度，L 为层数，n 为与别人同码的物品数。
只认 `SemanticIDModel` 协议。真正费时的两个映射（编码、要候选）由引擎去跑，默认在本进程；集群见 `encode_ray.py`。

什么时候算写完：全部写进旁边的 `OUTPUT.partial`，清单最后写，再一次改名到位。中途出错，OUTPUT 上什么也没有；
已有的旧表在新表完整之前一个字节不动。被杀之后加 `resume` 重跑：编码好的分片跳过，结果与不中断时逐字节相同。
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from algorithm.interfaces import SemanticIDModel

from ...code_keys import Packing
from ...errors import InputError
from ...files.progress import OnProgress
from ...files.source import VectorSource
from ...files.vectors import check_unique_ids
from ..format.external_sort import DEFAULT_ROWS_IN_MEMORY
from ..format.manifest import STAGING_NAME
from ..format.publish import new_catalog
from ..unique import assign
from ..unique.assign import Choices
from ..unique.candidates import candidates_of
from . import seal
from .shards import (
    DEFAULT_ROWS_PER_PART,
    Shard,
    candidate_name,
    encode_block,
    encode_candidate_shard,
    encode_shard,
    is_done,
    plan_shards,
    read_candidates,
    read_vectors,
    shard_name,
)

__all__ = ["DEFAULT_ROWS_PER_PART", "Engine", "LocalEngine", "encode_block", "encode_catalog"]

# 编号少于此数就先查重：在编码之前报错，而不是编码完才报；更多的由封存时的外部排序查
_CHECK_IDS_FIRST = 20_000_000


class Engine:
    """谁来跑那两个映射。`map` 对每个任务调用 `function(model, *job)`，逐个给出完成的任务序号。"""

    def map(self, function: Callable[..., None], jobs: Sequence[Tuple[Any, ...]]) -> Iterator[int]:
        """跑完全部任务；任何一个失败就抛异常。"""
        raise NotImplementedError

    def close(self) -> None:
        """放掉占着的东西；之后不再用。"""


class LocalEngine(Engine):
    """就在本进程里依次跑。"""

    def __init__(self, model: SemanticIDModel) -> None:
        self._model = model

    def map(self, function: Callable[..., None], jobs: Sequence[Tuple[Any, ...]]) -> Iterator[int]:
        """依次跑。"""
        for i, job in enumerate(jobs):
            function(self._model, *job)
            yield i


def encode_catalog(
    model: SemanticIDModel,
    source: VectorSource,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    unique: str = "none",
    prefix_price: float = assign.DEFAULT_PREFIX_PRICE,
    block_rows: int = 16384,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
    rows_in_memory: int = DEFAULT_ROWS_IN_MEMORY,
    engine: Engine | None = None,
    progress: OnProgress | None = None,
) -> Dict[str, Any]:
    """编码整个来源并写成物品表。

    Args:
        model: 满足协议的模型。
        source: `open_vectors` 的结果。
        output: 物品表目录；须不存在或为空。
        overwrite: 允许替换已有的物品表（只替换物品表，别的目录一律拒绝）。
        resume: 接着上次被打断的编码；没有可接的就从头开始。出错时也留着已编码的分片。
        unique: 去重策略，none、suffix 或 nearest-free，见 `catalog/unique/assign.py`。
        prefix_price: nearest-free 离开自己前缀的价格；inf 则只换最后一层。
        block_rows: 一次编码多少行；只影响内存与速度，不影响结果。
        rows_per_part: 一个分片多少行。
        rows_in_memory: 外部排序一桶大约多少行；只影响内存。
        engine: 谁来跑；None 就在本进程。
        progress: 每完成一块调用一次 `progress(done_rows, total_rows)`；别的引擎则每完成一片。

    Returns:
        可直接写成 JSON 的摘要：output, num_items, num_parts, bytes, codebook_sizes, fingerprint, features, unique，
        以及去重的数字：num_contenders（与别人同码的物品数），nearest-free 另有 num_moved、num_prefix_changed、
        added_mse（新增误差之和 / (N·D)，隐空间）、num_greedy。

    Raises:
        FileExistsError: 输出已存在而没有 overwrite，或它不是物品表；另一个进程在写；运行途中别人动过它（写好的一份留在
            `OUTPUT.partial`）。
        ValueError: 维度不符、编号重复、数据有坏行，或要接着的那次编码参数不同。
        NoFreeCodeError: nearest-free 没有码可用。
        OSError: 磁盘满等；此时 output 上什么也没有（旧表还在）。
    """
    target = Path(os.path.realpath(output))  # 若是符号链接，换的是它指向的目录，而不是链接本身
    if source.dim != model.embedding_dim:
        raise InputError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use features of that width or train a new model"
        )
    assign.check_policy(unique, prefix_price)
    shards = plan_shards(source.num_rows, rows_per_part)
    plan = _plan(model, source, rows_per_part, unique, prefix_price)
    with new_catalog(target, plan, overwrite=overwrite, resume=resume) as folder:
        if source.num_rows <= _CHECK_IDS_FIRST:
            check_unique_ids(source)
        staging = folder / STAGING_NAME
        engine = LocalEngine(model) if engine is None else engine
        try:
            _encode_shards(engine, source, shards, staging, block_rows, progress)
            settled = _settle(engine, model, source, shards, staging, unique, prefix_price, block_rows, rows_in_memory)
        finally:
            engine.close()
        manifest = seal.seal(
            folder,
            staging,
            shards,
            sizes=model.codebook_sizes,
            fingerprint=model.fingerprint(),
            features=source.description,
            unique=unique,
            dim=source.dim,
            rows_in_memory=rows_in_memory,
            **settled,
        )
    return {"output": os.fspath(output), **_summary(manifest), "unique": unique, **settled["figures"]}


def _plan(
    model: SemanticIDModel, source: VectorSource, rows_per_part: int, unique: str, prefix_price: float
) -> Dict[str, Any]:
    """结果由什么决定：续跑时须全同。"""
    return {
        "model_fingerprint": model.fingerprint(),
        "features": source.description,
        "stamp": source.stamp,
        "rows_per_part": int(rows_per_part),
        "unique": unique,
        "prefix_price": str(float(prefix_price)),
    }


def _summary(manifest: Dict[str, Any]) -> Dict[str, Any]:
    """清单里值得说的。"""
    return {
        "num_items": manifest["num_items"],
        "num_parts": len(manifest["parts"]),
        "bytes": sum(part["bytes"] for part in manifest["parts"]),
        "codebook_sizes": manifest["codebook_sizes"],
        "fingerprint": manifest["model_fingerprint"],
        "features": manifest["features"],
    }


def _encode_shards(
    engine: Engine,
    source: VectorSource,
    shards: Sequence[Shard],
    staging: Path,
    block_rows: int,
    progress: OnProgress | None,
) -> None:
    """编码还没有编码的分片。"""
    pending = [s for s in shards if not is_done(staging / shard_name(s), s.stop - s.start)]
    done = source.num_rows - sum(s.stop - s.start for s in pending)
    if isinstance(engine, LocalEngine) and progress is not None:
        # 在本进程里可以逐块报进度；回调不能送到别的机器上去
        skipped = {s.number: done + sum(p.stop - p.start for p in pending if p.number < s.number) for s in pending}
        jobs = [
            (source, s, staging, block_rows, _report(progress, skipped[s.number] - s.start, source.num_rows))
            for s in pending
        ]
        for _ in engine.map(encode_shard, jobs):
            pass
        return
    for i in engine.map(encode_shard, [(source, s, staging, block_rows) for s in pending]):
        done += pending[i].stop - pending[i].start
        if progress is not None:
            progress(done, source.num_rows)


def _report(progress: OnProgress, offset: int, total: int) -> OnProgress:
    """一片之内的 (来源里的行号, 来源的行数) → 全部片的 (已完成行数, 总行数)。"""
    return lambda row, _rows: progress(row + offset, total)


def _settle(
    engine: Engine,
    model: SemanticIDModel,
    source: VectorSource,
    shards: Sequence[Shard],
    staging: Path,
    unique: str,
    prefix_price: float,
    block_rows: int,
    rows_in_memory: int,
) -> Dict[str, Any]:
    """按策略去重，给出 `seal` 要的 suffix、moves 与 figures。"""
    sizes = tuple(model.codebook_sizes)
    if unique == "none":
        return {"figures": {}}
    if unique == "suffix":
        suffix, figures = seal.assign_suffixes(staging, shards, sizes, rows_in_memory)
        return {"suffix": suffix, "figures": figures}
    found = seal.find_contenders(staging, shards, sizes, rows_in_memory)
    wide = not math.isinf(prefix_price)
    own_error, first = _first_candidates(engine, source, shards, staging, found.rows, wide, block_rows)

    def fetch(items: np.ndarray, num: int) -> Choices:
        if num == assign.FIRST_CANDIDATES:
            return first
        vectors = read_vectors(source, found.rows[items], list(shards), block_rows)
        parts = [
            candidates_of(model, vectors[i : i + 64], found.codes[items[i : i + 64]], num, wide)
            for i in range(0, len(items), 64)
        ]
        shifted = [part._replace(item=items[part.item + 64 * i]) for i, part in enumerate(parts)]
        return Choices(*(np.concatenate(pair) for pair in zip(*shifted, strict=True)))

    placement = assign.nearest_free(
        found.codes,
        own_error,
        fetch,
        found.occupied(Packing(sizes)),
        sizes,
        prefix_price,
        lambda i: found.items[i].as_py(),
    )
    figures = {**placement.figures, "prefix_price": str(float(prefix_price))}  # JSON 没有 inf，所以写成字符串
    figures["added_mse"] = figures.pop("added_error") / (source.num_rows * source.dim)
    return {"moves": (found.rows, placement), "figures": figures}


def _first_candidates(
    engine: Engine,
    source: VectorSource,
    shards: Sequence[Shard],
    staging: Path,
    rows: np.ndarray,
    wide: bool,
    block_rows: int,
) -> Tuple[np.ndarray, Choices]:
    """第一批候选：按分片去要（引擎来跑，写成文件，续跑时跳过），再拼回按 item_id 排的次序。"""
    order = np.argsort(rows, kind="stable")
    by_row = rows[order]
    jobs, used = [], []
    for shard in shards:
        low, high = np.searchsorted(by_row, [shard.start, shard.stop])
        if low < high:
            used.append(shard)
            if not is_done(staging / candidate_name(shard)):
                jobs.append((source, shard, staging, by_row[low:high], assign.FIRST_CANDIDATES, wide, block_rows))
    for _ in engine.map(encode_candidate_shard, jobs):
        pass
    own_error = np.zeros(len(rows))
    parts: List[Choices] = [Choices(np.zeros(0, np.int64), np.zeros((0, 1), np.int32), np.zeros(0))]
    for shard in used:
        shard_rows, errors, choices = read_candidates(staging, shard)
        slot = order[np.searchsorted(by_row, shard_rows)]  # 这几行在 item_id 次序里排第几
        own_error[slot] = errors
        parts.append(choices._replace(item=slot[choices.item]))
    parts = parts[1:] or parts
    return own_error, Choices(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))
