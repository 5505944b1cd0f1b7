"""`semid advise`：看过数据之后建议各层码本大小。"""

from __future__ import annotations

from typing import Any, Dict

from ..options import Features, IdColumn, Session, VectorColumn
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    features: Features,
    levels: int = 3,
    seed: int = 0,
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """建议码本大小，见 `training/advise.py`。"""
    from ...files.progress import Progress
    from ...files.vectors import open_vectors
    from ...training.advise import advise_sizes

    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    with Progress(session.progress) as bar, bar.task("advise", levels) as report:
        return advise_sizes(source, num_levels=levels, seed=seed, progress=report)


def show(result: Dict[str, Any], page: Page) -> None:
    """建议、每层的依据、可以直接复制的选项。"""
    page.facts(
        [
            ("word.items", f"{result['num_items']:,}"),
            ("advise.rows", f"{result['num_sample_rows']:,} / {result['num_holdout_rows']:,}"),
            ("advise.capacity", f"{result['capacity_ratio']:.3g} ×"),
        ]
    )
    heads = (
        "word.level", "advise.rule", "advise.size", "advise.measured_at", "advise.gain", "advise.removed", "advise.why",
    )  # fmt: skip
    rows = [
        (
            f"L{level['level']}",
            *(str(level[key]) for key in ("rule", "size", "measured_at")),
            *(f"{level[key]:.1%}" for key in ("gain", "removed")),
            page.text(f"advise.{level['decision']}"),
        )
        for level in result["levels"]
    ]
    page.table([page.text(head) for head in heads], rows)
    page.show("semid train … --codebook-sizes " + ",".join(map(str, result["codebook_sizes"])))
