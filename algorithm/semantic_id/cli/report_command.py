"""命令 report；由 `app.py` 登记，动作在 `report/page.py`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Callable, Dict, List

import typer

from .language import both, pick
from .options import Json, Lang, Overwrite, Quiet

__all__ = ["register", "show_report"]


def register(app: typer.Typer, emit: Callable[..., None]) -> None:
    """把 report 登记到 `semid`。

    Args:
        app: `app.py` 的应用。
        emit: 打印结果的函数，参数同 `cli._emit`。
    """

    @app.command(
        help=both(
            "把一次或几次评估、训练写成一个网页，不联网也能看；需要 semid[report]。",
            "Write one or more evaluations or trainings as a single web page that needs no network (semid[report]).",
        )
    )
    def report(
        context: typer.Context,
        runs: Annotated[
            List[Path],
            typer.Argument(
                metavar="RUN…",
                help=both(
                    "semid evaluate --output 或 semid train 的目录；几个就并排比较",
                    "folders of semid evaluate --output or semid train; several are compared side by side",
                ),
            ),
        ],
        output: Annotated[Path, typer.Option(help=both("输出的 .html", "output .html"))],
        overwrite: Overwrite = False,
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from ..report import page as room

        result = room.write_report(runs, output, lang=context.obj["lang"], overwrite=overwrite)
        emit(context, result, show_report, json_, quiet)


def show_report(result: Dict[str, Any], lang: str) -> None:
    """一行：写在哪里、多大。"""
    text = pick(
        both("报告写在 {out}（{mb:.1f} MB），用浏览器打开", "Report: {out} ({mb:.1f} MB), open it in a browser"), lang
    )
    typer.echo(text.format(out=result["output"], mb=result["bytes"] / 1e6))
