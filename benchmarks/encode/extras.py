"""另选的几节：裁决的代价、相同的码字、几个线程、随规模增长。"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from stopwatch import Stopwatch

from algorithm.semantic_id.search import isa as instruction_sets
from algorithm.semantic_id.search.nearest import nearest, prepare

from .beams import beam_encoder
from .contestants import PLAIN, greedy, ours, prepared_for
from .data import load_features


def measure_exactness(x: torch.Tensor, books: list[torch.Tensor], rounds: int, watch: Stopwatch) -> list[str]:
    """误差界清零，float32 的得分说了算，与正常的搜索交错跑：多出来的时间就是「一个向量一个 ID」的代价。"""
    lines = ["## 裁决的代价", "", "| 路径 | 时间 ÷ 只看 float32 得分 | 编码因此不同的行 |", "|---|---|---|"]
    native = [isa.name for isa in instruction_sets.available() if isa.name in PLAIN]  # 低精度的只提名，没有「只看得分」
    for path in ("auto",) if watch.is_cuda else (*native[-1:], "numpy"):
        bare = prepared_for(books, path)
        for book in bare:
            book.bound = (book.bound[0], 0.0, 0.0, 0.0, 0.0)
        exact = ours(books, path)
        loose = greedy(lambda x, level, bare=bare: nearest(x, bare[level], num_threads=1), books)
        ratios = []
        for _ in range(rounds):
            own = watch.seconds(loose, x)
            ratios.append(watch.seconds(exact, x) / own)
        changed = int((exact(x) != loose(x)).any(1).sum())
        lines.append(f"| semid, {path} | {statistics.median(ratios):.3f} | {changed} / {len(x)} |")
    return [*lines, ""]


def measure_twins(watch: Stopwatch) -> list[str]:
    """整个码本都是同一个码字：不比互不相同的慢多少，没有平方级的情形。两边交错七轮，取各自最快。"""
    lines = ["## 相同的码字", "", "| 路径 | 时间 ÷ 互不相同的码本 |", "|---|---|"]
    x = torch.randn(600, 32, generator=torch.Generator().manual_seed(0)).to(watch.device)
    distinct = torch.randn(16384, 32, generator=torch.Generator().manual_seed(1)).to(watch.device)
    first = distinct[:64] * 2.0  # 束宽才凑得满
    for path in ("auto",) if watch.is_cuda else ("auto", "numpy"):
        for label, width in (("", 1), ("，束宽 4", 4)):
            lasts = (torch.full_like(distinct, 0.3), distinct)
            encoders = [beam_encoder([first, last], width, 0, path)[0] for last in lasts]
            same, other = zip(*([watch.seconds(encode, x) for encode in encoders] for _ in range(7)), strict=True)
            lines.append(f"| semid, {path}{label} | {min(same) / min(other):.2f} |")
    return [*lines, ""]


def measure_threads(x: torch.Tensor, books: list[torch.Tensor], threads: int, repeats: int) -> list[str]:
    """一个线程与几个线程的墙上时间，交错许多遍、各取最快：忙机器上只有最快的一遍说明机器能做到什么。"""
    prepared = prepared_for(books, "auto")
    lines = ["## 线程", "", f"墙上时间，交错 {repeats} 遍；「最快」比各自最快的一遍，「中位」是逐遍之比的中位数。", ""]
    lines += [
        f"| 批大小 | 1 个线程 ms | {threads} 个线程 ms | 快几倍（最快） | 快几倍（中位） |",
        "|---|---|---|---|---|",
    ]
    runners = [greedy(lambda x, level, n=n: nearest(x, prepared[level], num_threads=n), books) for n in (1, threads)]
    for size in (1, 16, 64, 128, 256, 512, 1024, 4096):
        part, times = x[:size], ([], [])
        for _ in range(repeats):
            for encode, own in zip(runners, times, strict=True):
                start = time.perf_counter()
                encode(part)
                own.append(time.perf_counter() - start)
        one, many = (1e3 * min(own) for own in times)
        middle = statistics.median(a / b for a, b in zip(*times, strict=True))
        lines.append(f"| {size:,} | {one:.2f} | {many:.2f} | {one / many:.2f} | {middle:.2f} |")
        print(f"threads, {size} rows", file=sys.stderr)
    return [*lines, ""]


def measure_scaling(books: list[torch.Tensor], seed: int, watch: Stopwatch) -> list[str]:
    """耗时随 N 与 K 怎样增长，返回报告的一节；数据都由生成器造。"""
    lines = ["## 随规模增长", "", "数据由内置生成器造；每格一次。", ""]
    lines += [f"| N | 物品 / {watch.unit} | 额外内存 MB |", "|---|---|---|"]
    encode = ours(books, "auto")
    for count in (10_000, 100_000, 1_000_000):
        x = load_features(None, count, seed).to(watch.device)
        # 与 `SemanticIDEncoder.encode` 相同的分块
        spent = sum(watch.seconds(encode, part) for part in x.split(8192))
        memory = watch.extra_megabytes(encode, x[:8192])
        lines.append(f"| {count:,} | {count / spent:,.0f} | {'?' if memory is None else f'{memory:,.0f}'} |")
        print(f"N = {count}", file=sys.stderr)
    lines += ["", "| K（单层） | 微秒 / 物品 | 纳秒 / 物品 / 码字 |", "|---|---|---|"]
    x = load_features(None, 8064, seed).to(watch.device)
    for size in (256, 1024, 4096, 16384, 65536):
        book = prepare(load_features(None, size, seed + 1).to(watch.device))
        spent = watch.seconds(lambda book: nearest(x, book, num_threads=1), book) / len(x)
        lines.append(f"| {size:,} | {1e6 * spent:,.1f} | {1e9 * spent / size:.2f} |")
    return [*lines, ""]
