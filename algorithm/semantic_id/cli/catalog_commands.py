"""物品表的命令：lookup、update、migrate、drift、import、export；由 `app.py` 登记，动作在 `actions/`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Callable, List

import typer

from . import text_catalog as text
from .language import both
from .options import BlockRows, Device, Features, IdColumn, Json, Lang, Model, Output, Overwrite, Quiet, VectorColumn

__all__ = ["fill_unique", "register"]

_DRIFTED = 3  # `semid drift` 的退出码：定时任务据此报警

CatalogFolder = Annotated[
    Path,
    typer.Argument(metavar="CATALOG", help=both("物品表目录（semid encode 的输出）", "folder written by semid encode")),
]
ModelOption = Annotated[
    Path, typer.Option("--model", metavar="MODEL", help=both("写这个物品表的模型", "the model that wrote the catalog"))
]


def fill_unique(arguments: List[str]) -> List[str]:
    """`--unique` 后面没有值就是 suffix；typer 的选项不能省略值，所以在解析之前补上。"""
    out: List[str] = []
    for i, argument in enumerate(arguments):
        out.append(argument)
        if argument == "--unique" and (i + 1 == len(arguments) or arguments[i + 1].startswith("-")):
            out.append("suffix")
    return out


def register(app: typer.Typer, emit: Callable[..., None]) -> None:
    """把物品表的命令登记到 `semid`。

    Args:
        app: `app.py` 的应用。
        emit: 打印结果的函数，参数同 `cli._emit`。
    """

    @app.command(help=both("查物品表：物品的 ID、ID 的物品、前缀下的物品。", "Look up items, IDs and prefixes."))
    def lookup(
        context: typer.Context,
        catalog: CatalogFolder,
        item: Annotated[
            List[str] | None, typer.Option("--item", help=both("物品编号，可以给几次", "item id; may be repeated"))
        ] = None,
        prefix: Annotated[
            str | None, typer.Option(metavar="C1,C2,…", help=both("前缀，例如 12,7", "prefix, e.g. 12,7"))
        ] = None,
        sid: Annotated[
            str | None, typer.Option(metavar="C1,C2,C3", help=both("完整的 ID", "a whole Semantic ID"))
        ] = None,
        limit: Annotated[int, typer.Option(help=both("前缀下至多列几个", "list at most so many"))] = 20,
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import catalog as actions_catalog

        result = actions_catalog.lookup(catalog, items=item or [], prefix=prefix, sid=sid, limit=limit)
        emit(context, result, text.show_lookup, json_, quiet)

    @app.command(help=both("物品表新的一代：加入、退役，老 ID 不变。", "A new generation: add and retire items."))
    def update(
        context: typer.Context,
        catalog: CatalogFolder,
        model: ModelOption,
        features: Annotated[
            Path | None,
            typer.Argument(metavar="FEATURES", help=both("增量的特征；只退役就不给", "features of the delta, if any")),
        ] = None,
        retire: Annotated[
            Path | None,
            typer.Option(metavar="IDS.parquet", help=both("要退役的物品编号", "item ids to retire")),
        ] = None,
        reuse_after: Annotated[
            int | None,
            typer.Option(metavar="N", help=both("退役满 N 代的 ID 可以再用", "reuse IDs retired N generations ago")),
        ] = None,
        block_rows: BlockRows = 16384,
        device: Device = "auto",
        id_column: IdColumn = "item_id",
        vector_column: VectorColumn = "embedding",
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import catalog as actions_catalog

        result = actions_catalog.update(
            catalog,
            features,
            model,
            retire=retire,
            reuse_after=reuse_after,
            block_rows=block_rows,
            device=device,
            id_column=id_column,
            vector_column=vector_column,
            progress=not (json_ or quiet),
        )
        emit(context, result, text.show_update, json_, quiet)

    @app.command(help=both("换模型：对齐码字的编号，让尽可能多的物品保持 ID。", "Move a catalog to a retrained model."))
    def migrate(
        context: typer.Context,
        catalog: CatalogFolder,
        model: Model,
        features: Features,
        output: Output,
        block_rows: BlockRows = 16384,
        device: Device = "auto",
        id_column: IdColumn = "item_id",
        vector_column: VectorColumn = "embedding",
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import catalog as actions_catalog

        result = actions_catalog.migrate(
            catalog,
            features,
            model,
            output,
            block_rows=block_rows,
            device=device,
            id_column=id_column,
            vector_column=vector_column,
            progress=not (json_ or quiet),
        )
        emit(context, result, text.show_migrate, json_, quiet)

    @app.command(help=both("新物品变了没有；变了则退出码为 3。", "Has the world moved away? Exit code 3 if so."))
    def drift(
        context: typer.Context,
        catalog: CatalogFolder,
        features: Features,
        model: ModelOption,
        block_rows: BlockRows = 8192,
        device: Device = "auto",
        id_column: IdColumn = "item_id",
        vector_column: VectorColumn = "embedding",
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import catalog as actions_catalog

        result = actions_catalog.drift(
            catalog,
            features,
            model,
            block_rows=block_rows,
            device=device,
            id_column=id_column,
            vector_column=vector_column,
            progress=not (json_ or quiet),
        )
        emit(context, result, text.show_drift, json_, quiet)
        if result["verdict"] == "drifted":
            raise typer.Exit(_DRIFTED)

    _register_exchange(app, emit)


def _register_exchange(app: typer.Typer, emit: Callable[..., Any]) -> None:
    """与别的工具来往的两个命令。"""

    @app.command(
        "import",
        help=both("导入 .index.json（成物品表）或 faiss 残差量化器（成模型）。", "Import an .index.json or faiss RQ."),
    )
    def import_(
        context: typer.Context,
        source: Annotated[
            Path, typer.Argument(metavar="SOURCE", help=both(".index.json 或 faiss 索引", ".index.json or faiss index"))
        ],
        output: Output,
        codebook_sizes: Annotated[
            str | None,
            typer.Option(metavar="K1,K2,…", help=both("各层码本大小；不给则由编号推出", "codewords per level")),
        ] = None,
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import catalog as actions_catalog

        result = actions_catalog.import_(source, output, codebook_sizes=codebook_sizes)
        emit(context, result, text.show_import, json_, quiet)

    @app.command(help=both("导出成 LC-Rec 的 .index.json。", "Export as the .index.json of LC-Rec."))
    def export(
        context: typer.Context,
        catalog: CatalogFolder,
        index_json: Annotated[Path, typer.Option(help=both("输出的 .json 文件", "output .json file"))],
        overwrite: Overwrite = False,
        json_: Json = False,
        quiet: Quiet = False,
        lang: Lang = "zh",
    ) -> None:
        from .actions import catalog as actions_catalog

        result = actions_catalog.export(catalog, index_json, overwrite=overwrite)
        emit(context, result, text.show_written, json_, quiet)
