"""命令 `semid`：解析参数 → 调一个函数 → 打印。没有别的模块 import 本文件。

退出码：0 成功；2 用户能改正的错误，stderr 上恰好一行 `error: …`；130 被 Ctrl-C 打断；1 程序自身的缺陷（带回溯）。
顶部只 import typer、rich 与标准库：`semid --help` 一秒内回答；torch 在命令真正执行时才加载。

语言由 `language.py` 处理；结果的排版在 `text.py`；真正做事的在 `actions.py`。
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, Sequence

import typer

from .. import __version__
from . import catalog_commands, evaluate_commands, report_command, text, text_catalog
from .errors import interrupted, report
from .language import both, localized, take_lang
from .options import (
    BlockRows,
    Device,
    Features,
    IdColumn,
    Json,
    Lang,
    Model,
    Output,
    Overwrite,
    PrefixPrice,
    Quiet,
    Unique,
    VectorColumn,
)

__all__ = ["main"]

app = typer.Typer(
    name="semid",
    add_completion=False,
    pretty_exceptions_enable=False,
    help=both(
        "把物品的特征向量变成语义 ID（L1, L2, L3…），相似物品共享前缀。先试试 semid demo。",
        "Turn item vectors into Semantic IDs (L1, L2, L3, …); similar items share a prefix. Try: semid demo.",
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semid {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    lang: Lang = "zh",
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help=both("打印版本并退出", "print the version")),
    ] = False,
) -> None:
    # 两个参数都在别处生效（见 take_lang 与 _version）；放在这里是为了出现在帮助里
    pass


@app.command(help=both("训练一个模型。", "Train a model."))
def train(
    context: typer.Context,
    features: Features,
    output: Output,
    codebook_sizes: Annotated[
        str | None, typer.Option(metavar="K1,K2,…", help=both("各层码本大小，如 256,256,256", "codewords per level"))
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="fast|default|max",
            help=both("花多少力气：精修轮数与编码的束宽", "how hard to try: refinement rounds and encoding beam"),
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help=both(
                "常被一起消费的物品编号对：两列 .parquet 或 .npy", "item id pairs consumed together: .parquet, .npy"
            )
        ),
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(help=both("先投影到这么多维，宽输入用；默认不投影", "project wide inputs to so many dimensions")),
    ] = None,
    beam_size: Annotated[
        int | None, typer.Option(help=both("编码的束宽，默认由 effort 定", "encoding beam, by default set by effort"))
    ] = None,
    epochs: Annotated[int | None, typer.Option(help=both("训练轮数，默认 10", "epochs, 10 by default"))] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=both("每步行数，默认 1024", "rows a step, default 1024"))
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="kmeans|uniform", help=both("码本初始化方式", "how codebooks start"))
    ] = None,
    seed: Annotated[int | None, typer.Option(help=both("随机种子，默认 0", "random seed, 0 by default"))] = None,
    max_train_rows: Annotated[
        int | None,
        typer.Option(help=both("最多用多少行训练（按种子抽样）", "train on a seeded sample of so many rows")),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help=both("JSON 配置文件；命令行参数优先", "JSON file of config fields; flags win")),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help=both("接着被打断的训练", "go on where training was interrupted")),
    ] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
    json_: Json = False,
    quiet: Quiet = False,
    lang: Lang = "zh",
) -> None:
    """特征维度由数据决定。"""
    from .actions import model as actions

    settings = {
        "codebook_sizes": None if codebook_sizes is None else actions.parse_sizes(codebook_sizes),
        "effort": effort,
        "latent_dim": latent_dim,
        "beam_size": beam_size,
        "batch_size": batch_size,
        "init": init,
        "seed": seed,
        "max_train_rows": max_train_rows,
    }
    result = actions.train(
        features,
        output,
        settings=settings,
        config_file=config,
        epochs=epochs,
        device=device,
        resume=resume,
        overwrite=overwrite,
        id_column=id_column,
        vector_column=vector_column,
        progress=not (json_ or quiet),
        pairs=pairs,
    )
    _emit(context, result, text.show_trained, json_, quiet)


@app.command(
    help=both("把物品编码成物品表（item_id, l1, l2, l3）。", "Encode items into a catalog (item_id, l1, l2, l3).")
)
def encode(
    context: typer.Context,
    model: Model,
    features: Features,
    output: Output,
    unique: Unique = "none",
    prefix_price: PrefixPrice = 1.0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help=both("接着被打断的编码，结果逐字节相同", "go on where encoding was interrupted")),
    ] = False,
    overwrite: Overwrite = False,
    rows_per_part: Annotated[int, typer.Option(help=both("一个分片多少行", "rows of one part file"))] = 1 << 20,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help=both("在哪里编码；ray 要装 semid[ray]", "where to encode; ray needs semid[ray]"),
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help=both("Ray 集群的地址；不给就在本机起一个", "address of a Ray cluster; default: start one")),
    ] = None,
    block_rows: BlockRows = 16384,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
    json_: Json = False,
    quiet: Quiet = False,
    lang: Lang = "zh",
) -> None:
    """编号须唯一；`.npy` 的编号是行号。"""
    from .actions import model as actions

    show = not (json_ or quiet)
    result = actions.encode(
        model,
        features,
        output,
        overwrite=overwrite,
        resume=resume,
        unique=unique,
        prefix_price=prefix_price,
        rows_per_part=rows_per_part,
        engine=engine,
        address=address,
        block_rows=block_rows,
        device=device,
        id_column=id_column,
        vector_column=vector_column,
        progress=show,
    )
    _emit(context, result, text_catalog.show_encoded, json_, quiet)


@app.command(help=both("从编码重建特征向量（float32 .npy）。", "Rebuild vectors from codes (float32 .npy)."))
def decode(
    context: typer.Context,
    model: Model,
    codes: Annotated[
        Path,
        typer.Argument(
            metavar="CODES",
            help=both("物品表目录、含 l1…lL 的 .parquet、整数 .npy", "catalog folder, .parquet with l1…lL, int .npy"),
        ),
    ],
    output: Annotated[Path, typer.Option(help=both("输出的 .npy 文件", "output .npy file"))],
    overwrite: Overwrite = False,
    block_rows: BlockRows = 16384,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
    lang: Lang = "zh",
) -> None:
    """行序与编码文件相同。"""
    from .actions import model as actions

    show = not (json_ or quiet)
    result = actions.decode(
        model, codes, output, overwrite=overwrite, block_rows=block_rows, device=device, progress=show
    )
    _emit(context, result, text.show_written, json_, quiet)


@app.command(
    help=both(
        "给大模型的分词器加上语义 ID 的词（<a_12><b_7><c_99>）。", "Add <a_12><b_7><c_99> tokens to an LLM tokenizer."
    )
)
def tokens(
    context: typer.Context,
    model: Model,
    tokenizer: Annotated[
        Path, typer.Option(help=both("Hugging Face 分词器的本地目录", "local folder of a Hugging Face tokenizer"))
    ],
    output: Output,
    suffix_size: Annotated[
        int, typer.Option(help=both("去重位有多少个取值，0 为没有", "values of the suffix level, 0 for none"))
    ] = 0,
    embedding_dim: Annotated[
        int | None,
        typer.Option(
            help=both("词向量宽度；给了就另写由码本投影的词向量", "also write rows of this width from the codebooks")
        ),
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    lang: Lang = "zh",
) -> None:
    """需要 semid[hf]。"""
    from .actions import model as actions

    result = actions.tokens(model, tokenizer, output, suffix_size=suffix_size, embedding_dim=embedding_dim)
    _emit(context, result, text.show_tokens, json_, quiet)


@app.command(help=both("查看模型：配置、指纹、训练时的数字。", "Show a model: config, fingerprint, training figures."))
def info(context: typer.Context, model: Model, json_: Json = False, quiet: Quiet = False, lang: Lang = "zh") -> None:
    """只读。"""
    from .actions import model as actions

    _emit(context, actions.info(model), text.show_info, json_, quiet)


@app.command(help=both("在内置的 8,192 个真实物品上走完全程。", "Run everything on 8,192 embedded real items."))
def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help=both("放模型与物品表的目录", "folder for model and catalog"))] = Path(
        "semid-demo"
    ),
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
    lang: Lang = "zh",
) -> None:
    """训练、编码、评估，展示共享前缀的物品，写一页报告。"""
    from .actions import model as actions

    result = actions.demo(output, device=device, progress=not (json_ or quiet), lang=context.obj["lang"])
    _emit(context, result, text.show_demo, json_, quiet)


evaluate_commands.register(app, lambda *arguments: _emit(*arguments))
report_command.register(app, lambda *arguments: _emit(*arguments))
catalog_commands.register(app, lambda *arguments: _emit(*arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """入口：返回退出码，绝不让用户的错误变成回溯。

    Args:
        argv: 参数，不含程序名；None 取 `sys.argv`。
    """
    # OpenMP 默认让空等的线程自旋；机器忙时两个线程反而比一个慢十几倍。必须在 torch 加载之前设好；用户自己设的优先
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # 终端写不出中文时给问号，而不是崩溃
    # 训练器的提示会出现在结果里；不加处理器的话，logging 会自己把它们写到 stderr，--quiet 就不安静了
    logging.getLogger("algorithm.semantic_id").addHandler(logging.NullHandler())
    try:
        lang, arguments = take_lang(list(sys.argv[1:] if argv is None else argv))
        command = localized(app, lang)
        code = command.main(
            catalog_commands.fill_unique(arguments) or ["--help"],
            prog_name="semid",
            standalone_mode=False,
            obj={"lang": lang},
        )
        if code == 130:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:
        # 读者（如 head）先走了：不是错误，但退出时还会再刷一次 stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return report(error)


def _emit(
    context: typer.Context,
    result: Dict[str, Any],
    show: Callable[[Dict[str, Any], str], None],
    json_: bool,
    quiet: bool,
) -> None:
    """--json 只打印一个对象；--quiet 什么也不打印。"""
    if json_:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    elif not quiet:
        show(result, context.obj["lang"])


if __name__ == "__main__":
    sys.exit(main())
