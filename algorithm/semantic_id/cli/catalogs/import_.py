"""`semid import`：`.index.json` 导入成物品表；别的当作 faiss 残差量化器，导入成模型。"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Dict

import typer

from ...errors import InputError
from ..options import Output, Session, Sizes
from ..outputs import check_apart
from ..page import Page

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

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {str(output)!r} exists; choose another folder")
    model = read_faiss(source)
    model.save_pretrained(output)
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
