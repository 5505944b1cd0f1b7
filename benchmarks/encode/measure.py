"""主表：各家交错跑，与整形状 sgemm 的上限比，再与 float64 的答案核对。"""

from __future__ import annotations

import statistics
import sys

import numpy as np
import torch
from stopwatch import Stopwatch

from .contestants import contestants
from .data import float64_codes

NEAR_TIES = 400


def gemm_seconds(residuals: list[torch.Tensor], books: list[torch.Tensor], watch: Stopwatch) -> float:
    """整形状 sgemm 的秒数：CPU 上逐层取 NumPy 与 torch 中较快的一个。"""
    total = 0.0
    for x, weight in zip(residuals, books, strict=True):
        out = x.new_zeros(len(x), len(weight))  # 先摸一遍：缺页中断不算在乘积头上
        spent = [watch.seconds(lambda x, w, out: torch.mm(x, w.T, out=out), x, weight, out)]
        if not watch.is_cuda:
            arrays = x.numpy(), weight.numpy().T, out.numpy()
            spent.append(watch.seconds(lambda x, w, out: np.matmul(x, w, out=out), *arrays))
        total += min(spent)
    return total


def measure(
    x: torch.Tensor, books: list[torch.Tensor], rounds: int, check: int, only: str, watch: Stopwatch
) -> list[tuple[str, ...]]:
    """交错跑 rounds 轮，返回表格的行。"""
    runners = contestants(books, only)
    i, j = torch.randint(len(books[0]), (2, NEAR_TIES), generator=torch.Generator().manual_seed(1)).to(x.device)
    probe = torch.cat([x[:check], (books[0][i] + books[0][j]) / 2])
    truth = float64_codes(probe, books)
    residuals, exact = [x], runners["semid, auto"](x)
    for level, weight in enumerate(books[:-1]):
        residuals.append(residuals[-1] - weight[exact[:, level]])
    # 交错：每一轮里各跑一次，机器忙闲的起伏大家一起承担
    limits, seconds = [], {name: [] for name in runners}
    for turn in range(rounds):
        limits.append(gemm_seconds(residuals, books, watch))
        for name, encode in runners.items():
            seconds[name].append(watch.seconds(encode, x))
        print(f"round {turn + 1}/{rounds}", file=sys.stderr)
    rows = [("best sgemm (limit)", f"{len(x) / statistics.median(limits):,.0f}", "1.00", "", "", "", "")]
    for name, encode in runners.items():
        same = (encode(probe) == truth).all(1).double()
        ratio = statistics.median(a / b for a, b in zip(limits, seconds[name], strict=True))
        memory = watch.extra_megabytes(encode, x)
        rows.append(
            (
                name,
                f"{len(x) / statistics.median(seconds[name]):,.0f}",
                f"{ratio:.2f}",
                f"{100 * same[:check].mean():.2f} %",
                f"{100 * same[check:].mean():.1f} %",
                "?" if memory is None else f"{memory:,.0f}",
                f"{watch.latency_ms(encode, x[:1]):.2f}",
            )
        )
    return rows
