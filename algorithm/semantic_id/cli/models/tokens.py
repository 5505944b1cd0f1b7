"""`semid tokens`：给大模型的分词器加上语义 ID 的词；需要 semid[hf]。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict

import typer

from ...errors import InputError
from ..options import Model, Output, Session
from ..outputs import check_apart
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    model: Model,
    tokenizer: Annotated[Path, typer.Option()],
    output: Output,
    suffix_size: int = 0,
    embedding_dim: int | None = None,
) -> Dict[str, Any]:
    """写出加了词的分词器目录。

    Raises:
        InputError: `suffix_size` 是负数。
    """
    from ...decoding.tokenizer_folder import write_tokenizer
    from ..loading import load_model

    if suffix_size < 0:
        raise InputError(f"--suffix-size {suffix_size} is out of range; use 0 for no suffix")
    check_apart(output, model, tokenizer)
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


def show(result: Dict[str, Any], page: Page) -> None:
    """一行：几个词、从哪个词号起、写在哪里。"""
    page.say("tokens.written", n=result["num_tokens"], first=result["offsets"][0], out=result["output"])
