"""评估的命令：evaluate、advise；由 `app.py` 登记，动作在 `evaluation/run.py` 与 `training/advise.py`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Callable

import typer

from . import text_evaluate as text
from .language import both
from .options import BlockRows, Device, Features, IdColumn, Json, Lang, Overwrite, Quiet, VectorColumn

__all__ = ["register"]


def register(app: typer.Typer, emit: Callable[..., None]) -> None:
    """把评估的命令登记到 `semid`。

    Args:
        app: `app.py` 的应用。
        emit: 打印结果的函数，参数同 `cli._emit`。
    """

    @app.command(
        help=both(
            "评估模型（MODEL FEATURES），或任何人的编码（--codes FILE FEATURES）。",
            "Judge a model (MODEL FEATURES), or anyone's codes (--codes FILE FEATURES).",
        )
    )
    def evaluate(
        context: typer.Context,
        first: Annotated[
            Path,
            typer.Argument(
                metavar="[MODEL]",
                help=both("模型目录；用 --codes 时不写", "folder written by semid train; left out with --codes"),
            ),
        ],
        second: Annotated[
            Path | None,
            typer.Argument(
                metavar="FEATURES",
                help=both(
                    "物品特征：.npy、.parquet 或装有 .parquet 的目录", "item vectors: .npy, .parquet or a folder"
                ),
            ),
        ] = None,
        codes: Annotated[
            Path | None,
            typer.Option(help=both("别人的编码：整数 .npy 或含 l1…lL 的 .parquet", "codes: integer .npy or .parquet")),
        ] = None,
        codebook_sizes: Annotated[
            str | None,
            typer.Option(metavar="K1,K2,…", help=both("--codes 的各层大小；不给则由编码推出", "sizes of --codes")),
        ] = None,
        items: Annotated[
            Path | None,
            typer.Option(help=both("物品信息 .parquet（title 与标签列）", "Parquet of titles and labels")),
        ] = None,
        labels: Annotated[
            str | None, typer.Option(metavar="COLUMN", help=both("标签列", "label column of --items"))
        ] = None,
        interactions: Annotated[
            Path | None, typer.Option(help=both("用户行为 .parquet", "Parquet of user sequences"))
        ] = None,
        catalog: Annotated[
            Path | None, typer.Option(help=both("物品表，量去重之后的冲突", "catalog: collisions after assignment"))
        ] = None,
        unseen: Annotated[
            Path | None, typer.Option(help=both("没见过的物品的特征，量泛化", "vectors of unseen items"))
        ] = None,
        output: Annotated[
            Path | None, typer.Option(help=both("评估目录，semid report 读它", "folder for semid report"))
        ] = None,
        overwrite: Overwrite = False,
        block_rows: BlockRows = 8192,
        device: Device = "auto",
        id_column: IdColumn = "item_id",
        vector_column: VectorColumn = "embedding",
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import evaluate as run

        if codes is None and second is None:
            raise ValueError("evaluate needs MODEL and FEATURES, or --codes FILE and FEATURES")
        if codes is not None and second is not None:
            raise ValueError("evaluate takes FEATURES only when --codes is given; leave MODEL out")
        result = run.evaluate(
            first if codes is None else None,
            first if second is None else second,
            codes=codes,
            codebook_sizes=codebook_sizes,
            items=items,
            labels=labels,
            interactions=interactions,
            catalog=catalog,
            unseen=unseen,
            output=output,
            overwrite=overwrite,
            block_rows=block_rows,
            device=device,
            id_column=id_column,
            vector_column=vector_column,
            progress=not (json_ or quiet),
        )
        emit(context, result, text.show_evaluation, json_, quiet)

    @app.command(help=both("按物品数与各层还能消掉的误差，建议码本大小。", "Propose codebook sizes for these vectors."))
    def advise(
        context: typer.Context,
        features: Features,
        levels: Annotated[int, typer.Option(help=both("层数", "number of levels"))] = 3,
        seed: Annotated[int, typer.Option(help=both("抽样的种子", "seed of the sample"))] = 0,
        id_column: IdColumn = "item_id",
        vector_column: VectorColumn = "embedding",
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import evaluate as run

        result = run.advise(
            features,
            num_levels=levels,
            seed=seed,
            id_column=id_column,
            vector_column=vector_column,
            progress=not (json_ or quiet),
        )
        emit(context, result, text.show_advice, json_, quiet)
