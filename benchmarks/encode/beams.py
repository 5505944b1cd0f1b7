"""束搜索各宽度相对贪心的时间与误差。"""

from __future__ import annotations

import statistics
import sys

import torch
from stopwatch import Stopwatch

from algorithm.semantic_id.search import beam
from algorithm.semantic_id.search import isa as instruction_sets

from .contestants import PLAIN, Encoder, faiss_residual, ours, prepared_for


def beam_encoder(books: list[torch.Tensor], width: int, max_bytes: int, path: str = "auto") -> tuple[Encoder, int]:
    """束搜索的编码函数与内积表占的字节数。"""
    prepared = prepared_for(books, path)
    products = beam.InnerProducts(prepared)
    products.grow_(books, 1 << 40, width, max_bytes)
    size = sum(table.element_size() * table.numel() for table in products.tables if table is not None)
    return lambda x: beam.search(x, books, prepared, width, products, num_threads=1)[0][:, 0], size


def measure_beams(
    x: torch.Tensor, mean: torch.Tensor, books: list[torch.Tensor], widths: list[int], rounds: int, watch: Stopwatch
) -> list[str]:
    """各束宽与贪心交错跑，返回报告的一节；后备路径与它自己的贪心比。"""
    base = "semid，贪心"
    runners: dict[str, Encoder] = {base: ours(books, "auto")}
    others = {} if watch.is_cuda else {"，NumPy 后备": "numpy"}  # 各与自己的贪心比
    native = [isa.name for isa in instruction_sets.available()]
    if native and native[-1] not in PLAIN and not watch.is_cuda:
        plain = [isa for isa in native if isa in PLAIN][-1]
        others[f"，{plain}"] = plain
    for label, path in others.items():
        runners[base + label] = ours(books, path)
    sizes: dict[str, int] = {}
    for width in widths:
        name = f"semid，束宽 {width}"
        runners[name], sizes[name] = beam_encoder(books, width, 1 << 40)
    for label, max_bytes, path in (("，不建表", 0, "auto"), *((k, 1 << 40, v) for k, v in others.items())):
        name = f"semid，束宽 {widths[0]}{label}"
        runners[name], sizes[name] = beam_encoder(books, widths[0], max_bytes, path)
    try:
        for width in () if watch.is_cuda else (1, *widths):
            runners[f"faiss ResidualQuantizer，束宽 {width}"] = faiss_residual(books, width)
    except ImportError as error:
        print(f"skip faiss: {error}", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    errors: dict[str, float] = {}
    deviation = float((x - mean).double().square().sum())
    for turn in range(rounds):
        for name, encode in runners.items():
            seconds[name].append(watch.seconds(encode, x))
            if turn == 0:
                codes = encode(x)
                total = sum(weight[codes[:, level]] for level, weight in enumerate(books))
                errors[name] = float((x - total).double().square().sum()) / deviation
        print(f"beam round {turn + 1}/{rounds}", file=sys.stderr)
    lines = [
        "## 束搜索",
        "",
        f"| 编码器 | 物品 / {watch.unit} | 时间 ÷ 贪心 | 相对 MSE | 内积表 MiB |",
        "|---|---|---|---|---|",
    ]
    for name in runners:
        own = seconds[next((base + label for label in others if name.endswith(label)), base)]
        ratio = statistics.median(a / b for a, b in zip(seconds[name], own, strict=True))
        table = f"{sizes[name] / 2**20:,.0f}" if name in sizes else ""
        rate = len(x) / statistics.median(seconds[name])
        lines.append(f"| {name} | {rate:,.0f} | {ratio:.2f} | {errors[name]:.4f} | {table} |")
    return [*lines, ""]


def measure_small_beams(x: torch.Tensor, books: list[torch.Tensor], width: int, watch: Stopwatch) -> list[str]:
    """小批的束搜索相对贪心：每种批大小两边交错十五轮，返回报告的一节。"""
    lines = [f"束宽 {width} 的小批（表已建好）：", "", "| 批大小 | 时间 ÷ 贪心 |", "|---|---|"]
    encode, plain = beam_encoder(books, width, 1 << 40)[0], ours(books, "auto")
    for size in (1, 16, 64, 256, 1024, 4096):
        part = x[:size]
        again = max(1, 256 // size)
        ratios = []
        for _ in range(15):
            own = sum(watch.seconds(plain, part) for _ in range(again))
            ratios.append(sum(watch.seconds(encode, part) for _ in range(again)) / own)
        lines.append(f"| {size:,} | {statistics.median(ratios[1:]):.2f} |")
    return [*lines, ""]
