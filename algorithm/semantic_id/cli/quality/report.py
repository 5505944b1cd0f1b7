"""`semid report`：把一次或几次评估、训练写成一个网页；需要 semid[report]。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict, List

import typer

from ..options import Output, Overwrite, Session
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    runs: Annotated[List[Path], typer.Argument(metavar="RUN…")],
    output: Output,
    overwrite: Overwrite = False,
) -> Dict[str, Any]:
    """写网页，见 `report/page.py`。"""
    from ...report.page import write_report

    return write_report(runs, output, lang=session.lang, overwrite=overwrite)


def show(result: Dict[str, Any], page: Page) -> None:
    """一行：写在哪里、多大。"""
    page.say("report.written", out=result["output"], mb=result["bytes"] / 1e6)
