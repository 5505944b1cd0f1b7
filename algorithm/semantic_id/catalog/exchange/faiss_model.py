"""faiss 的残差量化器 → 配置与码本：原样搬过来，编码、解码、物品表就都能用。

只在这里导入 faiss（附加依赖 `semid[faiss]`）；不认识模型，由命令行拿结果去造编码器。

搬得动的是「向量 = 若干码字之和」的：残差量化器，以及对残差编码的倒排（`IVF…,RQ…`），它的粗聚类中心就是第一层。读完用
faiss 自己的解码核对一批编码，凡是对不上的（先做线性变换、乘积量化、按范数缩放……）一律拒绝，不猜。
faiss 编码用束搜索，所以束宽也一并搬过来。两边的束搜索留路径的规则不尽相同，少数物品的 ID 会与 faiss 给出的不同；同样的
ID 解码得到同样的向量。

形状字母：D 为特征维度，L 为层数，K_l 为第 l 层码本大小，S 为核对用的编码数。
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List, NamedTuple, Tuple

import numpy as np

from ...errors import InputError
from ...files.source import one_line

__all__ = ["FaissQuantizer", "read_faiss"]

_CHECKED = 256
_KINDS = "IndexResidualQuantizer, or IndexIVFResidualQuantizer that encodes residuals"


class FaissQuantizer(NamedTuple):
    """一个残差量化器。

    Attributes:
        embedding_dim: D。
        codebook_sizes: (K_1, …, K_L)。
        beam_size: faiss 编码时的束宽。
        codebooks: L 个 (K_l, D) float32。
    """

    embedding_dim: int
    codebook_sizes: Tuple[int, ...]
    beam_size: int
    codebooks: List[np.ndarray]


def read_faiss(path: str | os.PathLike[str]) -> FaissQuantizer:
    """读一个 faiss 索引文件。

    Raises:
        ImportError: 没有装 faiss。
        FileNotFoundError: 文件不存在。
        InputError: 不是 faiss 文件，没有训练过，或不能原样表示成逐层相加的码本。
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
        raise InputError(f"{file} is not a readable faiss index: {one_line(error)}") from None
    what = f"{file} holds a {type(index).__name__}"
    quantizer = getattr(index, "rq", None)
    if quantizer is None:
        raise InputError(f"{what}; only residual quantizers can be read: {_KINDS}")
    if not index.is_trained:
        raise InputError(f"{file} was never trained; train it in faiss first")
    coarse = _coarse(faiss, index, what)
    bits = [int(value) for value in faiss.vector_to_array(quantizer.nbits)]
    books = faiss.vector_to_array(quantizer.codebooks).reshape(-1, int(index.d))  # (Σ K_l, D)
    if len(books) != sum(1 << value for value in bits):
        raise InputError(f"{what} whose codebooks have {len(books)} rows, not {sum(1 << value for value in bits)}")
    layers = np.split(books, np.cumsum([1 << value for value in bits])[:-1])
    layers = [np.ascontiguousarray(layer, np.float32) for layer in (*coarse, *layers)]
    _check_decoding(index, layers, bits, len(coarse), what)
    sizes = tuple(len(layer) for layer in layers)
    return FaissQuantizer(int(index.d), sizes, int(quantizer.max_beam_size), layers)


def _coarse(faiss: Any, index: Any, what: str) -> List[np.ndarray]:
    """倒排的粗聚类中心，[(K_1, D)]；不是倒排则为空。

    Raises:
        InputError: 中心不是平放的、不按 L2 挑，或编码的不是残差。
    """
    if not hasattr(index, "nlist"):
        return []
    flat = faiss.downcast_index(index.quantizer)
    if type(flat).__name__ not in ("IndexFlatL2", "IndexFlat") or flat.metric_type != faiss.METRIC_L2:
        raise InputError(f"{what} with a {type(flat).__name__} as coarse quantizer; only flat L2 ones can be read")
    if not index.by_residual:
        raise InputError(
            f"{what} with by_residual=False: its lists say nothing about the vectors; {_KINDS} can be read"
        )
    return [flat.reconstruct_n(0, int(index.nlist))]


def _check_decoding(index: Any, layers: List[np.ndarray], bits: List[int], num_coarse: int, what: str) -> None:
    """抽一批编码让 faiss 自己解码，逐个与「各层码字之和」核对。

    faiss 的独立编码：倒排的话先是粗聚类号（小端，`coarse_code_size` 个字节），再是各层编号按位从低到高拼起来，范数放在
    最后。

    Raises:
        InputError: 对不上。
    """
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, len(layer), _CHECKED) for layer in layers], axis=1)  # (S, L)
    flags = [(codes[:, [num_coarse + i]] >> np.arange(width)) & 1 for i, width in enumerate(bits)]
    packed = np.packbits(np.concatenate(flags, axis=1).astype(np.uint8), axis=1, bitorder="little")
    head = np.zeros((_CHECKED, 0), np.uint8)
    if num_coarse:
        width = int(index.coarse_code_size())
        head = codes[:, :1].astype("<i8").view(np.uint8).reshape(_CHECKED, 8)[:, :width]
    data = np.zeros((_CHECKED, int(index.sa_code_size())), np.uint8)
    used = head.shape[1] + packed.shape[1]
    fits = used <= data.shape[1]
    if fits:
        data[:, :used] = np.concatenate([head, packed], axis=1)
        theirs = np.asarray(index.sa_decode(data), np.float64)  # (S, D)
        ours = sum(layer[codes[:, i]].astype(np.float64) for i, layer in enumerate(layers))
        scale = max(float(np.abs(theirs).max()), 1e-30)
        fits = theirs.shape == np.shape(ours) and bool(np.abs(ours - theirs).max() <= 1e-5 * scale)
    if not fits:
        raise InputError(
            f"{what} that is no plain sum of codewords (faiss decodes the same codes to other vectors); {_KINDS} can "
            "be read"
        )
