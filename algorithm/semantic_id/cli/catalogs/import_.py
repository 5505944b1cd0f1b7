"""`semid import`：`.index.json` 导入成物品表；别的当作 faiss 残差量化器，导入成模型。"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Dict

import typer

from ...errors import InputError
from ..options import Output, Session, Sizes
from ..outputs import check_apart
from ..page import Page

if TYPE_CHECKING:
    from ...catalog.exchange.faiss_model import FaissQuantizer
    from ...encoder import SemanticIDEncoder

__all__ = ["run", "show"]


def run(
    session: Session,
    source: Annotated[Path, typer.Argument(metavar="SOURCE")],
    output: Output,
    codebook_sizes: Sizes = None,
) -> Dict[str, Any]:
    """看后缀决定是哪一种。

    Raises:
        InputError: 给 faiss 索引指定了码本大小，或文件读不懂。
        FileExistsError: 输出已存在。
    """
    check_apart(output, source)
    if source.suffix == ".json":
        from ...catalog.exchange.index_json import import_index_json
        from ..loading import parse_sizes

        sizes = None if codebook_sizes is None else parse_sizes(codebook_sizes)
        return {"kind": "catalog", **import_index_json(source, output, codebook_sizes=sizes)}
    if codebook_sizes is not None:
        raise InputError("--codebook-sizes is only for .index.json; a faiss index knows its sizes")
    from ...catalog.exchange.faiss_model import read_faiss
    from ...files.run_folder import new_folder

    model = _model_of(read_faiss(source))
    with new_folder(output, ("config.json", "model.safetensors", "README.md")) as folder:
        model.save_pretrained(folder)
    return {
        "kind": "model",
        "output": os.fspath(output),
        "codebook_sizes": list(model.codebook_sizes),
        "embedding_dim": model.embedding_dim,
        "fingerprint": model.fingerprint(),
    }


def show(result: Dict[str, Any], page: Page) -> None:
    """一行：导入成了什么、写在哪里。"""
    if result["kind"] == "catalog":
        page.say("word.written", n=result["num_items"], out=result["output"])
    else:
        page.say("import.written", sizes="/".join(map(str, result["codebook_sizes"])), out=result["output"])


def _model_of(found: FaissQuantizer) -> SemanticIDEncoder:
    """码本原样放进没有特征网络的模型；没训练过，所以没有训练均值，也就没有 `relative_mse`。"""
    import torch

    from ...config import MAX_BEAM_SIZE, SemanticIDConfig
    from ...encoder import SemanticIDEncoder

    beam = min(found.beam_size, MAX_BEAM_SIZE)
    config = SemanticIDConfig(embedding_dim=found.embedding_dim, codebook_sizes=found.codebook_sizes, beam_size=beam)
    model = SemanticIDEncoder(config)
    with torch.no_grad():
        for level, codebook in zip(model.rq_vae.quantizers, found.codebooks, strict=True):
            book = torch.from_numpy(codebook)
            level.embedding.weight.copy_(book)
            level.ema_w.copy_(book)  # 计数为一、和等于码字：接着训练时两者一致
            level.ema_cluster_size.fill_(1.0)
        model.rq_vae.initialized.fill_(True)
    return model.eval()
