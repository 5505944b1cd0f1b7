"""`semid encode`：把物品编码成物品表。"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Dict, List

import typer
from typer.core import TyperCommand

from ...errors import InputError
from ..options import BlockRows, Device, Features, IdColumn, Model, Output, Overwrite, Resume, Session, VectorColumn
from ..outputs import check_apart
from ..page import Page

if TYPE_CHECKING:
    from ...catalog.encoding.encode import Engine

__all__ = ["Parser", "run", "show"]

GO_ON = " with --resume"

_POLICIES = ("none", "suffix", "nearest-free")


class Parser(TyperCommand):
    """让 `--unique` 可以不带值：后面是一种策略才是它的值，别的都是参数，绝不吞掉 MODEL。

    目录恰好叫 suffix 时写 `--unique=suffix suffix …` 或 `./suffix`。
    """

    def parse_args(self, ctx: Any, args: List[str]) -> List[str]:
        """先补上省略的值，再照常解析。"""
        try:
            return super().parse_args(ctx, _filled(args))
        except Exception as error:
            if "--unique" in args and hasattr(error, "message"):  # click 的用法错误，多半是策略拼错了
                error.message = f"{error.message} --unique takes one of {', '.join(_POLICIES)}, or nothing."
            raise


def run(
    session: Session,
    model: Model,
    features: Features,
    output: Output,
    unique: Annotated[str, typer.Option(metavar="none|suffix|nearest-free")] = "none",
    prefix_price: Annotated[float, typer.Option(metavar="PRICE")] = 1.0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    rows_per_part: int = 1 << 20,
    engine: Annotated[str, typer.Option(metavar="local|ray")] = "local",
    address: str | None = None,
    block_rows: BlockRows = 16384,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """编码、去重、封存，见 `catalog/encoding/encode.py`；编号须唯一，`.npy` 的编号是行号。"""
    from ...catalog import encode_catalog
    from ...files.progress import Progress
    from ...files.vectors import open_vectors
    from ..loading import load_model

    check_apart(output, model, features)
    # 在集群上 --device 说的是各节点；发起的这台机器可能没有显卡，ID 与设备无关
    encoder = load_model(model, device if engine == "local" else "auto")
    columns = {"id_column": id_column, "vector_column": vector_column}
    source = open_vectors(features, expected_dim=encoder.embedding_dim, **columns)
    with Progress(session.progress) as bar, bar.task("encode", source.num_rows) as report:
        return encode_catalog(
            encoder,
            source,
            output,
            overwrite=overwrite,
            resume=resume,
            unique=unique,
            prefix_price=prefix_price,
            block_rows=block_rows,
            rows_per_part=rows_per_part,
            engine=_engine(engine, address, model, device),
            progress=report,
        )


def show(result: Dict[str, Any], page: Page) -> None:
    """一行写在哪里，去重时再加一行它的代价。"""
    page.say("word.written", n=result["num_items"], out=result["output"])
    if result["unique"] == "suffix":
        page.say("encode.suffix", n=result["num_contenders"], m=result["max_suffix"])
    elif result["unique"] == "nearest-free":
        page.say(
            "encode.nearest_free",
            n=result["num_contenders"],
            m=result["num_moved"],
            p=result["num_prefix_changed"],
            g=result["num_greedy"],
            e=result["added_mse"],
        )


def _filled(arguments: List[str]) -> List[str]:
    """`--unique` 后面不是策略，就补上 suffix；typer 的选项不能省略值。"""
    out: List[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        out.append(argument)
        if argument == "--unique" and following not in _POLICIES:
            out.append("suffix")
    return out


def _engine(name: str, address: str | None, model: Path, device: str) -> Engine | None:
    """--engine 的门；None 就在本进程里跑。"""
    if name not in ("local", "ray"):
        raise InputError(f"--engine {name!r} is not supported; use local or ray")
    if name == "local":
        if address is not None:
            raise InputError("--address is only for --engine ray")
        return None
    from ...catalog.encoding.encode_ray import RayEngine
    from ..loading import load_model

    load = functools.partial(load_model, model.resolve(), device)
    return RayEngine(load, address=address, num_gpus=1 if device.startswith("cuda") else 0)
