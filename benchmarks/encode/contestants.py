"""参赛者：我们的各条路径与同类工具，同一份码本。"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Callable

import numpy as np
import torch

from algorithm.semantic_id.search import isa as instruction_sets
from algorithm.semantic_id.search.nearest import PreparedCodebook, nearest, prepare

PLAIN = ("generic", "avx2", "avx512")  # 乘积是 float32 的路径
Encoder = Callable[[torch.Tensor], torch.Tensor]


def greedy(step: Callable[[torch.Tensor, int], torch.Tensor], books: list[torch.Tensor]) -> Encoder:
    """逐层：最近码字，减去它。"""

    def encode(x: torch.Tensor) -> torch.Tensor:
        codes = []
        for level, weight in enumerate(books):
            codes.append(step(x, level))
            x = x - weight[codes[-1]]
        return torch.stack(codes, 1)

    return encode


def prepared_for(books: list[torch.Tensor], path: str) -> list[PreparedCodebook]:
    """按点名的搜索路径整理码本。"""
    before = os.environ.get("SEMID_SEARCH")
    os.environ["SEMID_SEARCH"] = path
    try:
        prepared = [prepare(weight) for weight in books]
    finally:
        os.environ.pop("SEMID_SEARCH")
        if before is not None:
            os.environ["SEMID_SEARCH"] = before
    print(f"semid {path}: {prepared[0].path}", file=sys.stderr)
    return prepared


def ours(books: list[torch.Tensor], path: str) -> Encoder:
    prepared = prepared_for(books, path)
    return greedy(lambda x, level: nearest(x, prepared[level], num_threads=1), books)


def import_faiss():
    """faiss 轮子自带的旧 OpenBLAS 认不出新处理器，会退到 SSE 内核：替它点名，免得胜之不武。"""
    kernels = {"avx512": "SkylakeX", "avx2": "Haswell"}
    best = [kernels[isa.name] for isa in instruction_sets.available() if isa.name in kernels]
    if best:
        os.environ.setdefault("OPENBLAS_CORETYPE", best[-1])
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


def faiss_flat(books: list[torch.Tensor]) -> Encoder:
    faiss = import_faiss()
    indexes = []
    for weight in books:
        indexes.append(faiss.IndexFlatL2(weight.shape[1]))
        indexes[-1].add(weight.numpy())
    return greedy(lambda x, level: torch.from_numpy(indexes[level].search(x.numpy(), 1)[1][:, 0]), books)


def faiss_residual(books: list[torch.Tensor], width: int = 1) -> Encoder:
    """束宽大于 1 时用 faiss 自己的内积表。"""
    faiss = import_faiss()
    bits = [(len(weight) - 1).bit_length() for weight in books]
    if any(1 << b != len(weight) for b, weight in zip(bits, books, strict=True)):
        raise ImportError("faiss ResidualQuantizer takes powers of two only")
    vector = faiss.UInt64Vector()
    for b in bits:
        vector.push_back(b)
    quantizer = faiss.ResidualQuantizer(books[0].shape[1], vector)
    faiss.copy_array_to_vector(torch.cat(books).numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained, quantizer.max_beam_size = True, width
    if width > 1:
        quantizer.use_beam_LUT = 1
        quantizer.compute_codebook_tables()

    def encode(x: torch.Tensor) -> torch.Tensor:
        packed = quantizer.compute_codes(x.numpy())
        value = sum(packed[:, i].astype(np.int64) << 8 * i for i in range(packed.shape[1]))
        shifts = np.cumsum([0, *bits[:-1]])
        return torch.from_numpy(np.stack([value >> s & (1 << b) - 1 for s, b in zip(shifts, bits, strict=True)], 1))

    return encode


def semantic_id_kmeans(books: list[torch.Tensor], backend: str) -> Encoder:
    from semantic_id import RQKMeans

    model = RQKMeans(n_levels=len(books), n_clusters=[len(weight) for weight in books])
    model.codebooks_, model.D_ = [weight.cpu().numpy() for weight in books], books[0].shape[1]
    if backend == "numpy":
        return lambda x: torch.from_numpy(model.encode(x.numpy(), batch_size=4096)).long()
    device = str(books[0].device)  # 它的接口只收 NumPy 数组，来回的搬运算在它头上
    return lambda x: torch.from_numpy(model._encode_torch(x.cpu().numpy(), device, 4096)).long().to(x.device)


def semantic_id_rqvae(books: list[torch.Tensor]) -> Encoder:
    from semantic_id import RQVAE

    width, device = books[0].shape[1], str(books[0].device)
    sizes = [len(weight) for weight in books]
    model = RQVAE(in_dim=width, e_dim=width, num_emb_list=sizes, layers=[width], device=device)
    model.module.encoder = torch.nn.Identity()  # 只比量化，不比网络
    layers = [m for m in model.module.modules() if hasattr(m, "embedding") and hasattr(m, "n_e")]
    for layer, weight in zip(layers, books, strict=True):
        layer.embedding.weight.data.copy_(weight)
    model.module.to(device)
    return lambda x: torch.from_numpy(model.encode(x.cpu().numpy(), device=device)).long().to(x.device)


def vector_quantize(books: list[torch.Tensor]) -> Encoder:
    from vector_quantize_pytorch import ResidualVQ

    model = ResidualVQ(dim=books[0].shape[1], codebook_size=tuple(len(weight) for weight in books))
    model = model.eval().to(books[0].device)
    for layer, weight in zip(model.layers, books, strict=True):
        layer._codebook.embed.data.copy_(weight[None])

    @torch.no_grad()
    def encode(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(part[None])[1][0] for part in x.split(2048)])

    return encode


CPU_ONLY = ("semid, avx512", "semid, avx2", "semid, numpy fallback", "faiss", "semantic-id RQKMeans numpy")


def contestants(books: list[torch.Tensor], only: str) -> dict[str, Encoder]:
    """名字 → 编码函数；装不上的、这种设备没有的跳过。`only` 只留名字里含它的（`semid, auto` 总在）。"""
    on_cpu = books[0].device.type == "cpu"
    makers: dict[str, Callable[[], Encoder]] = {
        "semid, auto": lambda: ours(books, "auto"),
        **{f"semid, {path}": partial(ours, books, path) for path in ("avx512-int16", "avx512", "avx2-int16", "avx2")},
        "semid, numpy fallback": lambda: ours(books, "numpy"),
        "faiss IndexFlatL2 per level": lambda: faiss_flat(books),
        "faiss ResidualQuantizer, beam 1": lambda: faiss_residual(books),
        "sketch: cdist + argmin": lambda: greedy(lambda x, level: torch.cdist(x, books[level]).argmin(-1), books),
        "semantic-id RQKMeans numpy": lambda: semantic_id_kmeans(books, "numpy"),
        "semantic-id RQKMeans torch": lambda: semantic_id_kmeans(books, "torch"),
        "semantic-id RQVAE quantizer": lambda: semantic_id_rqvae(books),
        "vector-quantize-pytorch ResidualVQ": lambda: vector_quantize(books),
    }
    out = {}
    for name, make in makers.items():
        if (only not in name and name != "semid, auto") or (not on_cpu and name.startswith(CPU_ONLY)):
            continue
        try:
            out[name] = make()
        except (ImportError, RuntimeError) as error:
            print(f"skip {name}: {error}", file=sys.stderr)
    return out
