"""受约束解码的一步：我们与 STATIC 的做法、marisa-trie、LC-Rec 与 MiniOneRec 的字典同场交错；单线程、CPU 时间、中位数。

    python benchmarks/bench_decode.py
    python benchmarks/bench_decode.py --output benchmarks/results/decode.md --build-items 10000000

批 32 × 束 20，1024 / 4096 / 16384。三张表：
- 逐层：从一层的 logits 到留下的 20 束（归一化、约束、选择）；「约束」几列从算好的 log 概率起，不含归一化。各家走同样的
  束，每一步都核对选中的编号与分数相同。「冷」的两行在每次之前冲掉缓存（像刚跑完模型），其余各行先跑一次不计时的。
- generate：(640, V) 的分数进，不存在的词判为 −inf 出；对照用 transformers 自己的 PrefixConstrainedLogitsProcessor 调用
  各家的 prefix_allowed_tokens_fn。
- 建树：CPU 秒、内存。「打包」是 N × Σ log₂K_l 比特；int16 是 (N, L) 的 int16 数组。

对照都按各自的做法重写，不抄代码：
- STATIC（youtube/static-constraint-decoding）：前两层稠密掩码与状态表，第三层按全局最大分支数补齐的
  CSR。原文各层共用一个词表，这里让它用各层自己的大小（1024 × 4096），比 21,504² 小两个数量级，是偏向它的。
- 字典：嵌套 dict，每束从根走一遍（LC-Rec）；前缀散列：前缀字符串 → 允许的词表（MiniOneRec）。
- marisa：枚举前缀之后的全部键，取下一个字符（GENRE 的做法，根的孩子缓存起来）。
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from decode_methods import BATCH, BEAMS, LEVEL_METHODS, SIZES
from stopwatch import Stopwatch

from algorithm.semantic_id.decoding import PrefixTrie, TokenLayout


def make_codes(kind: str, num_items: int, seed: int = 0) -> np.ndarray:
    """(N, L) 编码：uniform 均匀；skewed 各层权重对数正态（σ = 1），热门前缀的孩子比平均多几倍。"""
    rng = np.random.default_rng(seed)
    columns = []
    for size in SIZES:
        weight = np.exp(rng.standard_normal(size)) if kind == "skewed" else np.ones(size)
        columns.append(rng.choice(size, num_items, p=weight / weight.sum()).astype(np.int16))
    return np.stack(columns, axis=1)


# ---- 计时 ----


def cpu_ms(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def evict(memory: torch.Tensor) -> None:
    """冲掉各级缓存与指令缓存，像刚跑完一次模型前向。"""
    memory.add_(1.0)
    sum(map(len, {i: str(i) for i in range(20_000)}.values()))


def interleaved(runs: Dict[str, Callable[[], Any]], rounds: int, cold: bool = False) -> Dict[str, float]:
    """名字 → 毫秒中位数；交错。每次计时之前先跑一次不计时的（热），或冲掉缓存（冷），谁都不受前一位的影响。"""
    times: Dict[str, List[float]] = {name: [] for name in runs}
    memory = torch.zeros(8_000_000 if cold else 0)
    names, rng = list(runs), np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(names).tolist():  # 每轮打乱次序：谁跟在最重的那位后面机会均等
            run = runs[name]
            if cold:
                evict(memory)
            else:
                run()
            times[name].append(cpu_ms(run))
    return {name: statistics.median(values) for name, values in times.items()}


def bench_levels(methods: Dict[str, Any], rounds: int, cold: bool = False) -> Dict[str, List[float]]:
    """名字 → [各层整步…, 各层约束…]，毫秒。"""
    generator = torch.Generator().manual_seed(0)
    states = {name: method.start() for name, method in methods.items()}
    scores = torch.zeros(BATCH, 1)
    whole: Dict[str, List[float]] = {name: [] for name in methods}
    only: Dict[str, List[float]] = {name: [] for name in methods}
    for level, size in enumerate(SIZES):
        logits = torch.randn(BATCH * scores.shape[1], size, generator=generator) * 2
        logprobs = torch.log_softmax(logits, dim=-1)
        steps = {n: m.from_logits(level, states[n], scores, logits) for n, m in methods.items()}
        reference = steps["semid"]
        for name, step in steps.items():
            assert torch.allclose(step.scores, reference.scores, atol=1e-4), f"{name} disagrees at L{level + 1}"
            assert torch.equal(step.codes, reference.codes), f"{name} chose other codes at L{level + 1}"
        for table, form, given in ((whole, "from_logits", logits), (only, "from_logprobs", logprobs)):
            runs = {
                name: partial(getattr(method, form), level, states[name], scores, given)
                for name, method in methods.items()
            }
            for name, value in interleaved(runs, rounds, cold).items():
                table[name].append(value)
        states = {name: step.state for name, step in steps.items()}
        scores = reference.scores
        print(f"L{level + 1}", {n: (round(whole[n][-1], 3), round(only[n][-1], 3)) for n in methods}, file=sys.stderr)
    return {name: [*whole[name], *only[name]] for name in methods}


def bench_generate(codes: np.ndarray, peers: Sequence[str], rounds: int) -> Dict[str, List[float]]:
    """名字 → 各层一次调用的毫秒；(640, V) 分数。"""
    from transformers import PrefixConstrainedLogitsProcessor

    from algorithm.semantic_id.decoding.hf import SemanticIDLogitsProcessor

    layout = TokenLayout.flat(SIZES)
    trie = PrefixTrie.build(codes, SIZES)
    ours = SemanticIDLogitsProcessor(trie, layout, prompt_length=1, eos_token_id=2)
    processors: Dict[str, Any] = {"semid": ours}
    for name in peers:
        method = LEVEL_METHODS[name](codes, layout.offsets)  # type: ignore[call-arg]
        processors[name] = PrefixConstrainedLogitsProcessor(lambda _, ids, m=method: m.get(ids[1:].tolist()), BEAMS)
    generator = torch.Generator().manual_seed(0)
    out: Dict[str, List[float]] = {name: [] for name in processors}
    chosen = torch.from_numpy(codes[np.random.default_rng(1).integers(0, len(codes), BATCH * BEAMS)].astype(np.int64))
    for level in range(len(SIZES)):
        tokens = layout.encode(chosen)[:, :level]
        ids = torch.cat([torch.zeros(BATCH * BEAMS, 1, dtype=torch.int64), tokens], dim=1)
        scores = torch.randn(BATCH * BEAMS, layout.vocab_size, generator=generator)
        results = {name: processor(ids, scores) for name, processor in processors.items()}
        assert all(torch.equal(result, results["semid"]) for result in results.values())
        del results
        runs = {name: partial(processor, ids, scores) for name, processor in processors.items()}
        for name, value in interleaved(runs, rounds).items():
            out[name].append(value)
        print(f"generate L{level + 1}", {n: round(v[-1], 2) for n, v in out.items()}, file=sys.stderr)
    return out


def bench_build(kind: str, num_items: int, names: Sequence[str]) -> List[Tuple[str, ...]]:
    """每家一行：CPU 秒、建完留下的内存、建的途中的峰值。"""
    codes = make_codes(kind, num_items)
    packed = num_items * sum(math.log2(size) for size in SIZES) / 8
    rows = []
    for name in names:
        holder: Dict[str, Any] = {}
        start = time.process_time()
        peak = Stopwatch().extra_megabytes(lambda _, n=name, h=holder: h.update(m=LEVEL_METHODS[n](codes)), None)  # type: ignore[arg-type]
        seconds = time.process_time() - start
        kept = f"{holder['m'].trie.nbytes / 1e6:,.1f}" if name == "semid" else ""
        ratio = f"{holder['m'].trie.nbytes / packed:.2f}" if name == "semid" else ""
        narrow = f"{holder['m'].trie.nbytes / codes.nbytes:.2f}" if name == "semid" else ""
        shown = "?" if peak is None else f"{peak:,.0f}"
        rows.append((f"{num_items:,}", name, f"{seconds:.2f}", kept, ratio, narrow, shown))
        print("build", rows[-1], file=sys.stderr, flush=True)
    return rows


# ---- 表格 ----


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def shown(values: Sequence[float]) -> List[str]:
    return [f"{value:,.2f}" for value in values]


def sections(args: argparse.Namespace) -> List[str]:
    lines: List[str] = []
    for kind in args.codes:
        for num_items in args.items:
            codes = make_codes(kind, num_items)
            methods = {name: LEVEL_METHODS[name](codes) for name in args.methods}
            print(kind, num_items, file=sys.stderr, flush=True)
            levels = bench_levels(methods, args.rounds)
            if "STATIC" in methods:
                pair = {name: methods[name] for name in ("semid", "STATIC")}
                for name, values in bench_levels(pair, args.rounds, cold=True).items():
                    levels[f"{name}，冷"] = values
            del methods
            rows = []
            for name, v in levels.items():
                ours = levels["semid，冷" if name.endswith("，冷") else "semid"]
                whole, only = (f"{sum(v[i : i + 3]) / sum(ours[i : i + 3]):.2f}" for i in (0, 3))
                rows.append([name, *shown(v[:3]), f"{sum(v[:3]):,.2f}", whole, *shown(v[3:]), only])
            lines += [f"## 逐层，{kind}，{num_items:,} 个物品（毫秒）", ""]
            heads = ("做法", "L1", "L2", "L3", "三步合计", "÷semid", "约束 L1", "约束 L2", "约束 L3", "÷semid")
            lines += table(heads, rows)
            peers = [name for name in args.methods if name not in ("semid", "STATIC")]
            if peers and kind == args.codes[-1]:
                calls = bench_generate(codes, peers, args.rounds)
                lines += [f"## generate，{kind}，{num_items:,} 个物品（毫秒）", ""]
                total = sum(calls["semid"])
                rows = [[name, *shown(v), f"{sum(v):,.2f}", f"{sum(v) / total:.2f}"] for name, v in calls.items()]
                lines += table(("做法", "L1", "L2", "L3", "三步合计", "÷semid"), rows)
    built: List[Tuple[str, ...]] = []
    for num_items in args.items:
        built += bench_build(args.codes[-1], num_items, args.methods)
    for num_items in args.build_items:
        for kind in args.codes:
            built += [(f"{n}（{kind}）", *rest) for n, *rest in bench_build(kind, num_items, ["semid"])]
    heads = ("物品", "做法", "CPU 秒", "留下 MB", "÷打包", "÷int16", "建时峰值增量 MB")
    return lines + ["## 建树", ""] + table(heads, built)


def main() -> None:
    parser = argparse.ArgumentParser(description="受约束解码的一步")
    parser.add_argument("--items", type=int, nargs="*", default=[100_000, 1_000_000], help="物品数")
    parser.add_argument("--build-items", type=int, nargs="*", default=[10_000_000], help="只量建树的物品数")
    parser.add_argument("--codes", nargs="*", choices=("uniform", "skewed"), default=["uniform", "skewed"])
    parser.add_argument("--methods", nargs="*", default=list(LEVEL_METHODS), help="第一个必须是 semid")
    parser.add_argument("--rounds", type=int, default=11, help="交错多少轮")
    parser.add_argument("--hardware", default="", help="硬件的文字说明，写进结果")
    parser.add_argument("--output", help="把表格也写进这个 .md 文件")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}，numpy {np.__version__}，Python {platform.python_version()}"
    for package in ("transformers", "marisa-trie"):
        try:
            versions += f"，{package} {version(package)}"
        except PackageNotFoundError:
            args.methods = [name for name in args.methods if name != package]
    words = [f"'{word}'" if " " in word else word for word in sys.argv[1:]]
    lines = [
        "# 受约束解码",
        "",
        f"- 日期：{datetime.date.today()}；硬件：{args.hardware or platform.machine()}，{os.cpu_count()} 核",
        f"- 一个线程，CPU 时间，每轮打乱次序，{args.rounds} 轮取中位数；批 {BATCH} × 束 {BEAMS}，码本 1024/4096/16384",
        "- 没有用 GPU",
        f"- 版本：{versions}",
        f"- 命令：`python benchmarks/bench_decode.py {' '.join(words)}`",
        "",
    ]
    text = "\n".join(lines + sections(args))
    print(text)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
