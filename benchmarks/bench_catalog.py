"""物品表：唯一 ID 的代价（真实数据），一千万物品的时间与内存（生成的编码），查找的速度。

    python benchmarks/bench_catalog.py                                              # 规模，一百万个生成的物品
    python benchmarks/bench_catalog.py --rows 10000000                              # 一千万个
    python benchmarks/bench_catalog.py --model my-model --features vectors.npy      # 去重的代价，与同类做法并排
    python benchmarks/bench_catalog.py --model … --features … --retrained model-2   # 另加迁移：换种子重新训练的模型

规模部分**不跑真的模型**：编码一千万行 256 维会淹没要量的东西（排序、去重、分片、索引、落盘）。特征是生成的 4 维
(l1, l2, p, 余量)，「模型」只取整；冲突有两种来源：热门前缀里 p 相近的物品，与百分之二完全重复的物品。所以这里的数字
是物品表自己的开销，编码的速度见 bench_encode.py。每个策略在单独的进程里跑，内存是该进程（与它的子进程）的峰值 RSS，
含映射的索引页与 torch 自身；查找在建表的同一个进程里量，一百万次随机查询一次给出。最热的前缀约有 0.4 % 的物品，
一千万时四万个，多过 L3 的 16,384 个码，所以这份数据不能只换 L3，规模部分没有 `prefix_price=inf`。

同类的做法（逐行贪心）：先到的留着，后到的在自己的前缀里挪到最近的、还没用过的 L3。它有两个版本：「不管别人」会占掉后
面独占的物品的码，于是别人也得挪；「避开独占」不占。都不改前缀，所以与 `prefix_price=inf` 同样的前提下比。
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from generated_items import GeneratedItems, GeneratedModel
from stopwatch import Stopwatch

from algorithm.semantic_id import SemanticIDEncoder
from algorithm.semantic_id.catalog import Catalog, encode_catalog
from algorithm.semantic_id.catalog.changes.migrate import align_codes
from algorithm.semantic_id.catalog.format.parts import codes_of
from algorithm.semantic_id.files.vectors import open_vectors

# ---- 规模：生成的物品 ----


def run_scale(policy: str, price: float, rows: int, text: bool, folder: Path) -> dict[str, Any]:
    """在本进程里建一张表，量时间、内存与查找；结果打印成 JSON。"""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    done = encode_catalog(
        GeneratedModel(), GeneratedItems(rows, text), folder / "cat", unique=policy, prefix_price=price,
        block_rows=65536,
    )  # fmt: skip
    done |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    done["peak_mb"] = peak_mb()
    done["disk_bytes"] = sum(path.stat().st_size for path in (folder / "cat").iterdir())
    done["index_bytes"] = sum(path.stat().st_size for path in (folder / "cat").glob("index-*"))
    start = time.perf_counter()
    catalog = Catalog.open(folder / "cat")
    _ = catalog.index
    done["open_s"] = time.perf_counter() - start
    pick = np.random.default_rng(0).integers(0, rows, 1_000_000)
    source = GeneratedItems(rows, text)
    every = pa.chunked_array(list(source.id_blocks()))
    items = every.take(pa.array(pick)).combine_chunks()
    del every
    for label in ("cold", "warm"):
        start = time.process_time()
        ids = catalog.find(items)
        done[f"find_{label}_cpu_s"] = time.process_time() - start
        start = time.process_time()
        back = catalog.items_of(ids)
        done[f"items_{label}_cpu_s"] = time.process_time() - start
        start = time.process_time()
        under = catalog.items_under(ids[:, :2], limit=10)
        done[f"under_{label}_cpu_s"] = time.process_time() - start
    done["under_items"] = len(under.values)
    assert len(under) == len(ids)
    if policy != "none":
        assert back.equals(items)
    assert (ids >= 0).all()
    start = time.process_time()
    for code in range(100):
        catalog.with_prefix((code,), limit=20)
    done["prefix_cpu_ms"] = 1000 * (time.process_time() - start) / 100
    return done


def peak_mb() -> float:
    """本进程与子进程的峰值 RSS 中较大的。"""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def scale_table(rows: int) -> list[str]:
    """每个策略一个进程。"""
    jobs = [
        ("none", 1.0, False), ("suffix", 1.0, False), ("nearest-free", 1.0, False), ("suffix", 1.0, True),
    ]  # fmt: skip
    lines = [
        "| 策略 | 编号 | 墙钟 s | CPU s | 峰值内存 MB | 磁盘 MB（其中索引） | 与别人同码 | 挪动 | 换前缀 | 贪心安置 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    looks = [
        "| 策略 | 编号 | 打开 s | 物品 → ID（首次 / 再次） | ID → 物品（首次 / 再次） | 前缀 → 物品（首次 / 再次） | "
        "单个 L1 前缀 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for policy, price, text in jobs:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child", json.dumps([policy, str(price), rows, text, folder])]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        d = json.loads(out)
        under = d["under_items"]
        shown = policy if policy != "nearest-free" else f"nearest-free，价格 {price:g}"
        kind = "字符串" if text else "整数"
        numbers = [d.get(key, "–") for key in ("num_contenders", "num_moved", "num_prefix_changed", "num_greedy")]
        counts = " | ".join(f"{n:,}" if isinstance(n, int) else n for n in numbers)
        disk = f"{d['disk_bytes'] / 1e6:,.0f}（{d['index_bytes'] / 1e6:,.0f}）"
        lines.append(
            f"| {shown} | {kind} | {d['wall_s']:.0f} | {d['cpu_s']:.0f} | {d['peak_mb']:,.0f} | {disk} | {counts} |"
        )
        looks.append(
            f"| {shown} | {kind} | {d['open_s']:.3f} | {d['find_cold_cpu_s']:.2f} / {d['find_warm_cpu_s']:.2f} | "
            f"{d['items_cold_cpu_s']:.2f} / {d['items_warm_cpu_s']:.2f} | "
            f"{d['under_cold_cpu_s']:.2f} / {d['under_warm_cpu_s']:.2f} | {d['prefix_cpu_ms']:.2f} |"
        )
        print(lines[-1], looks[-1], sep="\n", file=sys.stderr, flush=True)
    note = [
        "查找是一百万次的 CPU 秒；「首次」时索引刚写完，多半还在页缓存里。前缀是 (L1, L2)，每个至多取 10 个物品，"
        f"一百万个前缀共取出 {under:,} 个；单个前缀用 `with_prefix`，取前 20 个，连 ID 一起。",
        "",
    ]
    return [f"## {rows:,} 个生成的物品", "", *lines, "", *note, *looks, ""]


# ---- 真实数据：去重的代价 ----


def greedy_last_level(model: SemanticIDEncoder, x: torch.Tensor, codes: np.ndarray, spare: bool) -> tuple[float, int]:
    """同类的做法：按行序，先到先得，后到的挪到本前缀里最近的空 L3；返回（新增误差之和，挪动几个）。"""
    own, last = [tuple(row) for row in codes.tolist()], model.codebook_sizes[-1]
    times: dict[tuple[int, ...], int] = {}
    for code in own:
        times[code] = times.get(code, 0) + 1
    used: set[tuple[int, ...]] = {code for code, n in times.items() if n == 1} if spare else set()
    added, moved = 0.0, 0
    for row, code in enumerate(own):
        if spare and times[code] == 1:
            continue
        if code not in used:
            used.add(code)
            continue
        prefix = torch.tensor([code[:-1]])
        for num in (16, 256, last):
            paths, errors = model.encode_candidates(x[row : row + 1], min(num, last), prefix)
            free = next((i for i, p in enumerate(paths[0].tolist()) if p[0] >= 0 and tuple(p) not in used), None)
            if free is not None:
                break
        assert free is not None
        used.add(tuple(paths[0, free].tolist()))
        added += float(errors[0, free] - errors[0, 0])
        moved += 1
    return added, moved


def cost_table(model_folder: Path, features: Path) -> list[str]:
    """各策略在同一批真实物品上的代价。"""
    model = SemanticIDEncoder.from_pretrained(model_folder)
    source = open_vectors(features)
    scale = source.num_rows * source.dim
    lines = [
        "| 做法 | 冲突率 | 同码物品 | 挪动 | 换 (L1, L2) | 换 L1 | 新增误差 ×10⁶ | 占重建误差 | 贪心安置 | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        raw_time = time.process_time()
        encode_catalog(model, source, Path(folder) / "none")
        raw_time = time.process_time() - raw_time
        raw = codes_of(Catalog.open(Path(folder) / "none").read())
        reference = Catalog.open(Path(folder) / "none").manifest["reference"]["level_mse"][-1]
        lines.append(f"| none | {rate(raw):.4f} | {shared(raw):,} | 0 | 0 | 0 | 0 | 0 | 0 | {raw_time:.0f} |")
        x = torch.from_numpy(np.concatenate([block.vectors for block in source.blocks()]))
        for spare in (False, True):
            cpu = time.process_time()
            added, moved = greedy_last_level(model, x, raw, spare)
            cpu = time.process_time() - cpu
            label = "避开独占" if spare else "不管别人"
            lines.append(
                f"| 逐行贪心，只换 L3，{label} | 0 | {shared(raw):,} | {moved:,} | 0 | 0 | {1e6 * added / scale:.3f} | "
                f"{added / scale / reference:.2%} | {moved:,} | +{cpu:.0f} |"
            )
        for price in (math.inf, 4.0, 1.0, 0.25, 0.0):
            cpu, target = time.process_time(), Path(folder) / f"free-{price}"
            done = encode_catalog(model, source, target, unique="nearest-free", prefix_price=price)
            cpu = time.process_time() - cpu
            codes = codes_of(Catalog.open(target).read())
            lost = int((codes[:, 0] != raw[:, 0]).sum())
            share, greedy = done["added_mse"] / reference, done["num_greedy"]
            counts = " | ".join(f"{done[key]:,}" for key in ("num_contenders", "num_moved", "num_prefix_changed"))
            lines.append(
                f"| nearest-free，价格 {price:g} | {rate(codes):.4f} | {counts} | {lost} | "
                f"{1e6 * done['added_mse']:.3f} | {share:.2%} | {greedy:,} | +{max(cpu - raw_time, 0):.0f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
            shutil.rmtree(target)
        cpu = time.process_time()
        done = encode_catalog(model, source, Path(folder) / "suffix", unique="suffix")
        cpu = time.process_time() - cpu
        lines.append(
            f"| suffix（最大 {done['max_suffix']}） | 0 | {done['num_contenders']:,} | 0 | 0 | 0 | 0 | 0 | 0 | "
            f"+{max(cpu - raw_time, 0):.0f} |"
        )
    return [f"## 去重的代价：{source.description}", "", *lines, ""]


# ---- 真实数据：换模型 ----


def migrate_table(before: Path, after: Path, features: Path) -> list[str]:
    """换一个种子重新训练之后，多少物品保得住编码；对齐之前、之后，各层累计。"""
    old_model, new_model = (SemanticIDEncoder.from_pretrained(folder) for folder in (before, after))
    source = open_vectors(features)
    blocks = [torch.from_numpy(block.vectors) for block in source.blocks(16384)]
    old, new = (np.concatenate([model.encode_codes(x).numpy() for x in blocks]) for model in (old_model, new_model))
    del blocks
    cpu = time.process_time()
    labels = align_codes(old, new, old_model.codebook_sizes)
    cpu = time.process_time() - cpu
    grown = Stopwatch().extra_megabytes(align_codes, old, new, old_model.codebook_sizes)
    renamed = np.stack([label[new[:, i]] for i, label in enumerate(labels)], axis=1)
    lines = ["| 保住的物品 | L1 | L1, L2 | L1, L2, L3 |", "|---|---|---|---|"]
    for name, codes in (("对齐之前", new), ("对齐之后", renamed)):
        same = np.cumprod(codes == old, axis=1).mean(axis=0)
        lines.append(f"| {name} | {' | '.join(f'{share:.4%}' for share in same)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    sizes = "/".join(map(str, old_model.codebook_sizes))
    lines += [
        "",
        f"逐层对齐（{sizes}，精确的指派）共 {cpu:.1f} CPU 秒，内存峰值增加 {grown or 0:.0f} MB。"
        "上界：把每个新的 L1 码字改叫它的物品里最常见的旧编号（几个新码字可以同名，所以不是一一对应），"
        f"也只保住 {top_share(old[:, 0], new[:, 0]):.2%}。",
    ]
    return [f"## 换模型：{source.description}，种子不同", "", *lines, ""]


def top_share(old: np.ndarray, new: np.ndarray) -> float:
    """一层 (N,)：每个新编号的物品里最常见的旧编号占多少；任何重新编号都超不过它。"""
    pairs, count = np.unique(np.stack([new, old]), axis=1, return_counts=True)
    start = np.flatnonzero(np.diff(pairs[0], prepend=-1))
    return float(np.maximum.reduceat(count, start).sum() / len(old))


def rate(codes: np.ndarray) -> float:
    """冲突率。"""
    return 1 - len(np.unique(codes, axis=0)) / len(codes)


def shared(codes: np.ndarray) -> int:
    """与别人同码的物品数。"""
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--retrained", type=Path)
    parser.add_argument("--rows", type=int, help="default: 1,000,000 unless --model is given")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        policy, price, rows, text, folder = json.loads(options.child)
        print(json.dumps(run_scale(policy, float(price), rows, text, Path(folder))))
        return
    if options.rows is None:
        options.rows = 0 if options.model else 1_000_000
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}，numpy {np.__version__}，pyarrow {pa.__version__}"
    shown = " ".join(f"--{key} {value}" for key, value in [
        ("model", options.model and options.model.name), ("features", options.features and options.features.name),
        ("retrained", options.retrained and options.retrained.name), ("rows", options.rows),
    ] if value)  # fmt: skip
    lines = [
        "# 物品表：去重的代价、一千万物品、查找", "",
        f"- 日期：{datetime.date.today()}；硬件：{options.hardware}，{os.cpu_count()} 核，一个线程",
        f"- 版本：{versions}，Python {platform.python_version()}",
        f"- 命令：`python benchmarks/bench_catalog.py {shown}`",
        "- 怎样量、什么没有量，见脚本开头", "",
    ]  # fmt: skip
    if options.model and options.features:
        lines += cost_table(options.model, options.features)
    if options.model and options.features and options.retrained:
        lines += migrate_table(options.model, options.retrained, options.features)
    if options.rows:
        lines += scale_table(options.rows)
    report = "\n".join(lines)
    print(report)
    if options.output:
        options.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
