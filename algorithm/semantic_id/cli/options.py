"""各命令共用的参数与选项：名字、类型、两种语言的帮助。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .language import both

Features = Annotated[
    Path,
    typer.Argument(
        metavar="FEATURES",
        help=both("物品特征：.npy、.parquet 或装有 .parquet 的目录", "item vectors: .npy, .parquet or a folder"),
    ),
]
Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help=both("模型目录（semid train 的输出）", "folder written by semid train")),
]
Output = Annotated[Path, typer.Option(help=both("输出目录", "output folder"))]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=both("允许替换已有的输出", "replace existing output"))]
Unique = Annotated[
    str,
    typer.Option(
        metavar="none|suffix|nearest-free",
        help=both(
            "让 ID 唯一：加去重位，或挪到最近的空码；不给值就是 suffix",
            "unique IDs: a suffix, or a move to the nearest free code; suffix when no value is given",
        ),
    ),
]
PrefixPrice = Annotated[
    float,
    typer.Option(
        metavar="PRICE",
        help=both(
            "nearest-free 换前缀的价格，单位是平均误差；inf 则只换最后一层",
            "price of a new prefix under nearest-free, in mean errors; inf moves the last level only",
        ),
    ),
]
BlockRows = Annotated[int, typer.Option(help=both("一次处理多少行；只影响内存", "rows at a time; memory only"))]
Device = Annotated[str, typer.Option(help=both("cpu、cuda 或 auto", "cpu, cuda or auto"))]
IdColumn = Annotated[str, typer.Option(help=both("Parquet 里的物品编号列", "item id column of the Parquet file"))]
VectorColumn = Annotated[str, typer.Option(help=both("Parquet 里的特征向量列", "vector column of the Parquet file"))]
Json = Annotated[bool, typer.Option("--json", help=both("只打印一个 JSON 对象", "print one JSON object only"))]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help=both("除了错误什么都不打印", "print nothing but errors"))]
Lang = Annotated[str, typer.Option(metavar="zh|en", help=both("表格与帮助的语言", "language of tables and help"))]
