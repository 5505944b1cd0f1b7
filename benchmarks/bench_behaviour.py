"""行为引导（`train_codebook(..., pairs=…)`）换来多少共同消费的提升，付出多少误差。

    python benchmarks/bench_behaviour.py --data-folder data --seeds 11 12 13 --output benchmarks/results/behaviour.md

物品按 `numpy.random.default_rng(seed)` 的排列切成 10,000 个训练、其余未见。物品对是每个用户
train_items 里前后相邻的两个，都在训练行里。提升度在没有用过的 (valid_item, test_item) 上量：一列两个都在训练行里，
一列至少一个是未见物品（只凭内容）。
数据的格式见 `benchmarks/quality/data.py`；没有数据时说一句就结束。
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from quality.data import DATASETS

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.metrics import codes as metrics
from algorithm.semantic_id.metrics.meaning import co_consumption

ROOT = Path(__file__).resolve().parents[1]
HEADS = ["做法", "误差（训练）", "误差（未见）", "冲突率", "L1 困惑度 / K"]
HEADS += ["提升 L1", "提升 L1+L2", "提升 L1（含未见物品）", "提升 L1+L2（含未见物品）", "训练 CPU 秒"]


def split_pairs(folder: Path, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(训练的对, 留出且都见过的对, 留出且有未见物品的对)，都是 (P, 2) 物品编号；seen (N,) bool。"""
    table = pq.read_table(folder / "interactions.parquet")
    steps = [pair for items in table["train_items"].to_pylist() for pair in itertools.pairwise(items)]
    train = np.array(steps, dtype=np.int64)
    held = np.stack([table["valid_item"].to_numpy(), table["test_item"].to_numpy()], axis=1).astype(np.int64)
    train, held = (pairs[pairs[:, 0] != pairs[:, 1]] for pairs in (train, held))
    both = seen[held].all(axis=1)
    return train[seen[train].all(axis=1)], held[both], held[~both]


def measure(x: np.ndarray, order: np.ndarray, folder: Path, args: argparse.Namespace, seed: int, guided: bool) -> list:
    """训练一次，返回一行数字。"""
    rows = order[: args.train_rows]
    seen = np.zeros(len(x), dtype=bool)
    seen[rows] = True
    train_pairs, held, held_new = split_pairs(folder, seen)
    place = np.full(len(x), -1)
    place[rows] = np.arange(len(rows))
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=x.shape[1], codebook_sizes=tuple(args.codebook_sizes)))
    started = time.process_time()
    train_codebook(
        encoder,
        x[rows],
        config=TrainerConfig(effort=args.effort, seed=seed),
        pairs=place[train_pairs] if guided else None,
        progress=False,
    )
    seconds = time.process_time() - started
    codes = encoder.encode_codes(torch.from_numpy(x))
    error = np.square(x - encoder.decode_codes(codes).numpy()).sum(axis=1, dtype=np.float64)
    deviation = np.square(x - x[rows].mean(axis=0, dtype=np.float64)).sum(axis=1)
    codes = codes.numpy()
    counts = metrics.code_counts(codes[rows, 0], args.codebook_sizes[0])
    figures = [error[part].sum() / deviation[part].sum() for part in (seen, ~seen)]
    figures += [metrics.collision_rate(codes[rows]), metrics.perplexity(counts) / args.codebook_sizes[0]]
    for pairs in (held, held_new):
        figures += co_consumption(codes, pairs)[2][:2]
    return [*figures, seconds]


def main() -> None:
    """解析参数，有无物品对各训练一次，打印并写出一张表。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=ROOT.parent / "shared" / "data", help="内有 beauty/")
    parser.add_argument("--dataset", choices=["beauty", "beauty_title"], default="beauty")
    parser.add_argument("--train-rows", type=int, default=10_000)
    parser.add_argument("--codebook-sizes", type=int, nargs="+", default=[256, 256, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--effort", default="default")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    dataset = DATASETS[args.dataset]
    if (gone := dataset.missing(args.data_folder)) is not None:
        print(f"{args.dataset}: no {gone} under --data-folder; nothing measured", file=sys.stderr)
        return
    x, folder = dataset.load(args.data_folder), dataset.folder(args.data_folder) / "beauty"
    lines = []
    for guided in (False, True):
        runs = []
        for seed in args.seeds:
            order = np.random.default_rng(seed).permutation(len(x))
            runs.append(measure(x, order, folder, args, seed, guided))
            print(guided, seed, [round(float(v), 4) for v in runs[-1]], file=sys.stderr, flush=True)
        cells = ["有物品对" if guided else "没有"]
        for position, column in enumerate(zip(*runs, strict=True)):
            digits = 4 if position < 3 else 0 if position == len(runs[0]) - 1 else 2
            spread = f" ± {statistics.stdev(column):.{digits}f}" if len(column) > 1 else ""
            cells.append(f"{statistics.fmean(column):.{digits}f}{spread}")
        lines.append(cells)
    table = ["| " + " | ".join(row) + " |" for row in [HEADS, ["---"] * len(HEADS), *lines]]
    note = (
        f"{args.dataset}，{args.train_rows:,} 个训练物品，码本 {'/'.join(map(str, args.codebook_sizes))}，"
        f"effort={args.effort}，种子 {'、'.join(map(str, args.seeds))}（± 为样本标准差），一个线程；"
        f"{platform.processor() or platform.machine()}；"
        f"Python {platform.python_version()}，torch {torch.__version__}，numpy {np.__version__}；{date.today()}"
    )
    command = "python benchmarks/bench_behaviour.py " + " ".join(
        a if "/" not in a else Path(a).name for a in sys.argv[1:]
    )
    text = "\n".join(["# 行为引导", "", f"`{command}`", "", note, "", *table]) + "\n"
    print(text)
    if args.output is not None:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
