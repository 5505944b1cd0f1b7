"""`semid export`：导出成 LC-Rec 的 `.index.json`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict

import typer

from ..options import CatalogFolder, Overwrite, Session
from ..outputs import check_apart
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    catalog: CatalogFolder,
    index_json: Annotated[Path, typer.Option()],
    overwrite: Overwrite = False,
) -> Dict[str, Any]:
    """写一个 JSON 文件。"""
    from ...catalog import Catalog
    from ...catalog.exchange.index_json import export_index_json

    check_apart(index_json, catalog)
    return export_index_json(Catalog.open(catalog), index_json, overwrite=overwrite)


def show(result: Dict[str, Any], page: Page) -> None:
    """一行写在哪里。"""
    page.say("word.written", n=result["num_items"], out=result["output"])
