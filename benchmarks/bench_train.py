"""训练速度：一步训练与需求草稿并排，k-means 与 faiss 并排；同一批行、单线程、CPU 时间、交错测量。

    python benchmarks/bench_train.py                                    # 内置生成器
    python benchmarks/bench_train.py --features vectors.npy --output benchmarks/results/train.md

一步 = 前向（查码本、更新码本）+ 反向 + Adam，两边的特征网络同样大小。草稿按需求原文实现（cdist + argmin、one-hot 的
EMA、逐层 straight-through），只补上让它跑得起来的：草稿没有可学的参数，这里给它普通 float32 的残差网络；两边的码本都从
同样的数据行出发。「倍数」是各轮「草稿 ÷ 我们」的中位数。

k-means 一边是训练器所用的 `kmeans`（含播种与最后的归属），一边是 `faiss.Kmeans` 25 次迭代、不抽样；inertia 都在
全部行上、用同一个函数重新计算。faiss 收敛会提前停，迭代数照实写出。安装同类工具：pip install -e ".[bench]"。

`--device cuda` 量显卡：前后同步的墙上时间；k-means 那一节只量我们自己（faiss-cpu 不在显卡上）。
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any, Callable

from bench_encode import command_line, import_faiss, kernel_names, load_features  # 先于 numpy：它限定了线程数

import numpy as np  # isort: skip
import torch
import torch.nn.functional as F
from stopwatch import Stopwatch
from torch import nn

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig
from algorithm.semantic_id.search.nearest import nearest, prepare
from algorithm.semantic_id.training.kmeans import kmeans

LEARNING_RATE = 1e-3
FAISS_ITERATIONS = 25


# ---- 需求草稿 ----


class SketchQuantizer(nn.Module):
    """需求第 2 节，逐字。"""

    def __init__(self, size: int, width: int, decay: float):
        super().__init__()
        self.size, self.decay = size, decay
        self.embedding = nn.Embedding(size, width)
        self.register_buffer("ema_cluster_size", torch.zeros(size))
        self.register_buffer("ema_w", self.embedding.weight.data.clone())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distances = torch.cdist(x, self.embedding.weight)  # (B, K)
        indices = distances.argmin(dim=-1)
        quantized = self.embedding(indices)
        commitment_loss = F.mse_loss(x, quantized.detach())
        quantized = x + (quantized - x).detach()
        if self.training:
            self._ema_update(x, indices)
        return quantized, indices, commitment_loss

    def _ema_update(self, x: torch.Tensor, indices: torch.Tensor) -> None:
        encodings = F.one_hot(indices, self.size).float()  # (B, K)
        self.ema_cluster_size = self.decay * self.ema_cluster_size + (1 - self.decay) * encodings.sum(0)
        # 草稿里 x 带着梯度历史进入 ema_w，图会一步一步越拖越长；要跑得起来必须断开
        self.ema_w = self.decay * self.ema_w + (1 - self.decay) * (encodings.T @ x.detach())
        n = self.ema_cluster_size.sum()
        cluster_size = (self.ema_cluster_size + 1e-5) / (n + self.size * 1e-5) * n
        self.embedding.weight.data = self.ema_w / cluster_size.unsqueeze(1)


class ResidualMLP(nn.Module):
    """x + W₂ relu(W₁ x + b)：与我们的特征网络同样的宽度，普通 float32。"""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


class Sketch(nn.Module):
    """需求第 3 节的 forward，前后各加一个特征网络。"""

    def __init__(self, config: SemanticIDConfig):
        super().__init__()
        width, self.beta = config.embedding_dim, config.commitment_cost
        self.encoder, self.decoder = ResidualMLP(width, config.hidden_dim), ResidualMLP(width, config.hidden_dim)
        self.quantizers = nn.ModuleList(SketchQuantizer(k, width, config.ema_decay) for k in config.codebook_sizes)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        residual = self.encoder(x)
        quantized_sum, commitment, codes = torch.zeros_like(x), x.new_zeros(()), []
        for quantizer in self.quantizers:
            quantized, indices, loss = quantizer(residual)
            codes.append(indices)
            commitment = commitment + loss
            quantized_sum = quantized_sum + quantized
            residual = residual - quantized.detach()
        reconstruction = F.mse_loss(self.decoder(quantized_sum), x)
        return {"total_loss": reconstruction + self.beta * commitment, "indices": codes}


# ---- 一步训练 ----


def start_books(x: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """逐层取残差里的随机行做码字：两边同样的起点，比均匀初始化像真的训练。"""
    books, residual = [], x
    for level, size in enumerate(sizes):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(level))[:size].to(x.device)
        books.append(residual[rows].clone())
        residual = residual - books[-1][nearest(residual, prepare(books[-1]))]
    return books


def make_models(x: torch.Tensor) -> dict[str, nn.Module]:
    """名字 → 模型；两边同样的码本。"""
    torch.manual_seed(0)
    config = SemanticIDConfig(embedding_dim=x.shape[1]).resolved()
    ours, sketch = SemanticIDEncoder(config), Sketch(config)
    for level, book in enumerate(start_books(x[: 2 * max(config.codebook_sizes)], config.codebook_sizes)):
        ours.rq_vae.quantizers[level].reset_(book)
        sketch.quantizers[level].embedding.weight.data.copy_(book)
        sketch.quantizers[level].ema_w.copy_(book)
        sketch.quantizers[level].ema_cluster_size.fill_(1.0)
    return {"semid": ours.rq_vae.train().to(x.device), "sketch": sketch.train().to(x.device)}


def step_runner(model: nn.Module) -> Callable[[torch.Tensor], None]:
    """一步：前向、反向、Adam，写法与需求的训练循环相同。"""
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.Adam(networks, lr=LEARNING_RATE, fused=True)  # 两边同样快的优化器

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch)["total_loss"].backward()
        optimizer.step()

    return step


def bench_steps(x: torch.Tensor, batch_sizes: list[int], rounds: int, watch: Stopwatch) -> list[tuple[str, ...]]:
    """每种批大小一行：两边的毫秒、倍数、峰值内存。"""
    rows = []
    for size in batch_sizes:
        steps = {name: step_runner(model) for name, model in make_models(x).items()}
        batches = [x[start : start + size] for start in range(0, len(x) - size + 1, size)]
        inner = max(1, 1024 // size)  # 小批一轮多走几步，计时才稳
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(rounds + 1):
            for name, step in steps.items():
                spent = [watch.seconds(step, batches[(turn * inner + i) % len(batches)]) for i in range(inner)]
                seconds[name].append(sum(spent) / inner)
        timed = {name: values[1:] for name, values in seconds.items()}  # 第一轮热身
        ratio = statistics.median(b / a for a, b in zip(timed["semid"], timed["sketch"], strict=True))
        memory = [watch.extra_megabytes(steps[n], batches[0]) for n in ("semid", "sketch")]
        times = [f"{1e3 * statistics.median(timed[n]):.1f}" for n in ("semid", "sketch")]
        rows.append((str(size), *times, f"{ratio:.2f} ×", *("?" if m is None else f"{m:,.0f}" for m in memory)))
        print("step", rows[-1], file=sys.stderr, flush=True)
    return rows


# ---- k-means ----


def inertia_of(x: torch.Tensor, centroids: torch.Tensor) -> float:
    """全部行到最近中心的误差平方和，float64。"""
    indices, total = nearest(x, prepare(centroids)), 0.0
    for part, index in zip(x.split(4096), indices.split(4096), strict=True):
        total += float((part.double() - centroids[index].double()).square().sum())
    return total


def ours_kmeans(x: torch.Tensor, k: int, seed: int, iterations: int) -> tuple[torch.Tensor, int]:
    """与训练器的调用相同。"""
    result = kmeans(x, k, generator=torch.Generator().manual_seed(seed), iterations=iterations)
    return result.centroids, len(result.history)


def faiss_kmeans(x: torch.Tensor, k: int, seed: int, iterations: int) -> tuple[torch.Tensor, int]:
    faiss = import_faiss()
    limits = {"max_points_per_centroid": 10**9, "min_points_per_centroid": 1}
    model = faiss.Kmeans(x.shape[1], k, niter=iterations, seed=seed + 1, **limits)
    model.train(x.numpy())
    return torch.from_numpy(model.centroids.copy()), len(model.obj)


def bench_kmeans(
    x: torch.Tensor, sizes: list[int], rounds: int, ours_iterations: int, watch: Stopwatch
) -> list[tuple[str, ...]]:
    """每个 K 一行；每轮换种子，两边交错。显卡上没有 faiss-cpu 那一边，与它有关的格子留空。"""
    rows = []
    sides = [(ours_kmeans, ours_iterations)]
    if not watch.is_cuda:
        sides.append((faiss_kmeans, FAISS_ITERATIONS))
    for k in sizes:
        seconds, errors, steps = ([[], []] for _ in range(3))
        for turn in range(rounds):
            for side, (run, limit) in enumerate(sides):
                results: list[Any] = []
                seconds[side].append(
                    watch.seconds(lambda *a, run=run, out=results: out.extend(run(*a)), x, k, turn, limit)
                )
                errors[side].append(inertia_of(x, results[0]))
                steps[side].append(results[1])
        error = [f"{statistics.median(values):,.0f}" if values else "" for values in errors]
        count = [f"{statistics.median(values):.0f}" if values else "" for values in steps]
        spent = [f"{statistics.median(values):.1f}" if values else "" for values in seconds]
        error_ratio, time_ratio = ("", "")
        if len(sides) == 2:
            error_ratio = f"{statistics.median(a / b for a, b in zip(*errors, strict=True)):.4f}"
            time_ratio = f"{statistics.median(a / b for a, b in zip(*seconds, strict=True)):.2f}"
        rows.append((str(k), *error, error_ratio, *spent, time_ratio, *count))
        print("k-means", rows[-1], file=sys.stderr, flush=True)
    return rows


# ---- 表格 ----


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def report(args: argparse.Namespace, x: torch.Tensor, tables: list[str], watch: Stopwatch) -> str:
    versions = f"torch {torch.__version__}，numpy {np.__version__}，Python {platform.python_version()}"
    try:
        versions += f"，faiss-cpu {import_faiss().__version__}"
    except ImportError:
        pass
    source = Path(args.features).name if args.features else "内置生成器"
    measured = [f"一步训练交错 {args.rounds} 轮"] if args.batch_sizes else []
    if args.sizes:
        measured.append(f"k-means {args.kmeans_rounds} 轮、每轮换种子，`kmeans_iterations={args.kmeans_iterations}`")
    lines = [
        "# 训练速度",
        "",
        f"- 日期：{datetime.date.today()}；硬件：{args.hardware or watch.hardware()}，{os.cpu_count()} 核",
        f"- {'前后同步的墙上时间' if watch.is_cuda else '一个线程，CPU 时间'}，中位数",
        f"- {'；'.join(measured)}",
        f"- 版本：{versions}",
        f"- 矩阵乘积内核：{kernel_names()}",
        f"- 数据：{source}，{len(x)} 行 × {x.shape[1]} 维",
        f"- 命令：`{command_line(args)}`",
        "",
    ]
    return "\n".join(lines + tables)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="训练速度：一步训练与 k-means")
    parser.add_argument("--features", help="(N, D) 的 .npy；默认用内置生成器")
    parser.add_argument("--rows", type=int, default=100_000, help="取多少行")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[256, 4096], help="一步训练的批大小")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 4096, 16384], help="k-means 的簇数")
    parser.add_argument("--rounds", type=int, default=15, help="一步训练交错多少轮")
    parser.add_argument("--kmeans-rounds", type=int, default=3, help="k-means 交错多少轮")
    default = TrainerConfig().kmeans_iterations
    parser.add_argument("--kmeans-iterations", type=int, default=default, help="我们的迭代上限，默认与训练器相同")
    parser.add_argument("--device", default="cpu", help="cpu 或 cuda")
    parser.add_argument("--seed", type=int, default=11, help="取行的种子：numpy default_rng 的排列")
    parser.add_argument("--hardware", default="", help="硬件的文字说明，写进结果")
    parser.add_argument("--output", help="把表格也写进这个 .md 文件")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    watch = Stopwatch(args.device)
    data = load_features(args.features, args.rows, args.seed)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
    x = data[order].contiguous().to(watch.device)
    tables: list[str] = []
    if args.batch_sizes:
        heads = ("批大小", "semid ms", "草稿 ms", "倍数", "semid 峰值内存 MB", "草稿峰值内存 MB")
        tables += ["## 一步训练（1024 / 4096 / 16384）", ""]
        tables += table(heads, bench_steps(x, args.batch_sizes, args.rounds, watch))
    if args.sizes:
        heads = ("K", "semid inertia", "faiss inertia", "inertia 比")
        heads += (f"semid {watch.unit}", f"faiss {watch.unit}", "时间比")
        results = bench_kmeans(x, args.sizes, args.kmeans_rounds, args.kmeans_iterations, watch)
        tables += ["## k-means", ""]
        tables += table((*heads, "semid 迭代", "faiss 迭代"), results)
    text = report(args, x, tables, watch)
    print(text)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
