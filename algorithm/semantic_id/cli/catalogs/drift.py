"""`semid drift`：量新特征离建物品表时有多远；变了则退出码为 3，定时任务据此报警。"""

from __future__ import annotations

from typing import Any, Dict

from ..options import BlockRows, CatalogFolder, Device, Features, IdColumn, ModelOption, Session, VectorColumn
from ..page import Page

__all__ = ["exit_code", "run", "show"]


def run(
    session: Session,
    catalog: CatalogFolder,
    features: Features,
    model: ModelOption,
    block_rows: BlockRows = 8192,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """量，见 `catalog/changes/drift.py`。"""
    from ...catalog import Catalog
    from ...catalog.changes.drift import measure_drift
    from ...files.progress import Progress
    from ...files.vectors import open_vectors
    from ..loading import load_model

    encoder = load_model(model, device)
    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    with Progress(session.progress) as bar, bar.task("drift", source.num_rows) as report:
        return measure_drift(
            encoder,
            Catalog.open(catalog),
            source,
            block_rows=block_rows,
            progress=report,
        )


def show(result: Dict[str, Any], page: Page) -> None:
    """逐层的表格与一行结论。"""
    heads = ("word.level", "drift.mse", "drift.reference", "drift.ratio", "drift.psi", "drift.noise")
    keys = ("level_mse", "reference_level_mse", "error_ratio", "psi", "psi_noise")
    rows = [
        (f"L{level}", *("–" if value is None else f"{value:.4g}" for value in values))
        for level, values in enumerate(zip(*(result[key] for key in keys), strict=True), start=1)
    ]
    page.table([page.text(head) for head in heads], rows)
    reasons = f" ({'; '.join(result['reasons'])})" if result["reasons"] else ""
    page.show(f"{result['verdict']}: {page.text('drift.' + result['verdict'])}{reasons}")


def exit_code(result: Dict[str, Any]) -> int:
    """变了是 3。"""
    return 3 if result["verdict"] == "drifted" else 0
