"""`semid migrate`：把物品表搬到重新训练的模型上：对齐码字的编号，让尽可能多的物品保持 ID。"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Dict

from ...errors import InputError
from ..options import BlockRows, CatalogFolder, Device, Features, IdColumn, Model, Output, Session, VectorColumn
from ..page import Page

__all__ = ["run", "show"]

_MIGRATED = ("model", "catalog", "moves.parquet")


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

    from ...catalog import Catalog, encode_catalog
    from ...catalog.changes.migrate import align_codes, encode_known, write_moves
    from ...files.durable import sync_folder
    from ...files.progress import Progress
    from ...files.vectors import open_vectors
    from ..loading import load_model

    before = Catalog.open(catalog)
    encoder = load_model(model, device)
    if tuple(encoder.codebook_sizes) != before.codebook_sizes:
        raise InputError(
            f"the model has codebook_sizes={encoder.codebook_sizes}, but the catalog has {before.codebook_sizes}; "
            "train with the same sizes, or encode a new catalog"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {str(output)!r} exists; choose another folder")
    columns = {"id_column": id_column, "vector_column": vector_column}
    source = open_vectors(features, expected_dim=encoder.embedding_dim, **columns)
    folder = _fresh_partial(output)
    try:
        with Progress(session.progress) as bar, bar.task("migrate", source.num_rows) as report:
            old, new = encode_known(encoder, before, source, block_rows)
            labels = align_codes(old, new, encoder.codebook_sizes)
            encoder.relabel_([torch.from_numpy(label).to(encoder.feature_mean.device) for label in labels])
            encoder.save_pretrained(folder / "model")
            price = before.manifest["history"][0].get("prefix_price", "1.0")
            encode_catalog(
                encoder,
                source,
                folder / "catalog",
                unique=before.unique,
                prefix_price=float(price),
                block_rows=block_rows,
                progress=report,
            )
        moves = write_moves(before, Catalog.open(folder / "catalog"), folder / _MIGRATED[2])
        os.replace(folder, output)
    except BaseException:  # 迁移不能续跑，半成品没有用
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_folder(output.resolve().parent)
    unaligned = float((old != new).any(axis=1).mean()) if len(old) else None
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


def _fresh_partial(output: Path) -> Path:
    """旁边的 `OUTPUT.partial`；上次被打断留下的清掉，别人的不动。"""
    folder = output.with_name(output.name + ".partial")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {*_MIGRATED, "catalog.partial", f"{_MIGRATED[2]}.tmp", f"{_MIGRATED[2]}.writing"}
    if names - ours or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{str(folder)!r} is not ours; move it away")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
