"""默认训练与 faiss 残差 k-means 并排：相对误差、冲突率、利用率、困惑度、CPU 秒。

    python benchmarks/bench_core.py --features embedding.npy --train-rows 100000 --output benchmarks/results/core.md

训练行与未见行由 `numpy.random.default_rng(seed)` 的排列切分；relative MSE 的分母以训练行均值为中心。
两边同一批行、同样的码本大小；faiss 每层 25 次迭代、`max_points_per_centroid` 放开，即它能做到的最好的普通残差 k-means。
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from algorithm.semantic_id import (
    SemanticIDConfig,
    SemanticIDEncoder,
    TrainerConfig,
    compute_codebook_utilization,
    train_codebook,
)
from algorithm.semantic_id.metrics import codes as metrics

FAISS_ITERATIONS = 25


def figures(codes: np.ndarray, rebuilt: np.ndarray, x: np.ndarray, mean: np.ndarray, sizes: tuple[int, ...]) -> dict:
    """一套 ID 在一组行上的数字；codes (N, L)，rebuilt 与 x (N, D)。"""
    counts = [metrics.code_counts(codes[:, i], k) for i, k in enumerate(sizes)]
    error = float(np.square(x - rebuilt).sum(dtype=np.float64))
    return {
        "relative_mse": error / float(np.square(x - mean).sum(dtype=np.float64)),
        "collision_rate": metrics.collision_rate(codes),
        "utilization": [metrics.utilization(c) for c in counts],
        "perplexity / K": [metrics.perplexity(c) / k for c, k in zip(counts, sizes, strict=True)],
    }


def default_recipe(encoder: SemanticIDEncoder, train: np.ndarray, epochs: int, seed: int) -> None:
    """`train_codebook` 的默认配方。"""
    train_codebook(encoder, train, epochs, config=TrainerConfig(seed=seed))


def literal_loop(encoder: SemanticIDEncoder, train: np.ndarray, epochs: int, seed: int) -> None:
    """需求原文的训练循环：uniform 初始化、B = 256、Adam、不打乱。"""
    item_features = torch.from_numpy(train)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for batch in DataLoader(item_features, batch_size=256):
            optimizer.zero_grad()
            output = encoder.rq_vae(batch)
            loss = output["total_loss"]
            loss.backward()
            optimizer.step()
        utilization = compute_codebook_utilization(encoder)
        print(f"Epoch {epoch}: Loss={loss:.4f}, Utilization={utilization:.2%}", file=sys.stderr, flush=True)


def ours(tool: str, train: np.ndarray, unseen: np.ndarray, sizes: tuple[int, ...], epochs: int, seed: int) -> tuple:
    """训练我们的编码器，再把两组行各编码、解码一遍。"""
    torch.manual_seed(seed)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=train.shape[1], codebook_sizes=sizes))
    {"semid": default_recipe, "literal": literal_loop}[tool](encoder, train, epochs, seed)
    out = []
    for x in (train, unseen):
        codes = encoder.encode_codes(torch.from_numpy(x))
        out.append((codes.numpy(), encoder.decode_codes(codes).numpy()))
    return tuple(out)


def faiss_residual_kmeans(train: np.ndarray, unseen: np.ndarray, sizes: tuple[int, ...], seed: int) -> tuple:
    """逐层 faiss.Kmeans，编码用 IndexFlatL2。"""
    import faiss

    residuals, codes, sums = [train.copy(), unseen.copy()], [[], []], [np.zeros_like(train), np.zeros_like(unseen)]
    for size in sizes:
        kmeans = faiss.Kmeans(
            train.shape[1],
            size,
            niter=FAISS_ITERATIONS,
            seed=seed + 1,
            max_points_per_centroid=10**9,
            min_points_per_centroid=1,
        )
        kmeans.train(residuals[0])
        for part in range(2):
            _, indices = kmeans.index.search(residuals[part], 1)
            words = kmeans.centroids[indices[:, 0]]
            codes[part].append(indices[:, 0])
            sums[part] += words
            residuals[part] -= words
    return tuple((np.stack(c, 1), s) for c, s in zip(codes, sums, strict=True))


def cell(value: float | list) -> str:
    """列表逐项用空格隔开。"""
    return " ".join(f"{v:.3f}" for v in value) if isinstance(value, list) else f"{value:.4f}"


def main() -> None:
    """解析参数，逐个工具测量，打印并写出一张表。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help=".npy，(N, D) 浮点")
    parser.add_argument("--train-rows", type=int, default=100_000)
    parser.add_argument("--codebook-sizes", default="1024,4096,16384")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=11, help="排列与训练的种子")
    parser.add_argument(
        "--tools", default="semid,literal,faiss", help="semid（默认配方）、literal（需求的循环）、faiss"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    sizes = tuple(int(k) for k in arguments.codebook_sizes.split(","))
    x = np.load(arguments.features, allow_pickle=False)
    order = np.random.default_rng(arguments.seed).permutation(len(x))
    train = np.ascontiguousarray(x[order[: arguments.train_rows]], dtype=np.float32)
    unseen = np.ascontiguousarray(x[order[arguments.train_rows :]], dtype=np.float32)
    mean = train.mean(axis=0, dtype=np.float64)

    rows = []
    for tool in arguments.tools.split(","):
        started, cpu = time.perf_counter(), time.process_time()
        if tool == "faiss":
            results = faiss_residual_kmeans(train, unseen, sizes, arguments.seed)
        else:
            results = ours(tool, train, unseen, sizes, arguments.epochs, arguments.seed)
        seconds = (time.process_time() - cpu, time.perf_counter() - started)
        seen, new = (figures(*r, part, mean, sizes) for r, part in zip(results, (train, unseen), strict=True))
        rows.append([tool, *(cell(seen[k]) for k in seen), cell(new["relative_mse"]), *(f"{s:.0f}" for s in seconds)])
        print(rows[-1], file=sys.stderr, flush=True)

    header = ["tool", "relative MSE (train)", "collision rate", "utilization", "perplexity / K"]
    header += ["relative MSE (unseen)", "CPU s", "wall s"]
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    note = (
        f"{len(train):,} training rows and {len(unseen):,} unseen rows of {arguments.features.name} "
        f"({x.shape[1]} dimensions), codebooks {sizes}, seed {arguments.seed}, {arguments.epochs} epochs; "
        f"{torch.get_num_threads()} threads; {versions}; {date.today()}."
    )
    command = "python " + " ".join(a if "/" not in a or a.startswith("bench") else Path(a).name for a in sys.argv)
    text = "\n".join([f"`{command}`", "", note, "", *lines]) + "\n"
    print(text)
    if arguments.output is not None:
        arguments.output.write_text("# 默认训练与 faiss 残差 k-means\n\n" + text, encoding="utf-8")


if __name__ == "__main__":
    main()
