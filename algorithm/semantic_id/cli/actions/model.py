"""命令行背后的动作：每个命令一个函数，参数进，可写成 JSON 的字典出，不打印。

只有这里同时认识模型（一楼）与物品表（二楼）。被 `app.py` 在命令执行时才导入，因为它会拉起 torch。
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict

import pyarrow.parquet as pq

from ... import __version__
from ...catalog import Catalog, decode_codes_file, encode_catalog
from ...catalog.encoding.encode import DEFAULT_ROWS_PER_PART, Engine
from ...catalog.format.parts import codes_of
from ...catalog.unique.assign import DEFAULT_PREFIX_PRICE
from ...config import SemanticIDConfig, TrainerConfig
from ...decoding.tokenizer_folder import write_tokenizer
from ...encoder import SemanticIDEncoder
from ...evaluation import showcase
from ...files.durable import write_atomically
from ...files.progress import Progress
from ...files.run_folder import check_demo_folder, check_run_folder, remove_traces
from ...files.vectors import open_vectors
from ...report.page import write_report
from ...trainer import train_codebook
from ..loading import choose_device, load_model, parse_sizes
from .evaluate import evaluate

__all__ = ["decode", "demo", "encode", "evaluate", "info", "parse_sizes", "tokens", "train"]

DEFAULT_EPOCHS = 10


def train(
    features: Path,
    output: Path,
    *,
    settings: Dict[str, Any],
    config_file: Path | None,
    epochs: int | None,
    device: str,
    resume: bool,
    overwrite: bool,
    id_column: str,
    vector_column: str,
    progress: bool,
    pairs: Path | None = None,
) -> Dict[str, Any]:
    """训练一个模型并写进 `output`。

    Args:
        features: `.npy`、Parquet 文件或目录。
        output: 训练目录，写完就是模型目录。
        settings: 命令行给出的 `SemanticIDConfig` 与 `TrainerConfig` 字段；None 值表示没给。
        config_file: JSON 配置文件；命令行给出的优先。
        epochs: 训练轮数；None 取配置文件的 num_epochs，再取 10。
        device: auto、cpu、cuda、cuda:1……
        resume: 从断点接着训练；没有断点就从头开始。
        overwrite: 允许替换已有的训练目录；新模型写完之前，旧模型还在。
        id_column: Parquet 的物品编号列。
        vector_column: Parquet 的向量列。
        progress: 是否显示进度。
        pairs: 常被一起消费的物品编号对，`.npy` 或两列的 Parquet；None 为没有。

    Raises:
        FileExistsError: 输出已存在而没有 overwrite 或 resume。
        TypeError, ValueError, OSError: 见各扇门。
    """
    merged = {**_read_config(config_file), **{k: v for k, v in settings.items() if v is not None}}
    num_epochs = merged.pop("num_epochs", DEFAULT_EPOCHS) if epochs is None else epochs
    merged.pop("num_epochs", None)
    check_run_folder(output, resume, overwrite)
    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    model_fields = {field.name for field in fields(SemanticIDConfig)}
    # beam_size 两边都有：明确给出的束宽，训练配方不得再改
    trainer_config = TrainerConfig(**{k: v for k, v in merged.items() if k == "beam_size" or k not in model_fields})
    model_config = SemanticIDConfig(**{"embedding_dim": source.dim, **_only(merged, model_fields)})
    encoder = SemanticIDEncoder(model_config).to(choose_device(device))
    existed = output.exists()
    if overwrite and not resume:
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    try:
        figures = train_codebook(
            encoder, source, num_epochs, config=trainer_config, output_dir=output, resume=resume, pairs=pairs,
            progress=progress,
        )  # fmt: skip
    except Exception:
        remove_traces(output, existed)
        raise
    return {
        "output": os.fspath(output),
        "fingerprint": encoder.fingerprint(),
        "embedding_dim": encoder.embedding_dim,
        "codebook_sizes": list(encoder.codebook_sizes),
        "features": source.description,
        **figures,
    }


def encode(
    model: Path,
    features: Path,
    output: Path,
    *,
    overwrite: bool,
    block_rows: int,
    device: str,
    id_column: str,
    vector_column: str,
    progress: bool,
    resume: bool = False,
    unique: str = "none",
    prefix_price: float = DEFAULT_PREFIX_PRICE,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
    engine: str = "local",
    address: str | None = None,
) -> Dict[str, Any]:
    """把特征编码成物品表；去重、续跑、引擎见 `catalog.encode`。"""
    # 在集群上 --device 说的是各节点；发起的这台机器可能没有显卡，ID 与设备无关
    encoder = load_model(model, device if engine == "local" else "auto")
    source = open_vectors(
        features, expected_dim=encoder.embedding_dim, id_column=id_column, vector_column=vector_column
    )
    with Progress(progress) as bar, bar.task("encode", source.num_rows) as report:
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


def decode(
    model: Path, codes: Path, output: Path, *, overwrite: bool, block_rows: int, device: str, progress: bool
) -> Dict[str, Any]:
    """把编码解码成特征向量文件。"""
    encoder = load_model(model, device)
    # 行数要打开文件才知道，所以进度以比例计
    with Progress(progress) as bar, bar.task("decode", 100) as report:
        return decode_codes_file(
            encoder,
            codes,
            output,
            overwrite=overwrite,
            block_rows=block_rows,
            progress=report,
        )


def info(model: Path) -> Dict[str, Any]:
    """模型的配置、指纹、大小与训练时的数字。"""
    encoder = load_model(model, "cpu")
    return {
        "model": os.fspath(model),
        "fingerprint": encoder.fingerprint(),
        "config": encoder.config.to_dict(),
        "num_parameters": sum(p.numel() for p in encoder.parameters()),
        "bytes": sum((model / name).stat().st_size for name in ("config.json", "model.safetensors")),
        "training": encoder.training_figures,
    }


def tokens(
    model: Path, tokenizer: Path, output: Path, *, suffix_size: int, embedding_dim: int | None
) -> Dict[str, Any]:
    """给分词器加上这个模型的语义 ID 词。"""
    if suffix_size < 0:
        raise ValueError(f"--suffix-size {suffix_size} is out of range; use 0 for no suffix")
    encoder = load_model(model, "cpu")
    num_levels = len(encoder.codebook_sizes)
    return write_tokenizer(
        tokenizer,
        output,
        (*encoder.codebook_sizes, *([suffix_size] if suffix_size else [])),
        fingerprint=encoder.fingerprint(),
        codebooks=[encoder.get_codebook_embeddings(level) for level in range(1, num_levels + 1)],
        embedding_dim=embedding_dim,
    )


def demo(output: Path, *, device: str, progress: bool, lang: str = "zh") -> Dict[str, Any]:
    """在内置的 8,192 个真实物品上走完全程：训练 → 编码 → 评估 → 挑出共享前缀的物品 → 写报告。

    Args:
        output: 放 model/、catalog/、demo.json 与 report.html 的目录；只有上次演示留下的目录才会被替换。
        device: 同 `train`。
        progress: 是否显示进度。
        lang: 报告打开时的语言。

    Returns:
        `evaluate` 的全部数字，加上 prefix_agreement（前缀长度 0…L 时两件物品同类的概率，0 为随机）、prefixes 与 report
        （网页的路径；没有装 semid[report] 时为 None）。

    Raises:
        FileExistsError: 目录里有不是演示写的东西。
    """
    check_demo_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    # 先写标记：演示中途被打断，下次也认得出这是自己的目录
    write_atomically(output / "demo.json", b"{}\n")
    columns: Dict[str, Any] = {"id_column": "item_id", "vector_column": "embedding"}
    settings = {"codebook_sizes": showcase.DEMO_CODEBOOK_SIZES}
    train(
        showcase.DEMO_ITEMS,
        output / "model",
        settings=settings,
        config_file=None,
        epochs=None,
        device=device,
        resume=False,
        overwrite=True,
        **columns,
        progress=progress,
    )
    common: Dict[str, Any] = {"device": device, "progress": progress, "block_rows": 8192, **columns}
    encode(output / "model", showcase.DEMO_ITEMS, output / "catalog", overwrite=True, **common)
    evaluation = output / "model" / "evaluation"  # 在训练目录里，报告才会把两者合在一起
    figures = evaluate(
        output / "model", showcase.DEMO_ITEMS, labels="category", output=evaluation, overwrite=True, **common
    )
    codes = codes_of(Catalog.open(output / "catalog").read())  # (N, L)
    items = pq.read_table(showcase.DEMO_ITEMS, columns=["title", "category"]).to_pydict()
    result = {
        "model": os.fspath(output / "model"),
        "catalog": os.fspath(output / "catalog"),
        "report": _demo_report(output, lang),
        **figures,
        "output": os.fspath(output),
        "prefix_agreement": [
            showcase.prefix_agreement(codes, items["category"], depth) for depth in range(codes.shape[1] + 1)
        ],
        "prefixes": showcase.choose_prefixes(codes, items["category"], items["title"]),
    }
    text = json.dumps({"semid_version": __version__, **result}, ensure_ascii=False, indent=2)
    write_atomically(output / "demo.json", (text + "\n").encode())
    return result


def _demo_report(output: Path, lang: str) -> str | None:
    """演示的网页；没有装 semid[report] 时演示照样成功。"""
    try:
        return str(write_report([output / "model"], output / "report.html", lang=lang, overwrite=True)["output"])
    except ImportError:
        return None


def _engine(name: str, address: str | None, model: Path, device: str) -> Engine | None:
    """--engine 的门；None 就在本进程里跑。"""
    if name not in ("local", "ray"):
        raise ValueError(f"--engine {name!r} is not supported; use local or ray")
    if name == "local":
        if address is not None:
            raise ValueError("--address is only for --engine ray")
        return None
    from ...catalog.encoding.encode_ray import RayEngine

    load = functools.partial(load_model, model.resolve(), device)
    return RayEngine(load, address=address, num_gpus=1 if device.startswith("cuda") else 0)


def _read_config(path: Path | None) -> Dict[str, Any]:
    """读 JSON 配置；拼错的键是错误，否则它会被悄悄忽略。"""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise TypeError(f"--config {str(path)!r} must hold a JSON object, got {type(values).__name__}")
    known = [field.name for kind in (SemanticIDConfig, TrainerConfig) for field in fields(kind)] + ["num_epochs"]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"--config {str(path)!r} has unknown key {unknown[0]!r}; known keys: {', '.join(known)}")
    return values


def _only(values: Dict[str, Any], names: set[str]) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
