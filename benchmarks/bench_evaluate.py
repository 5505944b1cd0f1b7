"""`semid evaluate` 的规模：一百万物品 × 256 维，全部指标，一个线程要多久、占多少内存。

    python benchmarks/bench_evaluate.py --rows 1000000 --output benchmarks/results/evaluate.md

数据是生成的（混合高斯，标签是成分，行为是同一成分里的相邻物品），因为要量的是开销，不是质量。模型是真的：默认码本
1024/4096/16384，在 50,000 行上只做 k-means 初始化，按默认一档的束宽（4）编码。评估在单独的进程里跑，内存是它的峰值
RSS，含 torch 自己。
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook

SIZES = (1024, 4096, 16384)
DIM, TOPICS, NUM_PAIRS = 256, 2000, 100_000


def generate(folder: Path, rows: int) -> None:
    """x.npy、items.parquet、interactions.parquet；逐块写，内存与行数无关。"""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((TOPICS, DIM), dtype=np.float32)
    topics = np.sort(rng.integers(0, TOPICS, rows))
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, DIM))
    decay = (1.0 / np.sqrt(1 + np.arange(DIM))).astype(np.float32)
    for at in range(0, rows, 65536):
        part = topics[at : at + 65536]
        noise = rng.standard_normal((len(part), DIM), dtype=np.float32)
        x[at : at + len(part)] = (centers[part] + noise) * decay
    x.flush()
    ids = pa.array(np.arange(rows))
    pq.write_table(
        pa.table({"item_id": ids, "title": ids.cast(pa.string()), "category": topics}), folder / "items.parquet"
    )
    first = rng.integers(0, rows - 1, NUM_PAIRS)
    steps = rng.integers(1, 20, NUM_PAIRS)
    pairs = {"user_id": np.arange(NUM_PAIRS), "valid_item": first, "test_item": np.minimum(first + steps, rows - 1)}
    pq.write_table(pa.table(pairs), folder / "interactions.parquet")


def worker(folder: Path) -> None:
    """被量的那个进程：一次完整的评估，最后一行是 JSON。"""
    from algorithm.semantic_id.cli.options import Session
    from algorithm.semantic_id.cli.quality import evaluate

    wall, cpu = time.perf_counter(), time.process_time()
    result = evaluate.run(
        Session("en", progress=False), folder / "model", folder / "x.npy", items=folder / "items.parquet",
        labels="category",
        interactions=folder / "interactions.parquet", pairs_of="test", output=folder / "evaluation",
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    keys = ("relative_mse", "collision_rate", "neighbour_share", "co_consumption_lift", "embedding_hit_rate_10")
    shown = {key: result[key] for key in keys}
    size = sum(path.stat().st_size for path in (folder / "evaluation").iterdir()) / 2**20
    times = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps({**times, "peak_gib": peak, "folder_mib": size, "sampled": result["sampled"], **shown}))


def main() -> None:
    """生成、训练、在子进程里评估、写表。"""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--train-rows", type=int, default=50_000)
    parser.add_argument("--codebook-sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return worker(args.worker)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate(folder, args.rows)
        encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=DIM, codebook_sizes=tuple(args.codebook_sizes)))
        train_codebook(
            encoder, folder / "x.npy", num_epochs=0, config=TrainerConfig(max_train_rows=args.train_rows),
            output_dir=folder / "model", progress=False,
        )  # fmt: skip
        command = [sys.executable, __file__, "--worker", os.fspath(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    got = json.loads(done.stdout.strip().splitlines()[-1])
    sizes = "/".join(map(str, args.codebook_sizes))
    lines = [
        f"# 评估的规模，{date.today()}",
        "",
        f"`python benchmarks/bench_evaluate.py --rows {args.rows}`；{platform.machine()}，Python "
        f"{platform.python_version()}，torch {torch.__version__}，线程 {os.environ.get('OMP_NUM_THREADS', '默认')}；"
        f"生成的数据，码本 {sizes}，束宽 {encoder.config.beam_size}。机器是共享的，墙上时间有噪声。",
        "",
        "| 物品 | 维度 | 墙上秒 | CPU 秒 | 峰值内存 GiB | 评估目录 MiB |",
        "|---|---|---|---|---|---|",
        f"| {args.rows:,} | {DIM} | {got['wall_s']:.0f} | {got['cpu_s']:.0f} | {got['peak_gib']:.2f} "
        f"| {got['folder_mib']:.1f} |",
        "",
        "抽样的指标（null 为精确）：`" + json.dumps(got["sampled"]) + "`。其余全部精确。",
        "",
    ]
    print("\n".join(lines))
    if args.output is not None:
        args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
