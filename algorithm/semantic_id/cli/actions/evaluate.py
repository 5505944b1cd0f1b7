"""`semid evaluate` 与 `semid advise` 背后的动作：参数进，可写成 JSON 的字典出，不打印。

一次评估读特征几遍：编码一遍，前缀平均 L 遍，近邻与地图一遍；都是流式的，内存见 `measure.py`。
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
import pyarrow as pa

from ... import __version__
from ...catalog import Catalog
from ...catalog.format.manifest import CatalogError
from ...encoder import SemanticIDEncoder
from ...evaluation import measure
from ...evaluation.folder import check_evaluation_folder, write_evaluation_folder
from ...evaluation.inputs import Interactions, ItemFacts, read_codes, read_interactions, read_item_facts, source_ids
from ...evaluation.legend import METRIC_KEYS, legend_of
from ...evaluation.tables import choose_items, codeword_table, item_table
from ...evaluation.verdicts import judge_health
from ...files.progress import Progress
from ...files.vectors import VectorSource, open_vectors
from ...metrics import codes as metrics
from ...metrics.additive_means import MAX_TABLE_BYTES
from ...metrics.meaning import neighbour_share, prefix_chance, prefix_groups
from ...training.advise import advise_sizes
from ..loading import load_model, parse_sizes

__all__ = ["advise", "evaluate"]

_FACTS = (
    "reconstruction", "relative_mse_reason", "num_labels", "num_unlabelled", "num_items_without_facts", "num_pairs",
    "num_users", "num_unknown_interactions", "interactions", "unseen", "unseen_num_items", "codebook_sizes_inferred",
    "num_in_catalog",
)  # fmt: skip


class _Inputs(NamedTuple):
    """打开并验收过的全部输入；到这里为止还没有花时间。"""

    source: VectorSource
    encoder: SemanticIDEncoder | None
    codes: np.ndarray | None
    sizes: Tuple[int, ...]
    facts: ItemFacts | None
    interactions: Interactions | None
    catalog: Catalog | None
    unseen: VectorSource | None


def evaluate(
    model: Path | None,
    features: Path,
    *,
    device: str = "auto",
    block_rows: int = 8192,
    id_column: str = "item_id",
    vector_column: str = "embedding",
    progress: bool = False,
    codes: Path | None = None,
    codebook_sizes: str | None = None,
    items: Path | None = None,
    labels: str | None = None,
    interactions: Path | None = None,
    catalog: Path | None = None,
    unseen: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> Dict[str, Any]:
    """评估一个模型，或别人的编码。

    Args:
        model: 模型目录；给了 `codes` 时为 None。
        features: 物品特征。
        device: 同 `train`。
        block_rows: 一次处理多少行；只影响内存与速度。
        id_column: 各文件的物品编号列。
        vector_column: 特征的向量列。
        progress: 是否显示进度。
        codes: 别人的编码，(N, L) 整数 `.npy` 或含 l1…lL 的 Parquet。
        codebook_sizes: 与 `codes` 一起给的各层大小；None 由编码的最大值推出，结果里会说。
        items: 物品信息（title 与标签列）；None 时若 FEATURES 是一个 Parquet 文件就用它自己。
        labels: 标签列的名字。
        interactions: 用户行为。
        catalog: 物品表，量去重之后的冲突。
        unseen: 没见过的物品的特征，量泛化。
        output: 评估目录；None 则不写。
        overwrite: 允许替换已有的评估。

    Returns:
        全部指标（键见 `legend.py`），加上 verdicts、sampled、codebook_sizes、fingerprint、features、output。

    Raises:
        FileExistsError, FileNotFoundError, TypeError, ValueError: 见各扇门；出错时什么也没写。
    """
    if (model is None) == (codes is None):
        raise ValueError("give a MODEL folder or --codes FILE, exactly one of them")
    if codes is None and codebook_sizes is not None:
        raise ValueError("--codebook-sizes is only for --codes; a model knows its sizes")
    if unseen is not None and model is None:
        raise ValueError("--unseen needs a MODEL: codes given by --codes say nothing about new items")
    if output is not None:
        check_evaluation_folder(output, overwrite)
    columns = {"id_column": id_column, "vector_column": vector_column}
    encoder = None if model is None else load_model(model, device)
    inputs = _open(
        encoder, features, codes=codes, codebook_sizes=codebook_sizes, items=items, labels=labels,
        interactions=interactions, catalog=catalog, unseen=unseen, columns=columns,
    )  # fmt: skip
    num_passes = 2 + len(inputs.sizes) + (0 if encoder is not None else len(inputs.sizes) + 1)
    num_rows = num_passes * inputs.source.num_rows + (inputs.unseen.num_rows if inputs.unseen is not None else 0)
    with Progress(progress) as bar, bar.task("evaluate", num_rows) as advance:
        done = 0

        def seen(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done)

        result, tables = _measure(inputs, block_rows, seen)
    training = {} if encoder is None else encoder.training_figures
    verdicts = [verdict._asdict() for verdict in judge_health(result, training)]
    result = {**result, "verdicts": verdicts}
    if output is not None:
        _write(output, result, *tables)
        result["output"] = os.fspath(output)
    return result


def _open(
    encoder: SemanticIDEncoder | None,
    features: Path,
    *,
    codes: Path | None,
    codebook_sizes: str | None,
    items: Path | None,
    labels: str | None,
    interactions: Path | None,
    catalog: Path | None,
    unseen: Path | None,
    columns: Dict[str, str],
) -> _Inputs:
    """打开并验收每个文件，彼此的行数与编号在这里对上。"""
    id_column, dim = columns["id_column"], None if encoder is None else encoder.embedding_dim
    source = open_vectors(features, expected_dim=dim, **columns)
    given = None if codes is None else read_codes(codes, source, id_column)
    if encoder is not None:
        sizes = tuple(int(size) for size in encoder.codebook_sizes)
    else:
        assert given is not None
        sizes = tuple(int(top) + 1 for top in given.max(axis=0))
        if sum(sizes) * source.dim * 8 > MAX_TABLE_BYTES:
            raise ValueError(
                f"--codes has a code as large as {max(sizes) - 1}, too many codewords for vectors of width "
                f"{source.dim}; renumber the codes of each level from 0"
            )
        if codebook_sizes is not None:
            sizes = _given_sizes(codebook_sizes, sizes)
    if items is None and features.suffix == ".parquet" and features.is_file():
        items = features
    if items is None and labels is not None:
        raise ValueError("--labels needs --items FILE, the Parquet file that has the column")
    facts = None if items is None else read_item_facts(items, source, label_column=labels, id_column=id_column)
    behaviour = None if interactions is None else read_interactions(interactions, source, id_column)
    opened = None if catalog is None else Catalog.open(catalog)
    if opened is not None:
        _check_catalog(opened, encoder, sizes)
    new = None if unseen is None else open_vectors(unseen, expected_dim=dim, **columns)
    return _Inputs(source, encoder, given, sizes, facts, behaviour, opened, new)


def _measure(inputs: _Inputs, block_rows: int, seen: measure.Seen) -> Tuple[Dict[str, Any], Tuple[pa.Table, ...]]:
    """量出全部数字与两张表。"""
    source, encoder, sizes = inputs.source, inputs.encoder, inputs.sizes
    if encoder is not None:
        encoded = measure.encode_all(encoder, source, block_rows=block_rows, on_block=seen)
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
    around = measure.look_around(
        encoded, source, model=encoder, hit_rows=hit_rows, block_rows=block_rows, on_block=seen
    )
    if around.neighbours is not None:
        result["neighbour_share"] = neighbour_share(codes, around.neighbours, around.queries)
        result["prefix_chance"] = prefix_chance(codes)
    result.update(_facts_figures(inputs, codes))
    if inputs.interactions is not None:
        result.update(measure.judge_behaviour(codes, inputs.interactions.pairs, partners, around))
    if encoder is None:
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
    result["fingerprint"] = None if encoder is None else encoder.fingerprint()
    result["features"] = source.description
    return result, _tables(inputs, encoded, around, errors, suffix)


def _facts_figures(inputs: _Inputs, codes: np.ndarray) -> Dict[str, Any]:
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
    if inputs.encoder is not None and inputs.encoder.training_figures:
        training = inputs.encoder.training_figures
        out["training_relative_mse"] = training.get("relative_mse")
        out["training_holdout_relative_mse"] = training.get("holdout_relative_mse")
    return out


def _assigned(inputs: _Inputs, codes: np.ndarray) -> Tuple[Dict[str, Any], np.ndarray | None]:
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
    inputs: _Inputs, codes: np.ndarray, seen_error: float | None, block_rows: int, on_block: measure.Seen
) -> Dict[str, Any]:
    """泛化：同一个模型在没见过的物品上。"""
    if inputs.unseen is None or inputs.encoder is None:
        return {}
    new = measure.encode_all(inputs.encoder, inputs.unseen, block_rows=block_rows, on_block=on_block)
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
    inputs: _Inputs,
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


def _given_sizes(text: str, needed: Tuple[int, ...]) -> Tuple[int, ...]:
    """--codebook-sizes 与编码对得上。"""
    sizes = parse_sizes(text)
    if len(sizes) != len(needed) or any(size < need for size, need in zip(sizes, needed, strict=True)):
        raise ValueError(
            f"--codebook-sizes {text!r} does not fit the codes, which need at least {','.join(map(str, needed))}"
        )
    return sizes


def _check_catalog(catalog: Catalog, encoder: SemanticIDEncoder | None, sizes: Tuple[int, ...]) -> None:
    """物品表须是这个模型写的；只有编码时至少层数要相同。"""
    if encoder is not None and catalog.fingerprint != encoder.fingerprint():
        raise CatalogError(
            f"catalog {str(catalog.folder)!r} was written by another model (fingerprint {catalog.fingerprint[:12]}…, "
            f"this one is {encoder.fingerprint()[:12]}…); use the model that wrote it"
        )
    if len(catalog.codebook_sizes) != len(sizes):
        raise ValueError(
            f"catalog {str(catalog.folder)!r} has {len(catalog.codebook_sizes)} levels, but the codes have {len(sizes)}"
        )


def advise(
    features: Path, *, num_levels: int, seed: int, id_column: str, vector_column: str, progress: bool
) -> Dict[str, Any]:
    """建议码本大小，见 `advise.advise_sizes`。"""
    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    with Progress(progress) as bar, bar.task("advise", num_levels) as advance:
        return advise_sizes(source, num_levels=num_levels, seed=seed, on_level=advance)
