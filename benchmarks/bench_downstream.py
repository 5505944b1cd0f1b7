"""下游对照：同一个生成模型、同样的数据与步数，换上各家的语义 ID，看推荐得准不准。

    python benchmarks/bench_downstream.py                                  # tiny，全部做法，缺的格子补上，写表
    python benchmarks/bench_downstream.py --tokenizers semid-default,random --seeds 1
    python benchmarks/bench_downstream.py --report --hardware xeon-2core   # 只由缓存写表，列出还缺哪些格子
    python benchmarks/bench_downstream.py --size paper --device cuda       # TIGER 公布的规模，要显卡

数据：一个文件夹，内有 items.parquet 与 interactions.parquet，格式见 docs/guides/downstream.md；没有数据时说一句就结束。
先跑每种做法的第一个种子，再跑其余；故意做坏的只跑第一个种子。一格训练一个生成模型，一个线程（见 downstream/row.py）。
"""

from __future__ import annotations

import os

from quality.row import THREADS

os.environ.update(THREADS)  # 要在导入 NumPy 与 torch 之前

import argparse
import datetime
import platform
import sys
import time
from pathlib import Path
from typing import Iterator

from downstream import data as interactions
from downstream import row as rows
from downstream.tokenizers import TOKENIZERS, Tokenizer, codes_of, sizes_of, suffixed

ROOT = Path(__file__).resolve().parents[1]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def default_folder() -> Path:
    """仓库旁边或仓库里的 shared/data/beauty。"""
    places = [root / "shared" / "data" / "beauty" for root in (ROOT.parent, ROOT, ROOT.parent.parent)]
    return next((place for place in places if place.is_dir()), places[0])


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := [name for name in wanted if name not in TOKENIZERS]:
            raise argparse.ArgumentTypeError(f"unknown tokenizer {unknown[0]!r}; known: {', '.join(TOKENIZERS)}")
        return wanted

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-folder", type=Path, default=default_folder(), help="内有 items.parquet 与 interactions.parquet"
    )
    parser.add_argument("--feature-column", default="embedding", help="items.parquet 的向量列")
    parser.add_argument("--tokenizers", type=names, default=list(TOKENIZERS), help=", ".join(TOKENIZERS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--size", choices=["tiny", "paper"], default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / "cache" / "downstream")
    parser.add_argument("--report", action="store_true", help="不训练，只由缓存写表")
    parser.add_argument("--hardware", default=f"{platform.machine()}-{os.cpu_count()}core", help="硬件名，进文件名")
    parser.add_argument("--output", type=Path, help="默认 benchmarks/results/downstream_<硬件>_<日期>.md")
    return parser.parse_args(arguments)


def cells(tokenizers: list[str], seeds: list[int]) -> Iterator[tuple[Tokenizer, int]]:
    """第一个种子的全部做法在前；故意做坏的只有第一个种子。"""
    for position, seed in enumerate(seeds):
        for name in tokenizers:
            if position == 0 or not TOKENIZERS[name].bad:
                yield TOKENIZERS[name], seed


def main() -> None:
    args = parse_args()
    if gone := interactions.missing(args.data_folder):
        say(f"no {gone} under --data-folder; nothing measured (the schema is in docs/guides/downstream.md)")
        return
    data = interactions.load(args.data_folder, args.feature_column)
    if not args.report:
        fill(args, data)
    from downstream import report

    name = f"downstream_{args.hardware}_{datetime.date.today()}.md"
    output = args.output or ROOT / "benchmarks" / "results" / name
    report.write(list(cells(args.tokenizers, args.seeds)), data, args, output)
    say(f"wrote {output.name}")


def fill(args: argparse.Namespace, data: interactions.Interactions) -> None:
    """补上缺的格子。"""
    if args.device == "cpu":
        import torch

        torch.set_num_threads(1)
    for tokenizer, seed in cells(args.tokenizers, args.seeds):
        label = f"{args.size} {tokenizer.name} seed {seed}"
        if tokenizer.version() is None:
            say(f"skip {label}: its package is not installed; pip install -e '.[bench]'")
            continue
        codes, seconds = codes_of(tokenizer, data, seed, args.cache, fit=True)
        assert codes is not None
        unique, sizes = suffixed(codes, sizes_of(codes))
        folder = rows.folder_of(rows.key_of(args.size, unique, data, seed), args.size, args.cache)
        found = rows.read(folder)
        if found is None:
            say(f"run {label}: IDs in {seconds:.0f} CPU s, sizes {sizes}")
            found = rows.run(
                args.size, unique, sizes, data, seed, args.cache, args.device, lambda text: say(f"  {text}")
            )
        valid, record = found.ranks["valid"], found.record
        say(
            f"done {label}: valid Recall@10 {((valid >= 0) & (valid < 10)).mean():.4f}, "
            f"train {record['train_cpu_s']:.0f} + decode {record['decode_cpu_s']:.0f} CPU s"
        )


if __name__ == "__main__":
    main()
