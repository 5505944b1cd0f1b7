"""给一个现成的分词器加上语义 ID 的词，写成一个新的文件夹；命令 `semid tokens` 背后的动作。

    my-tokenizer/
    ├── tokenizer.json …            transformers 自己的文件，`AutoTokenizer.from_pretrained` 直接读
    ├── semid_embeddings.safetensors  可选：weight (Σ K_l, d)，行序即词号的次序
    └── semid_tokens.json           最后写：词号排在哪里（`TokenLayout.from_json`）与模型指纹

`semid_tokens.json` 还记下其余每个文件的 SHA-256，`read_layout` 用之前核对。
先写在旁边的临时目录里，读回来核对过才改名：被杀在半路，output 上什么也没有。
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Sequence

import torch
from safetensors.torch import save as tensors_to_bytes

from ..errors import InputError
from ..files.durable import sync_folder, write_synced
from ..files.sealed import parse_json
from ..files.source import one_line
from .embedding_rows import init_embedding_rows_
from .tokens import TokenLayout, add_tokens

__all__ = ["EMBEDDINGS_NAME", "LAYOUT_NAME", "read_layout", "write_tokenizer"]

LAYOUT_NAME = "semid_tokens.json"
EMBEDDINGS_NAME = "semid_embeddings.safetensors"


def write_tokenizer(
    tokenizer: Path,
    output: Path,
    sizes: Sequence[int],
    *,
    fingerprint: str,
    codebooks: Sequence[torch.Tensor] = (),
    embedding_dim: int | None = None,
) -> Dict[str, Any]:
    """读分词器、加词、写新文件夹。

    Args:
        tokenizer: 本地的分词器（或模型）目录；不联网，不执行里面的代码。
        output: 新目录；须不存在或为空。
        sizes: (K_1, …, K_L)，含去重位。
        fingerprint: 模型指纹，原样记下，读的人据此认出编号属于哪个模型。
        codebooks: 各层码本，给了 embedding_dim 才用。
        embedding_dim: 大模型词向量的宽度 d；None 就不写词向量。

    Returns:
        写了什么，可以写成 JSON。

    Raises:
        ImportError: 没有安装 `semid[hf]`。
        FileNotFoundError: 分词器目录不存在。
        FileExistsError: output 已经有东西。
        ValueError: 分词器读不出，或已有一部分同名的词。
    """
    if not tokenizer.is_dir():
        raise FileNotFoundError(f"tokenizer folder {str(tokenizer)!r} does not exist; download one first")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {str(output)!r} exists; choose another folder")
    loaded = _load(tokenizer)
    num_before = len(loaded)
    layout = add_tokens(loaded, sizes)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    try:
        loaded.save_pretrained(os.fspath(folder))
        if embedding_dim is not None:
            write_synced(
                folder / EMBEDDINGS_NAME, tensors_to_bytes({"weight": _rows(layout, codebooks, embedding_dim)})
            )
        text = layout.to_json(model_fingerprint=fingerprint, files=_digests(folder))
        write_synced(folder / LAYOUT_NAME, text.encode())
        # 读回来再加一次：全都在、词号相同，才算往返精确
        if add_tokens(_load(folder), sizes) != layout:
            raise InputError(f"the tokenizer of {str(tokenizer)!r} gives other ids after saving; report this")
        folder.chmod(0o755)  # mkdtemp 只给自己看
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_folder(output.parent)
    return {
        "output": os.fspath(output),
        "num_tokens": layout.num_tokens,
        "num_tokens_before": num_before,
        "sizes": list(layout.sizes),
        "offsets": list(layout.offsets),
        "embedding_dim": embedding_dim,
        "fingerprint": fingerprint,
    }


def read_layout(folder: Path) -> TokenLayout:
    """读回词号的排法，并核对文件夹里写下的每个文件；在 `AutoTokenizer.from_pretrained` 之前调用。

    Raises:
        FileNotFoundError: 没有 `semid_tokens.json`，或少了文件。
        ValueError: 有文件被改动；旧版本写的没有校验和，只核对内容。
    """
    where = folder / LAYOUT_NAME
    data = where.read_bytes()
    layout = TokenLayout.from_json(data.decode("utf-8", "replace"), str(where))
    files = parse_json(data, str(where)).get("files", {})
    if not isinstance(files, dict):
        raise InputError(f"{where} must hold an object files; write the folder again with `semid tokens`")
    for name, digest in files.items():
        if Path(name).name != name:
            raise InputError(f"{where} lists {name!r}, which is not a name in this folder")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise InputError(f"{folder / name} does not match its SHA-256 in {LAYOUT_NAME}; write the folder again")
    return layout


def _digests(folder: Path) -> Dict[str, str]:
    """文件名 → SHA-256，按名字排好。"""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _load(folder: Path) -> Any:
    """只读本地文件的 `AutoTokenizer`。"""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError("LLM tokens need the extra `hf`: pip install 'semid[hf]'") from error
    try:
        return AutoTokenizer.from_pretrained(os.fspath(folder), local_files_only=True, trust_remote_code=False)
    except ImportError:  # 缺 sentencepiece 之类，transformers 自己说得清
        raise
    except Exception as error:  # 坏文件在这里什么都抛，tokenizers 抛的就是 Exception 本身
        raise InputError(f"{str(folder)!r} holds no readable tokenizer: {one_line(error)}") from None


def _rows(layout: TokenLayout, codebooks: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """(Σ K_l, d) 词向量，标准差 0.02。"""
    if width < 1:
        raise InputError(f"embedding_dim={width} is out of range; use an int >= 1")
    starts = tuple(sum(layout.sizes[:level]) for level in range(layout.num_levels))
    weight = torch.zeros(layout.num_tokens, width)
    init_embedding_rows_(weight, TokenLayout(layout.sizes, starts), codebooks)
    return weight
