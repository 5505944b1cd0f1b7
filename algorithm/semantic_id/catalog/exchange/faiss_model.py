"""faiss 的残差量化器 → 我们的模型：码本原样搬过来，编码、解码、物品表就都能用。

只在这里导入 faiss（附加依赖 `semid[faiss]`）。faiss 的码本大小是 2 的幂；它编码用束搜索，所以束宽也一并搬过来。两边的
束搜索留路径的规则不尽相同，少数物品的 ID 会与 faiss 给出的不同；同样的 ID 解码得到同样的向量。

形状字母：D 为特征维度，L 为层数，K_l 为第 l 层码本大小。
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ...config import MAX_BEAM_SIZE, SemanticIDConfig
from ...encoder import SemanticIDEncoder

__all__ = ["read_faiss"]


def read_faiss(path: str | os.PathLike[str]) -> SemanticIDEncoder:
    """读一个 `IndexResidualQuantizer`（或 `IndexResidual`）文件。

    Raises:
        ImportError: 没有装 faiss。
        FileNotFoundError: 文件不存在。
        ValueError: 不是 faiss 文件，不是残差量化器，或没有训练过。
    """
    try:
        import faiss
    except ImportError:
        raise ImportError("reading a faiss index needs faiss; install it with: pip install 'semid[faiss]'") from None
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"faiss index {str(file)!r} does not exist; give a file written by faiss.write_index")
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is not a readable faiss index: {reason}") from None
    quantizer = getattr(index, "rq", None)
    if quantizer is None:
        raise ValueError(f"{file} holds a {type(index).__name__}; only residual quantizers can be read")
    if not index.is_trained:
        raise ValueError(f"{file} was never trained; train it in faiss first")
    sizes = tuple(1 << int(bits) for bits in faiss.vector_to_array(quantizer.nbits))
    books = faiss.vector_to_array(quantizer.codebooks).reshape(-1, int(index.d))  # (Σ K_l, D)
    beam = min(int(quantizer.max_beam_size), MAX_BEAM_SIZE)
    model = SemanticIDEncoder(SemanticIDConfig(embedding_dim=int(index.d), codebook_sizes=sizes, beam_size=beam))
    offset = 0
    with torch.no_grad():
        for level in model.rq_vae.quantizers:
            book = torch.from_numpy(np.ascontiguousarray(books[offset : offset + level.num_embeddings]))
            level.embedding.weight.copy_(book)
            level.ema_w.copy_(book)  # 计数为一、和等于码字：接着训练时两者一致
            level.ema_cluster_size.fill_(1.0)
            offset += level.num_embeddings
        model.rq_vae.initialized.fill_(True)
    return model.eval()
