"""`semid train`：训练一个模型。"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Dict

import typer

from ...errors import InputError, InputTypeError
from ..options import Device, Features, IdColumn, Output, Overwrite, Resume, Session, Sizes, VectorColumn
from ..outputs import check_apart
from ..page import Page

__all__ = ["run", "show", "show_levels"]

DEFAULT_EPOCHS = 10
GO_ON = " with --resume, without --overwrite"


def run(
    session: Session,
    features: Features,
    output: Output,
    codebook_sizes: Sizes = None,
    effort: Annotated[str | None, typer.Option(metavar="fast|default|max")] = None,
    pairs: Path | None = None,
    latent_dim: int | None = None,
    beam_size: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    init: Annotated[str | None, typer.Option(metavar="kmeans|uniform")] = None,
    seed: int | None = None,
    max_train_rows: int | None = None,
    config: Path | None = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """训练并写进 `output`；特征维度由数据决定。旧模型在新模型写完之前还在。

    Raises:
        FileExistsError: 输出已存在而没有 overwrite 或 resume。
        TypeError, ValueError, OSError: 见各扇门。
    """
    from ...config import SemanticIDConfig, TrainerConfig
    from ...encoder import SemanticIDEncoder
    from ...files.vectors import open_vectors
    from ...trainer import train_codebook
    from ..loading import choose_device, parse_sizes

    flags = {
        "codebook_sizes": None if codebook_sizes is None else parse_sizes(codebook_sizes),
        "effort": effort, "latent_dim": latent_dim, "beam_size": beam_size, "batch_size": batch_size,
        "init": init, "seed": seed, "max_train_rows": max_train_rows, "num_epochs": epochs,
    }  # fmt: skip
    settings = {**_read_config(config), **{name: value for name, value in flags.items() if value is not None}}
    num_epochs = settings.pop("num_epochs", DEFAULT_EPOCHS)
    check_apart(output, features, pairs, config)
    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    of_model = {field.name for field in fields(SemanticIDConfig)}
    # beam_size 两边都有：明确给出的束宽，训练配方不得再改
    of_trainer = {field.name for field in fields(TrainerConfig)}
    model_config = SemanticIDConfig(**{"embedding_dim": source.dim, **_only(settings, of_model)})
    trainer_config = TrainerConfig(**_only(settings, of_trainer))
    encoder = SemanticIDEncoder(model_config).to(choose_device(device))
    figures = train_codebook(
        encoder, source, num_epochs, config=trainer_config, output_dir=output, resume=resume, overwrite=overwrite,
        pairs=pairs, progress=session.progress,
    )  # fmt: skip
    return {
        "output": os.fspath(output),
        "fingerprint": encoder.fingerprint(),
        "embedding_dim": encoder.embedding_dim,
        "codebook_sizes": list(encoder.codebook_sizes),
        "features": source.description,
        **figures,
    }


def show(result: Dict[str, Any], page: Page) -> None:
    """摘要、逐层的码本使用、训练器的提示。"""
    page.facts(
        [
            ("train.rows", f"{result['num_train_rows']} / {result['num_holdout_rows']}"),
            ("train.relative_mse", _pair(result, "relative_mse")),
            ("train.collision_rate", _pair(result, "collision_rate")),
            ("train.best_epoch", f"{result['best_epoch']} / {result['num_epochs']}"),
            ("word.fingerprint", result["fingerprint"][:16]),
        ]
    )
    show_levels(result, page)
    for note in result["notes"]:
        page.show(f"· {note}")
    page.say("train.written", out=result["output"])


def show_levels(result: Dict[str, Any], page: Page) -> None:
    """逐层的码本使用；`semid evaluate` 也用它。"""
    from ...evaluation.summary import split_table

    table = split_table(result, "level")
    heads = [page.text("word.level"), page.text("word.codewords")]
    heads += [head[1 if page.lang == "en" else 0] for head in table.heads]
    rows = zip(result["codebook_sizes"], table.cells, strict=True)
    page.table(heads, [(f"L{level}", str(size), *cells) for level, (size, cells) in enumerate(rows, start=1)])


def _pair(result: Dict[str, Any], key: str) -> str:
    """训练行与留出行的同一个数字；没有定义的写成短横。"""
    values = (result[key], result[f"holdout_{key}"])
    return " / ".join("–" if value is None else f"{value:.4f}" for value in values)


def _read_config(path: Path | None) -> Dict[str, Any]:
    """读 JSON 配置；拼错的键是错误，否则它会被悄悄忽略。"""
    if path is None:
        return {}
    from ...config import SemanticIDConfig, TrainerConfig

    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputTypeError(f"--config {str(path)!r} must hold a JSON object, got {type(values).__name__}")
    known = [field.name for kind in (SemanticIDConfig, TrainerConfig) for field in fields(kind)] + ["num_epochs"]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"--config {str(path)!r} has unknown key {unknown[0]!r}; known keys: {', '.join(known)}")
    return values


def _only(values: Dict[str, Any], names: set[str]) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
