"""`semid migrate`：把物品表搬到重新训练的模型上：对齐码字的编号，让尽可能多的物品保持 ID。"""

from __future__ import annotations

import os
from typing import Any, Dict

from ...errors import InputError
from ..options import BlockRows, CatalogFolder, Device, Features, IdColumn, Model, Output, Session, VectorColumn
from ..outputs import check_apart
from ..page import Page

__all__ = ["run", "show"]

# 写的时候最上层会出现的名字
_PARTIAL = ("model", "catalog", "carried", "moves.parquet")


def run(
    session: Session,
    catalog: CatalogFolder,
    model: Model,
    features: Features,
    output: Output,
    block_rows: BlockRows = 16384,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """写出对齐后的模型、新物品表与对照表。

    Returns:
        摘要：output, num_common, num_changed, changed_rate, unaligned_changed_rate（不对齐的话会变多少，只看各层编
        码），num_added, num_dropped, fingerprint。

    Raises:
        InputError: 码本大小与物品表不同；维度不符。
        FileExistsError: 输出已存在。
    """
    import torch

    from ...catalog import Catalog
    from ...catalog.changes.carry import carry_over, survey, write_moves
    from ...catalog.changes.migrate import align_codes, relabelled
    from ...files.progress import Progress
    from ...files.run_folder import new_folder
    from ...files.vectors import open_vectors
    from ..loading import load_model

    check_apart(output, catalog, model, features)
    before = Catalog.open(catalog)
    encoder = load_model(model, device)
    if tuple(encoder.codebook_sizes) != before.codebook_sizes:
        raise InputError(
            f"the model has codebook_sizes={encoder.codebook_sizes}, but the catalog has {before.codebook_sizes}; "
            "train with the same sizes, or encode a new catalog"
        )
    columns = {"id_column": id_column, "vector_column": vector_column}
    source = open_vectors(features, expected_dim=encoder.embedding_dim, **columns)
    with new_folder(output, _PARTIAL) as folder:
        with Progress(session.progress) as bar, bar.task("migrate", source.num_rows) as report:
            seen = survey(encoder, before, source, block_rows)
            aligned, is_same = seen.new, encoder.fingerprint() == before.fingerprint
            if not is_same:
                labels = align_codes(seen.old, seen.new, encoder.codebook_sizes)
                encoder.relabel_([torch.from_numpy(label).to(encoder.feature_mean.device) for label in labels])
                aligned = relabelled(seen.new, labels)
            encoder.save_pretrained(folder / "model")
            into = folder / "catalog"
            carry_over(encoder, before, source, into, seen, aligned, block_rows=block_rows, progress=report)
        moves = write_moves(before, Catalog.open(into), folder / "moves.parquet")
    unaligned = moves["changed_rate"]  # 同一个模型不必对齐
    if not is_same and len(seen.old):
        unaligned = float((seen.old != seen.new).any(axis=1).mean())
    return {
        "output": os.fspath(output),
        **moves,
        "unaligned_changed_rate": unaligned,
        "fingerprint": encoder.fingerprint(),
    }


def show(result: Dict[str, Any], page: Page) -> None:
    """变了多少、省了多少。"""
    page.facts(
        [
            ("migrate.common", f"{result['num_common']:,}"),
            ("migrate.changed", f"{result['num_changed']:,} ({_share(result['changed_rate'])})"),
            ("migrate.unaligned", _share(result["unaligned_changed_rate"])),
            ("migrate.added", f"{result['num_added']:,} / {result['num_dropped']:,}"),
            ("migrate.fingerprint", result["fingerprint"][:16]),
        ]
    )
    page.say("migrate.written", out=result["output"])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
