"""`semid update`：物品表新的一代：加入、退役，老 ID 不变。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict

import typer

from ..options import BlockRows, CatalogFolder, Device, IdColumn, ModelOption, Session, VectorColumn
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    catalog: CatalogFolder,
    model: ModelOption,
    features: Annotated[Path | None, typer.Argument(metavar="FEATURES")] = None,
    retire: Annotated[Path | None, typer.Option(metavar="IDS.parquet")] = None,
    reuse_after: Annotated[int | None, typer.Option(metavar="N")] = None,
    block_rows: BlockRows = 16384,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """写新的一代，见 `catalog/changes/update.py`。"""
    from ...catalog.changes.update import read_ids, update_catalog
    from ...files.progress import Progress
    from ...files.vectors import open_vectors
    from ..loading import load_model

    encoder = load_model(model, device)
    source = None if features is None else open_vectors(features, id_column=id_column, vector_column=vector_column)
    leaving = None if retire is None else read_ids(retire, id_column)
    rows = source.num_rows if source is not None else 1
    with Progress(session.progress) as bar, bar.task("update", rows) as report:
        return update_catalog(
            encoder,
            catalog,
            source,
            retire=leaving,
            reuse_after=reuse_after,
            block_rows=block_rows,
            progress=report,
        )


def show(result: Dict[str, Any], page: Page) -> None:
    """每种物品各有多少。"""
    drifted = result["drifted_rate"]
    page.facts(
        [
            ("update.generation", str(result["generation"])),
            ("word.items", f"{result['num_items']:,}"),
            ("update.added", f"{result['num_added']:,}"),
            ("update.kept", f"{result['num_kept']:,}"),
            ("update.drifted", "–" if drifted is None else f"{drifted:.2%}"),
            ("update.readded", f"{result['num_readded']:,}"),
            ("update.retired", f"{result['num_retired']:,}"),
            ("update.reserved", f"{result['num_reserved']:,}"),
        ]
    )
