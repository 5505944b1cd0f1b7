"""各家的做法：同样的训练行进，编码器出。

每家照它的默认设置用；不得不改的地方写在 `settings` 里，它进缓存的键，也印进结果。一个工具给出一种或几种「读法」：
束搜索的模型既有它自己的束，也有贪心（逐层取最近码字），两者的编号与误差都记下。
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

import numpy as np

# 一种读法：(N, D) → (编号 (N, L), 重建 (N, D))
Reading = Callable[[np.ndarray], "tuple[np.ndarray, np.ndarray]"]
PACKAGE = Path(__file__).resolve().parents[2] / "algorithm"


@dataclass(frozen=True)
class Tool:
    """一家的一种做法。

    Attributes:
        package: 发行包的名字，版本由它查；"semid" 另加训练与编码的源码的摘要。
        module: 训练之前先导入，免得导入的时间算进训练。
        settings: 与它的默认不同的地方，或默认里值得写明的。
        fit: (训练行, 码本大小, 种子, settings) → 读法，第一种是它的默认读法。
        limits: 不跑的理由；None 即可跑。
        environment: 子进程额外的环境变量。
    """

    name: str
    package: str
    module: str
    fit: Callable[[np.ndarray, tuple[int, ...], int, dict[str, Any]], dict[str, Reading]]
    settings: dict[str, Any] = field(default_factory=dict)
    limits: Callable[[str, tuple[int, ...]], str | None] = lambda dataset, sizes: None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.package == "semid"

    def version(self) -> str | None:
        """装着的版本；没装为 None。我们自己的再加训练与编码的源码摘要：改了它们就得重跑。"""
        try:
            found = metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None
        return f"{found}+{source_digest()}" if self.ours else found

    def recipe(self) -> str:
        """`fit` 的语法树摘要：改了做法就得重跑，改注释、改排版不必。"""
        function = ast.parse(textwrap.dedent(inspect.getsource(self.fit))).body[0]
        assert isinstance(function, ast.FunctionDef)
        function.body = function.body[1:]  # 第一句是文档字符串
        return hashlib.sha256(ast.dump(function).encode()).hexdigest()[:12]


def source_digest() -> str:
    """训练与编码用到的源文件的 SHA-256 前 12 位：从 trainer.py 顺着 import 找，改命令行或报告不必重训。

    Python 文件取去掉文档字符串的语法树：改注释、改说明、改排版也不必重训。
    """
    folder = PACKAGE / "semantic_id"
    todo, codes = ["trainer"], {}
    while todo:
        name = todo.pop()
        path = folder / f"{name}.py"
        if name in codes or not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                here = [*name.split("/")[: -node.level], *(node.module or "").split(".")]
                base = "/".join(part for part in here if part)
                todo += [base, *(f"{base}/{alias.name}".lstrip("/") for alias in node.names)]
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        codes[name] = ast.dump(tree).encode()
    kernel = sorted(folder.glob("search/kernel/*.*"))
    parts = [codes[name] for name in sorted(codes)] + [path.read_bytes() for path in kernel]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _sum_of(books: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """码字之和 (N, D)。"""
    return sum(book[codes[:, level]] for level, book in enumerate(books))


# ---- faiss ----


def faiss_rkm(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """逐层 faiss.Kmeans，每层 25 次迭代，不抽样；编码用 IndexFlatL2。"""
    import faiss

    residual, models = train.copy(), []
    for size in sizes:
        model = faiss.Kmeans(train.shape[1], size, seed=seed + 1, **settings)
        model.train(residual)
        residual -= model.centroids[model.index.search(residual, 1)[1][:, 0]]
        models.append(model)

    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rest, codes = x.copy(), []
        for model in models:
            codes.append(model.index.search(rest, 1)[1][:, 0])
            rest -= model.centroids[codes[-1]]
        return np.stack(codes, axis=1), x - rest

    return {"greedy": read}


def faiss_rq(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """faiss.ResidualQuantizer，默认束宽 5；另读一遍贪心（束宽 1）。"""
    import faiss

    bits = faiss.UInt64Vector()
    widths = [size.bit_length() - 1 for size in sizes]
    faiss.copy_array_to_vector(np.array(widths, dtype=np.uint64), bits)
    model = faiss.ResidualQuantizer(train.shape[1], bits)
    model.train_type = sum(getattr(faiss.ResidualQuantizer, flag) for flag in settings["train_type"])
    model.max_mem_distances = 1 << 30  # 只决定分块，不决定结果；默认 5 GiB
    beam = model.max_beam_size
    model.train(train)

    def reading(width: int) -> Reading:
        def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            model.max_beam_size = width
            # 一次交进去就是行数 × 束宽 × K 的 float32：十万行、束宽 5、K = 16384 要 33 GB
            packed = np.concatenate([model.compute_codes(x[i : i + 1024]) for i in range(0, len(x), 1024)])
            return faiss.unpack_bitstrings(packed, widths).astype(np.int64), model.decode(packed)

        return read

    return {f"beam {beam}": reading(beam), "greedy": reading(1)}


def faiss_lsq(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """faiss.LocalSearchQuantizer，默认设置；编码是迭代局部搜索，没有「逐层」可言。"""
    import faiss

    width = sizes[0].bit_length() - 1
    model = faiss.LocalSearchQuantizer(train.shape[1], len(sizes), width)
    model.train(train)

    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        packed = model.compute_codes(x)
        return faiss.unpack_bitstrings(packed, [width] * len(sizes)).astype(np.int64), model.decode(packed)

    return {"local search": read}


# ---- semantic-id ----


def sid_rqkmeans(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """RQKMeans 的默认：sklearn KMeans，n_init 10，至多 100 次迭代。"""
    from semantic_id import RQKMeans

    model = RQKMeans(n_levels=len(sizes), n_clusters=list(sizes), random_state=seed, **settings)
    model.fit(train)

    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = model.encode(x, batch_size=4096)  # 不分块时距离矩阵是 N × K
        return codes.astype(np.int64), model.decode(codes)

    return {"greedy": read}


def sid_rqvae(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """RQVAE 的默认：64 维隐向量，100 个 epoch，AdamW 1e-4。

    `fit` 结束时取回「冲突率最低的 epoch」的权重，而默认（verbose=False）下冲突率恒为 0，取回的总是第一个 epoch；
    verbose=True 时冲突率真的去量，最低的往往也是什么都没学的头几个 epoch。`keep="last"` 让它留下最后一个 epoch 的权重，
    这是它真正学到的东西，用户却拿不到。
    """
    import torch
    from semantic_id import RQVAE

    torch.manual_seed(seed)
    model = RQVAE(in_dim=train.shape[1], num_emb_list=list(sizes), verbose=settings["keep"] == "last")
    if settings["keep"] == "last":
        epochs = iter(range(model.epochs))
        model._compute_collision_rate = lambda codes: -float(next(epochs))  # 每个 epoch 都算「最好」
    model.fit(train)

    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model.verbose = False
        codes = model.encode(x)
        return codes.astype(np.int64), model.decode(codes.astype(np.int64))

    return {"greedy": read}


# ---- vector-quantize-pytorch、rectokens ----


def vqp_residual(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """ResidualVQ：k-means 初始化，EMA，过期重置；没有网络，所以不用优化器。

    批大小取 8 · K_max，封顶 8192（它的 one-hot 是 B × K）；过期阈值 2，平均命中不足 8 次的层按四分之一的平均命中，
    否则一层里几乎每个码字每一步都被重置。
    """
    import torch
    from vector_quantize_pytorch import ResidualVQ

    torch.manual_seed(seed)
    batch_size = min(settings["max_batch_size"], settings["hits_per_codeword"] * max(sizes))
    model = ResidualVQ(
        dim=train.shape[1], codebook_size=tuple(sizes), kmeans_init=True, threshold_ema_dead_code=settings["threshold"]
    )
    for layer, size in zip(model.layers, sizes, strict=True):
        layer._codebook.threshold_ema_dead_code = min(settings["threshold"], batch_size / size / 4)
    rows = torch.from_numpy(train)
    model.train()
    with torch.no_grad():
        for _ in range(settings["epochs"]):
            for batch in rows[torch.randperm(len(rows))].split(batch_size):
                model(batch)
    model.eval()

    @torch.no_grad()
    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [model(part)[1] for part in torch.from_numpy(x).split(2048)]
        codes = torch.cat(parts).numpy()
        return codes, _sum_of([book.numpy() for book in model.codebooks], codes)

    return {"greedy": read}


def rectokens_rqvae(
    train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]
) -> dict[str, Reading]:
    """RQVAETokenizer，按它仓库里 Beauty 的配方：AdamW 1e-3、重建误差逐行求和。"""
    import torch
    from rectokens.tokenizers.rqvae import RQVAETokenizer

    torch.manual_seed(seed)
    shape = {"latent_dim": settings["latent_dim"], "hidden_dim": settings["hidden_dim"]}
    model = RQVAETokenizer(train.shape[1], num_levels=len(sizes), codebook_size=sizes[0], **shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    rows = torch.from_numpy(train)
    model.train()
    for _ in range(settings["epochs"]):
        for batch in rows[torch.randperm(len(rows))].split(settings["batch_size"]):
            optimizer.zero_grad()
            out = model(batch)
            loss = (out.recon - batch).square().sum(dim=-1).mean() + out.commitment_loss
            loss.backward()
            optimizer.step()
    model._fitted = True
    model.eval()

    @torch.no_grad()
    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens = [model.encode(part) for part in torch.from_numpy(x).split(2048)]
        rebuilt = torch.cat([model.decode(part) for part in tokens])
        return torch.cat([part.codes for part in tokens]).numpy(), rebuilt.numpy()

    return {"greedy": read}


# ---- 我们 ----


def semid(train: np.ndarray, sizes: tuple[int, ...], seed: int, settings: dict[str, Any]) -> dict[str, Reading]:
    """`train_codebook`；束宽由配方决定（随模型保存），另读一遍贪心。"""
    import dataclasses

    import torch

    from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook

    torch.manual_seed(seed)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=train.shape[1], codebook_sizes=sizes))
    options: dict[str, Any] = {"seed": seed}
    if "effort" in {item.name for item in dataclasses.fields(TrainerConfig)}:
        options["effort"] = settings["effort"]
    elif settings["effort"] != "default":
        raise ValueError(f"TrainerConfig has no effort yet, so {settings['effort']!r} cannot be run")
    train_codebook(encoder, train, config=TrainerConfig(**options))
    beam = encoder.config.beam_size

    def reading(width: int) -> Reading:
        def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            for config in (encoder.config, encoder.rq_vae.config):  # 两处可能是同一个对象
                config.beam_size = width
            codes = encoder.encode_codes(torch.from_numpy(x))
            return codes.numpy(), encoder.decode_codes(codes).numpy()

        return read

    greedy = {"greedy": reading(1)}
    return {f"beam {beam}": reading(beam), **greedy} if beam > 1 else greedy


def _equal_sizes_only(dataset: str, sizes: tuple[int, ...]) -> str | None:
    return None if len(set(sizes)) == 1 else "it takes equal level sizes only"


def _beauty_only(dataset: str, sizes: tuple[int, ...]) -> str | None:
    return "compared on Beauty only" if dataset == "wordnet" else None


RKM = {"niter": 25, "max_points_per_centroid": 10**9, "min_points_per_centroid": 1}
RQ_SHIPPED = ["Train_progressive_dim"]
RQ_REFINED = ["Train_progressive_dim", "Train_refine_codebook"]
VQP = {"epochs": 30, "threshold": 2, "hits_per_codeword": 8, "max_batch_size": 8192}
RECTOKENS = {"latent_dim": 64, "hidden_dim": 512, "epochs": 1000, "batch_size": 640, "lr": 1e-3, "weight_decay": 1e-4}
TOOLS = {
    tool.name: tool
    for tool in (
        Tool("faiss-rkm", "faiss-cpu", "faiss", faiss_rkm, RKM),
        # 出厂的 train_type 就是 Train_progressive_dim
        Tool("faiss-rq", "faiss-cpu", "faiss", faiss_rq, {"train_type": RQ_SHIPPED}),
        Tool("faiss-rq-refine", "faiss-cpu", "faiss", faiss_rq, {"train_type": RQ_REFINED}, _beauty_only),
        Tool("faiss-lsq", "faiss-cpu", "faiss", faiss_lsq, {}, _equal_sizes_only),
        Tool("semantic-id-rqkmeans", "semantic-id", "semantic_id", sid_rqkmeans),
        Tool("semantic-id-rqvae", "semantic-id", "semantic_id", sid_rqvae, {"keep": "its own choice"}, _beauty_only),
        Tool("semantic-id-rqvae-last", "semantic-id", "semantic_id", sid_rqvae, {"keep": "last"}),
        Tool("vqp-residual", "vector-quantize-pytorch", "vector_quantize_pytorch", vqp_residual, VQP),
        Tool(
            "rectokens-rqvae",
            "rectokens",
            "rectokens.tokenizers.rqvae",
            rectokens_rqvae,
            RECTOKENS,
            _equal_sizes_only,
            {"TORCHDYNAMO_DISABLE": "1"},  # 它的 forward 套着 torch.compile；同样的运算，逐句执行
        ),
        *(
            Tool(f"semid-{effort}", "semid", "torch", semid, {"effort": effort})
            for effort in ("fast", "default", "max")
        ),
    )
}
