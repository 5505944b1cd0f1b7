"""各命令共用的参数与选项：名字与类型；说明在 `text/` 的 `any.…`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

__all__ = [
    "BlockRows",
    "CatalogFolder",
    "Device",
    "Features",
    "IdColumn",
    "Json",
    "Lang",
    "Model",
    "ModelOption",
    "Output",
    "Overwrite",
    "Quiet",
    "Resume",
    "Session",
    "Sizes",
    "VectorColumn",
]


class Session(NamedTuple):
    """一次运行里与命令无关的事。"""

    lang: str  # zh 或 en
    progress: bool  # 是否显示进度


Features = Annotated[Path, typer.Argument(metavar="FEATURES")]
Model = Annotated[Path, typer.Argument(metavar="MODEL")]
ModelOption = Annotated[Path, typer.Option("--model", metavar="MODEL")]
CatalogFolder = Annotated[Path, typer.Argument(metavar="CATALOG")]
Output = Annotated[Path, typer.Option()]
Overwrite = Annotated[bool, typer.Option("--overwrite")]
Resume = Annotated[bool, typer.Option("--resume")]
Sizes = Annotated[str | None, typer.Option(metavar="K1,K2,…")]
BlockRows = Annotated[int, typer.Option()]
Device = Annotated[str, typer.Option()]
IdColumn = Annotated[str, typer.Option()]
VectorColumn = Annotated[str, typer.Option()]
Json = Annotated[bool, typer.Option("--json")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q")]
Lang = Annotated[str, typer.Option(metavar="zh|en")]
