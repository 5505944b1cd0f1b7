"""`semid decode`：从编码重建特征向量；行序与编码文件相同。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict

import typer

from ..options import BlockRows, Device, Model, Output, Overwrite, Session
from ..outputs import check_apart
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    model: Model,
    codes: Annotated[Path, typer.Argument(metavar="CODES")],
    output: Output,
    overwrite: Overwrite = False,
    block_rows: BlockRows = 16384,
    device: Device = "auto",
) -> Dict[str, Any]:
    """写一个 float32 的 .npy。"""
    from ...catalog import decode_codes_file
    from ...files.progress import Progress
    from ..loading import load_model

    check_apart(output, model, codes)
    encoder = load_model(model, device)
    with Progress(session.progress) as bar, bar.task("decode", 100) as report:
        return decode_codes_file(
            encoder,
            codes,
            output,
            overwrite=overwrite,
            block_rows=block_rows,
            progress=report,
        )


def show(result: Dict[str, Any], page: Page) -> None:
    """一行写在哪里。"""
    page.say("word.written", n=result["num_items"], out=result["output"])
