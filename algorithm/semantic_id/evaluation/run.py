"""一次评估：打开输入、量、体检、落盘；参数进，可写成 JSON 的字典出，不打印。

一次评估读特征几遍：编码一遍，前缀平均 L 遍，近邻与地图一遍；都是流式的，内存见 `measure.py`。模型与物品表由调用者
给出打开它们的函数，这里只认协议。
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pyarrow as pa

from .. import __version__
from ..files.progress import Progress
from ..metrics import codes as metrics
from ..metrics.meaning import neighbour_share, prefix_chance, prefix_groups
from . import measure
from .folder import check_evaluation_folder, write_evaluation_folder
from .inputs import ItemFacts, source_ids
from .legend import METRIC_KEYS, legend_of
from .opening import Inputs, Request, open_inputs
from .tables import choose_items, codeword_table, item_table
from .verdicts import judge_health

__all__ = ["run_evaluation"]

_FACTS = (
    "reconstruction", "relative_mse_reason", "num_labels", "num_unlabelled", "num_items_without_facts", "num_pairs",
    "num_users", "num_unknown_interactions", "interactions", "unseen", "unseen_num_items", "codebook_sizes_inferred",
    "num_in_catalog",
)  # fmt: skip


def run_evaluation(
    request: Request,
    *,
    block_rows: int = 8192,
    output: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Dict[str, Any]:
    """评估一个模型，或别人的编码。

    Args:
        request: 评估什么，见 `Request`。
        block_rows: 一次处理多少行；只影响内存与速度。
        output: 评估目录；None 则不写。
        overwrite: 允许替换已有的评估。
        progress: 是否显示进度。

    Returns:
        全部指标（键见 `legend.py`），加上 verdicts、sampled、codebook_sizes、fingerprint、features、output。

    Raises:
        FileExistsError, FileNotFoundError, TypeError, ValueError: 见各扇门；出错时什么也没写。
    """
    if output is not None:
        check_evaluation_folder(output, overwrite)
    inputs = open_inputs(request)
    num_passes = 2 + len(inputs.sizes) + (0 if inputs.model is not None else len(inputs.sizes) + 1)
    num_rows = num_passes * inputs.source.num_rows + (inputs.unseen.num_rows if inputs.unseen is not None else 0)
    with Progress(progress) as bar, bar.task("evaluate", num_rows) as report:
        done = 0

        def seen(rows: int) -> None:
            nonlocal done
            done += rows
            report(done, num_rows)

        result, tables = _measure(inputs, block_rows, seen)
    training = {} if inputs.model is None else inputs.model.training_figures
    verdicts = [verdict._asdict() for verdict in judge_health(result, training)]
    result = {**result, "verdicts": verdicts}
    if output is not None:
        _write(output, result, *tables)
        result["output"] = os.fspath(output)
    return result


def _measure(inputs: Inputs, block_rows: int, seen: measure.Seen) -> Tuple[Dict[str, Any], Tuple[pa.Table, ...]]:
    """量出全部数字与两张表。"""
    source, model, sizes = inputs.source, inputs.model, inputs.sizes
    if model is not None:
        encoded = measure.encode_all(model, source, block_rows=block_rows, on_block=seen)
    else:
        assert inputs.codes is not None
        encoded = measure.take_codes(inputs.codes, source, block_rows=block_rows)
        seen(source.num_rows)
    codes, errors = encoded.codes, encoded.errors
    means, sampled_groups = measure.judge_prefix_means(encoded, source, block_rows=block_rows, on_block=seen)
    result = {**encoded.figures, **means, **measure.judge_codes(codes, sizes)}
    result["duplicate_rate"] = encoded.duplicates / source.num_rows
    hit_rows: np.ndarray | None = None
    partners: List[np.ndarray] = []
    if inputs.interactions is not None:
        hit_rows, partners = measure.hit_queries(inputs.interactions.pairs, source.num_rows)
    around = measure.look_around(encoded, source, model=model, hit_rows=hit_rows, block_rows=block_rows, on_block=seen)
    if around.neighbours is not None:
        result["neighbour_share"] = neighbour_share(codes, around.neighbours, around.queries)
        result["prefix_chance"] = prefix_chance(codes)
    result.update(_facts_figures(inputs, codes))
    if inputs.interactions is not None:
        result.update(measure.judge_behaviour(codes, inputs.interactions.pairs, partners, around))
    if model is None:
        additive, errors = measure.judge_additive(encoded, source, sizes, block_rows=block_rows, on_block=seen)
        result.update(additive)
        result["codebook_sizes_inferred"] = tuple(codes.max(axis=0) + 1) == sizes
    assigned, suffix = _assigned(inputs, codes)
    result.update(assigned)
    result.update(_unseen(inputs, codes, result["relative_mse"], block_rows, seen))
    result["sampled"] = {
        "neighbour_share": len(around.queries) if len(around.queries) < source.num_rows else None,
        "embedding_hit_rate": None if hit_rows is None or len(hit_rows) < measure.NUM_QUERIES else len(hit_rows),
        "prefix_mean_relative_mse": sampled_groups,
    }
    result["fingerprint"] = None if model is None else model.fingerprint()
    result["features"] = source.description
    return result, _tables(inputs, encoded, around, errors, suffix)


def _facts_figures(inputs: Inputs, codes: np.ndarray) -> Dict[str, Any]:
    """标签、行为的说明、训练时的数字。"""
    out: Dict[str, Any] = {}
    if inputs.facts is not None:
        out["num_items_without_facts"] = inputs.facts.num_missing
        if inputs.facts.labels is not None:
            out.update(measure.judge_labels(codes, inputs.facts.labels.to_pylist()))
    if inputs.interactions is not None:
        out["interactions"] = inputs.interactions.population
        out["num_users"] = inputs.interactions.num_users
        out["num_unknown_interactions"] = inputs.interactions.num_unknown
    if inputs.model is not None and inputs.model.training_figures:
        training = inputs.model.training_figures
        out["training_relative_mse"] = training.get("relative_mse")
        out["training_holdout_relative_mse"] = training.get("holdout_relative_mse")
    return out


def _assigned(inputs: Inputs, codes: np.ndarray) -> Tuple[Dict[str, Any], np.ndarray | None]:
    """物品表里去重之后的 ID；返回数字与去重位（没有则为 None）。"""
    if inputs.catalog is None:
        return {}, None
    ids = source_ids(inputs.source)
    full = np.concatenate(
        [inputs.catalog.find(ids.slice(at, 1 << 17)) for at in range(0, len(ids), 1 << 17)]
    )  # (N, L[+1])，没有的整行是 −1
    known = full[:, 0] >= 0
    if not known.any():
        raise ValueError(
            f"catalog {str(inputs.catalog.folder)!r} holds none of the items of {inputs.source.description}; "
            "give the catalog of these items"
        )
    levels = codes.shape[1]
    figures = {
        "num_in_catalog": int(known.sum()),
        "num_not_in_catalog": int((~known).sum()),
        "assigned_collision_rate": metrics.collision_rate(full[known]),
        "assigned_changed_rate": float((full[known, :levels] != codes[known]).any(axis=1).mean()),
    }
    suffix = np.where(known, full[:, levels], 0) if full.shape[1] > levels else None
    return figures, suffix


def _unseen(
    inputs: Inputs, codes: np.ndarray, seen_error: float | None, block_rows: int, on_block: measure.Seen
) -> Dict[str, Any]:
    """泛化：同一个模型在没见过的物品上。"""
    if inputs.unseen is None or inputs.model is None:
        return {}
    new = measure.encode_all(inputs.model, inputs.unseen, block_rows=block_rows, on_block=on_block)
    error = new.figures["relative_mse"]
    known = []
    for length in range(1, codes.shape[1] + 1):
        groups = prefix_groups(np.concatenate([codes, new.codes]), length)
        known.append(float(np.isin(groups[len(codes) :], groups[: len(codes)]).mean()))
    return {
        "unseen": inputs.unseen.description,
        "unseen_num_items": inputs.unseen.num_rows,
        "unseen_relative_mse": error,
        "unseen_collision_rate": metrics.collision_rate(new.codes),
        "unseen_known_prefix_rate": known,
        "generalisation_ratio": error / seen_error if error is not None and seen_error else None,
    }


def _tables(
    inputs: Inputs,
    encoded: measure.Encoded,
    around: measure.Surroundings,
    errors: np.ndarray | None,
    suffix: np.ndarray | None,
) -> Tuple[Any, ...]:
    """(items 表, codewords 表, 物品是怎样挑的)。"""
    rows, how = choose_items(encoded.codes, errors)
    facts = inputs.facts or ItemFacts(None, None, 0)
    shares = None if errors is None or not encoded.deviation > 0 else errors / np.float32(encoded.deviation)
    items = item_table(
        rows, source_ids(inputs.source), encoded.codes, around.plane,
        titles=facts.titles, labels=facts.labels, errors=shares, suffix=suffix,
    )  # fmt: skip
    return items, codeword_table(encoded.codes, inputs.sizes, around.plane, facts.labels), how


def _write(output: Path, result: Dict[str, Any], items: pa.Table, codewords: pa.Table, how: Dict[str, Any]) -> None:
    """写评估目录。"""
    shown: List[str] = [key for key in (*METRIC_KEYS, *_FACTS) if key in result]
    measured = {key: result[key] for key in shown}
    folder = output.resolve()
    # 放在训练目录的 evaluation/ 里时，名字取那个目录的：比较几次训练时人认得的是它
    name = folder.parent.name if folder.name == "evaluation" else folder.name
    evaluation_json = {
        "name": name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "semid_version": __version__,
        "fingerprint": result["fingerprint"],
        "features": result["features"],
        "num_items": result["num_items"],
        "codebook_sizes": result["codebook_sizes"],
        "sampled": result["sampled"],
        "metrics": measured,
        "verdicts": result["verdicts"],
        "legend": legend_of(measured),
        "items_in_folder": how,
    }
    write_evaluation_folder(output, evaluation_json, items, codewords)
