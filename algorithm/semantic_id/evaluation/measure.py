"""量：打开的输入 → 全部指标、两张表。指标由 `metrics/records/` 的记录给出，这里只备齐它们要看的数组。

形状字母：N 物品数，L 层数。
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
import pyarrow as pa

from algorithm.interfaces import SemanticIDModel

from ..errors import InputError
from ..files.progress import OnProgress
from ..files.source import VectorSource
from ..metrics import records
from ..metrics.additive_means import additive_errors
from ..metrics.behaviour import co_consumed
from ..metrics.prefix_means import prefix_mean_errors
from ..metrics.records.measured import Labels, Measured
from .inputs import ItemFacts, source_ids
from .opening import Inputs
from .passes import NUM_QUERIES, SEED, Encoded, Seen, Surroundings, encode_all, look_around, take_codes
from .tables import choose_items, codeword_table, item_table

__all__ = ["Result", "counter", "evaluate", "figures_of", "measure", "num_rows_read"]


def evaluate(
    model: SemanticIDModel,
    source: VectorSource,
    *,
    block_rows: int = 8192,
    progress: OnProgress | None = None,
) -> Dict[str, Any]:
    """在一批特征上评估模型的重建、码本使用与冲突；总体是 `source` 的全部行，只读一遍。

    Args:
        model: 满足协议的模型。
        source: `open_vectors` 的结果。
        block_rows: 一次处理多少行；只影响内存与速度。
        progress: 每完成一块调用一次 `progress(done_rows, total_rows)`。

    Returns:
        可直接写成 JSON 的字典：一遍读得到的指标（键见 `metrics/records/`），加上 num_items、codebook_sizes、
        fingerprint、features；relative_mse 没有定义时为 None，原因在 relative_mse_reason。

    Raises:
        ValueError: 维度与模型不符，或数据有坏行。
    """
    sizes = tuple(int(size) for size in model.codebook_sizes)
    inputs = Inputs(source, model, None, sizes, False, None, None, None, None)
    encoded = _encode(inputs, block_rows, counter(source.num_rows, progress))
    measured = _measured(inputs, encoded)
    return {**figures_of(measured), **_facts(inputs, measured)}


class Result(NamedTuple):
    """一次评估量到的全部。

    Attributes:
        figures: 指标的键 → 数字。
        facts: 说明：在多少物品上、抽了多少样、怎么对齐的。
        items: 目录里的物品表。
        codewords: 目录里的码字表。
        chosen: 物品是怎样挑的。
    """

    figures: Dict[str, Any]
    facts: Dict[str, Any]
    items: pa.Table
    codewords: pa.Table
    chosen: Dict[str, Any]


def num_rows_read(inputs: Inputs) -> int:
    """总共要读多少行，供进度条用：编码、近邻各一遍，前缀平均 L 遍，没有模型时逐层平均再 L + 1 遍。"""
    passes = 2 + len(inputs.sizes) + (0 if inputs.model is not None else len(inputs.sizes) + 1)
    return passes * inputs.source.num_rows + (0 if inputs.unseen is None else inputs.unseen.num_rows)


def figures_of(measured: Measured) -> Dict[str, Any]:
    """能量的指标都量一遍，次序同 `records.METRICS`；缺了要看的东西的不在结果里。"""
    return {
        metric.key: metric.measure(measured)
        for metric in records.METRICS
        if all(getattr(measured, need) is not None for need in metric.needs)
    }


def measure(inputs: Inputs, block_rows: int, seen: Seen) -> Result:
    """读几遍特征，量出全部数字与两张表。

    Args:
        inputs: `open_inputs` 的结果。
        block_rows: 一次处理多少行。
        seen: 每读完一块以这块的行数调用。
    """
    encoded = _encode(inputs, block_rows, seen)
    prefixes = prefix_mean_errors(
        inputs.source, encoded.codes, encoded.mean, block_rows=block_rows, seed=SEED, on_block=seen
    )
    hit_rows: np.ndarray | None = None
    partners: List[np.ndarray] | None = None
    if inputs.interactions is not None:
        hit_rows, partners = co_consumed(inputs.interactions.pairs, inputs.source.num_rows, NUM_QUERIES, SEED)
    around = look_around(
        encoded, inputs.source, model=inputs.model, hit_rows=hit_rows, block_rows=block_rows, on_block=seen
    )
    measured = replace(
        _measured(inputs, encoded),
        duplicates=encoded.duplicates,
        own_deviation=encoded.own_deviation,
        prefixes=prefixes,
        neighbours=around.neighbours,
        queries=around.queries,
        labels=_labels(inputs.facts),
        pairs=None if inputs.interactions is None else inputs.interactions.pairs,
        partners=partners,
        near_features=around.hits.get("features"),
        near_reconstructions=around.hits.get("reconstruction"),
        assigned=_assigned(inputs),
        unseen=_unseen(inputs, block_rows, seen),
        training=(None if inputs.model is None else inputs.model.training_figures) or None,
    )
    facts = _facts(inputs, measured)
    facts["sampled"] = {
        "neighbour_share": len(around.queries) if len(around.queries) < measured.num_items else None,
        "embedding_hit_rate": None if hit_rows is None or len(hit_rows) < NUM_QUERIES else len(hit_rows),
        "prefix_mean_relative_mse": next((p.sampled_groups for p in prefixes if p.sampled_groups is not None), None),
    }
    return Result(figures_of(measured), facts, *_tables(inputs, encoded, measured, around))


def _encode(inputs: Inputs, block_rows: int, seen: Seen) -> Encoded:
    """编码与误差：模型编码一遍，或别人的编码加上逐层平均。"""
    if inputs.model is not None:
        return encode_all(inputs.model, inputs.source, block_rows=block_rows, on_block=seen)
    assert inputs.codes is not None
    encoded = take_codes(inputs.codes.codes, inputs.source, block_rows=block_rows)
    seen(inputs.source.num_rows)
    sums, errors = additive_errors(
        inputs.source, encoded.codes, inputs.sizes, encoded.mean, block_rows=block_rows, on_block=seen
    )
    return encoded._replace(error=sums[-1], level_errors=sums, errors=errors)


def _measured(inputs: Inputs, encoded: Encoded) -> Measured:
    """第一遍读完就有的那一半。"""
    return Measured(
        codes=encoded.codes,
        sizes=inputs.sizes,
        num_values=inputs.source.num_rows * inputs.source.dim,
        error=encoded.error,
        deviation=encoded.deviation,
        level_errors=encoded.level_errors,
    )


def counter(total: int, progress: OnProgress | None) -> Seen:
    """「又做了几行」→ `progress(done, total)`。"""
    done = 0

    def seen(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    return seen


def _unseen(inputs: Inputs, block_rows: int, seen: Seen) -> Measured | None:
    """同一个模型在没见过的物品上。"""
    if inputs.unseen is None or inputs.model is None:
        return None
    encoded = encode_all(inputs.model, inputs.unseen, block_rows=block_rows, on_block=seen)
    return _measured(inputs, encoded)


def _labels(facts: ItemFacts | None) -> Labels | None:
    """标签 → 有标签的行与它们的标签号。"""
    if facts is None or facts.labels is None:
        return None
    names = np.asarray(facts.labels.to_pylist(), dtype=object)
    known = np.array([name is not None for name in names], dtype=bool)
    return Labels(np.flatnonzero(known), np.unique(names[known].astype(str), return_inverse=True)[1].reshape(-1))


def _assigned(inputs: Inputs) -> np.ndarray | None:
    """(N, L[+1]) 物品表里的 ID，没有的整行是 −1；没有物品表为 None。

    Raises:
        ValueError: 物品表里一个物品也没有。
    """
    if inputs.catalog is None:
        return None
    ids = source_ids(inputs.source)
    full = np.concatenate([inputs.catalog.find(ids.slice(at, 1 << 17)) for at in range(0, len(ids), 1 << 17)])
    if not (full[:, 0] >= 0).any():
        raise InputError(
            f"catalog {str(inputs.catalog.folder)!r} holds none of the items of {inputs.source.description}; "
            "give the catalog of these items"
        )
    return full


def _facts(inputs: Inputs, m: Measured) -> Dict[str, Any]:
    """数字之外的说明。"""
    out: Dict[str, Any] = {
        "num_items": m.num_items,
        "codebook_sizes": list(inputs.sizes),
        "reconstruction": "additive_means" if inputs.model is None else "model",
        "relative_mse_reason": _why_no_error(inputs, m),
        "fingerprint": None if inputs.model is None else inputs.model.fingerprint(),
        "features": inputs.source.description,
    }
    if inputs.model is None:
        out["codebook_sizes_inferred"] = inputs.sizes_inferred
    if inputs.codes is not None:
        out["codes_matched_by"] = inputs.codes.matched_by
    if inputs.facts is not None:
        out["num_items_without_facts"], out["items_matched_by"] = inputs.facts.num_missing, inputs.facts.matched_by
    if m.labels is not None:
        out["num_labels"], out["num_unlabelled"] = int(m.labels.numbers.max()) + 1, m.num_items - len(m.labels.rows)
    if inputs.interactions is not None:
        out["interactions"], out["num_pairs"] = inputs.interactions.population, len(inputs.interactions.pairs)
        out["num_users"] = inputs.interactions.num_users
        out["num_unknown_interactions"] = inputs.interactions.num_unknown
    if m.assigned is not None:
        out["num_in_catalog"] = int(m.in_catalog.sum())
    if inputs.unseen is not None:
        out["unseen"], out["unseen_num_items"] = inputs.unseen.description, inputs.unseen.num_rows
    return out


def _why_no_error(inputs: Inputs, m: Measured) -> str | None:
    """相对误差为什么没有定义；有定义为 None。"""
    if m.relative_mse is not None:
        return None
    if inputs.model is None:
        return "every row equals the mean"
    if m.deviation is None:
        return "the model was never trained, so it has no training mean to compare with"
    return "every row equals the training mean"


def _tables(
    inputs: Inputs, encoded: Encoded, m: Measured, around: Surroundings
) -> Tuple[pa.Table, pa.Table, Dict[str, Any]]:
    """(items 表, codewords 表, 物品是怎样挑的)。"""
    rows, how = choose_items(encoded.codes, encoded.errors)
    facts = inputs.facts or ItemFacts(None, None, 0)
    mean_deviation = (encoded.deviation or 0.0) / m.num_items
    shares = None
    if encoded.errors is not None and mean_deviation > 0:  # 与 relative_mse 同一单位
        shares = encoded.errors / np.float32(mean_deviation)
    suffix = None
    if m.assigned is not None and m.assigned.shape[1] > m.codes.shape[1]:
        suffix = np.where(m.in_catalog, m.assigned[:, m.codes.shape[1]], 0)
    items = item_table(
        rows, source_ids(inputs.source), encoded.codes, around.plane,
        titles=facts.titles, labels=facts.labels, errors=shares, suffix=suffix,
    )  # fmt: skip
    return items, codeword_table(encoded.codes, inputs.sizes, around.plane, facts.labels), how
