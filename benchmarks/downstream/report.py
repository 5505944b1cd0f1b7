"""由缓存的格子写出结果：总表、配对自助法、代理指标的等级相关、还缺的格子。"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from quality import tools

from algorithm.semantic_id.metrics import codes as metrics
from downstream import baselines, proxies, scoring
from downstream import row as rows
from downstream.data import Interactions
from downstream.generator import SIZES
from downstream.tokenizers import Tokenizer, codes_of, sizes_of, suffixed

SAMPLES = 10_000
REFERENCES = ("semid-default", "semid-pairs")
FIGURES = [(f"{name}@{cutoff}", cutoff, name == "NDCG") for cutoff in scoring.CUTOFFS for name in ("Recall", "NDCG")]
TIGER = "| TIGER 论文（引用，未重跑） | | .0454 | .0321 | .0648 | .0384 |" + " |" * 5


@dataclass
class Entry:
    """一种做法收齐的格子：种子 → 各样东西。"""

    tokenizer: Tokenizer
    found: Dict[int, rows.Row] = field(default_factory=dict)
    codes: Dict[int, np.ndarray] = field(default_factory=dict)
    fit_seconds: Dict[int, float] = field(default_factory=dict)


def write(cells: List[Tuple[Tokenizer, int]], data: Interactions, args: argparse.Namespace, output: Path) -> None:
    """收集、写文件；一格都没有时只写缺的名单。"""
    entries, lacking = collect(cells, data, args)
    lines = [f"# 下游对照（{args.size}）", "", *head(entries, data, args), ""]
    lines += ["## 准确度", "", *accuracy(entries, data), ""]
    for name in REFERENCES:
        if name in entries:
            lines += [f"## 与 `{name}` 配对比较", "", *comparison(entries, name), ""]
    lines += ["## 代理指标说得准吗", "", *prediction(entries, data, args), ""]
    lines += ["## 还缺的格子", "", *(lacking or ["没有。"]), ""]
    if args.size == "tiny":
        lines += [
            "## paper（TIGER 公布的规模）",
            "",
            '没有测过：这台机器没有显卡。命令：`make bench-downstream ARGS="--size paper --device cuda"`。',
            "",
        ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines), encoding="utf-8")


def collect(
    cells: List[Tuple[Tokenizer, int]], data: Interactions, args: argparse.Namespace
) -> Tuple[Dict[str, Entry], List[str]]:
    """缓存里有的格子，与缺的名单。"""
    entries: Dict[str, Entry] = {}
    lacking: List[str] = []
    for tokenizer, seed in cells:
        codes, seconds = None, 0.0
        if tokenizer.version() is not None:
            codes, seconds = codes_of(tokenizer, data, seed, args.cache, fit=False)
        found = None
        if codes is not None:
            key = rows.key_of(args.size, suffixed(codes, sizes_of(codes))[0], data, seed)
            found = rows.read(rows.folder_of(key, args.size, args.cache))
        if found is None or codes is None:
            lacking.append(f"- `{tokenizer.name}` 种子 {seed}")
            continue
        entry = entries.setdefault(tokenizer.name, Entry(tokenizer))
        entry.found[seed], entry.codes[seed], entry.fit_seconds[seed] = found, codes, seconds
    return entries, lacking


def head(entries: Dict[str, Entry], data: Interactions, args: argparse.Namespace) -> List[str]:
    packages = ("torch", "transformers", "numpy", "faiss-cpu", "semantic-id")
    versions = {name: _version(name) for name in packages} | {"semid": tools.TOOLS["semid-default"].version()}
    options = {name: getattr(args, name) for name in ("size", "seeds", "tokenizers")}
    parts = [f"--{name} {','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in options.items()]
    users = data.num_users
    return [
        f"- 日期：{datetime.date.today()}；一个线程；硬件：{args.hardware}（{os.cpu_count()} 核）",
        "- 版本：" + "，".join(f"{name} {version}" for name, version in versions.items() if version),
        f"- 命令：`python benchmarks/bench_downstream.py {' '.join(parts)}`",
        f"- 数据：{data.num_items:,} 个物品，{users:,} 个用户；最后一个物品测试，倒数第二个验证；摘要 {data.digest}",
        f"- 生成模型与设置：{asdict(SIZES[args.size])}",
        "- 编号：3 × 256，用全部物品的内容向量（`semid-pairs` 另看训练部分的物品对）；冲突的一律加后缀。",
        "- Recall、NDCG：全部用户、全部物品里的名次，束搜索只走存在的 ID；看过的物品没有去掉，去掉的另列。",
        "- ± 是种子之间的样本标准差；编号与生成模型用同一个种子。验证一列只有四分之一的用户，挑做法只看它。",
        f"- 一格的 Recall@10 的标准误约 {np.sqrt(0.05 * 0.95 / users):.4f}（{users:,} 个用户，按 .05 算）。",
    ]


def accuracy(entries: Dict[str, Entry], data: Interactions) -> List[str]:
    """总表。"""
    heads = ["做法", "种子", *(name for name, _, _ in FIGURES), "Recall@10 去掉看过的", "Recall@10 验证"]
    heads += ["冲突率", "编号 CPU 秒", "训练 + 解码 CPU 秒"]
    lines = []
    for name, entry in entries.items():
        found = list(entry.found.values())
        cells = [f"`{name}`", ", ".join(map(str, entry.found))]
        for _, cutoff, discounted in FIGURES:
            cells.append(mean_of([scoring.gains(row.ranks["test"], cutoff, discounted).mean() for row in found]))
        for part in ("test_unseen", "valid"):
            cells.append(mean_of([scoring.gains(row.ranks[part], 10, False).mean() for row in found]))
        cells.append(mean_of([metrics.collision_rate(codes) for codes in entry.codes.values()], 3))
        cells.append(mean_of(list(entry.fit_seconds.values()), 0))
        seconds = [[row.record[key] for row in found] for key in ("train_cpu_s", "decode_cpu_s")]
        cells.append(" + ".join(f"{statistics.fmean(values):.0f}" for values in seconds))
        lines.append(cells)
    lines.sort(key=lambda cells: -float(cells[4].split(" ")[0]))
    return [*table(heads, lines), *baseline_lines(data), TIGER]


def baseline_lines(data: Interactions) -> List[str]:
    """流行度与物品近邻两行，列与总表相同。"""
    top = 50
    neighbours = baselines.ItemNeighbours(data.histories, data.num_items)
    some = [data.histories[row] for row in range(0, data.num_users, rows.VALID_STRIDE)]
    found = {
        "流行度": [baselines.popularity(data.histories, data.num_items, len(h), top) for h in (data.test, some)],
        "物品近邻（共现）": [neighbours.recommend(histories, top) for histories in (data.test_histories, some)],
    }
    lines = []
    for name, (test, valid) in found.items():
        ranks = scoring.ranks_of(test, data.test)
        unseen = scoring.ranks_of(test, data.test, data.test_histories)
        checked = scoring.ranks_of(valid, data.valid[:: rows.VALID_STRIDE])
        values = [scoring.gains(ranks, cutoff, discounted).mean() for _, cutoff, discounted in FIGURES]
        values += [scoring.gains(unseen, 10, False).mean(), scoring.gains(checked, 10, False).mean()]
        lines.append("| " + " | ".join([name, "", *(_short(v) for v in values), "", "", ""]) + " |")
    return lines


def comparison(entries: Dict[str, Entry], reference: str) -> List[str]:
    """各做法减去参照，在共有的种子上。"""
    lines = []
    for name, entry in entries.items():
        seeds = sorted(set(entry.found) & set(entries[reference].found))
        if name == reference or not seeds:
            continue
        cells = [f"`{name}`", ", ".join(map(str, seeds))]
        for cutoff, discounted in ((10, False), (10, True)):
            sides = [
                np.stack([scoring.gains(e.found[seed].ranks["test"], cutoff, discounted) for seed in seeds])
                for e in (entry, entries[reference])
            ]
            low, high, p = scoring.paired_bootstrap(sides[0], sides[1], SAMPLES, seed=0)
            each = (sides[0] - sides[1]).mean(axis=1)
            cells += [f"{each.mean():+.4f}（{', '.join(f'{delta:+.4f}' for delta in each)}）"]
            cells += [f"{low:+.4f} … {high:+.4f}", f"{p:.4f}" if p > 1 / SAMPLES else f"< {1 / SAMPLES}"]
        lines.append(cells)
    heads = ["做法", "种子", "ΔRecall@10（逐个种子）", "95% 区间", "p", "ΔNDCG@10（逐个种子）", "95% 区间", "p"]
    note = f"正数是比参照好。配对自助法，种子与用户都重抽，{SAMPLES:,} 次，双侧 p；只有一个种子的行 p 偏小。"
    return [note, "", *table(heads, lines)]


def prediction(entries: Dict[str, Entry], data: Interactions, args: argparse.Namespace) -> List[str]:
    """每个代理指标与 Recall@10 的 Spearman 相关；原子编号没有前缀，不在其中。"""
    usable = {n: e for n, e in entries.items() if next(iter(e.codes.values())).shape[1] > 1}
    if len(usable) < 3:
        return ["有前缀的做法不足三种，算不了等级相关。"]
    reference = proxies.Reference(data, args.data_folder)
    recall, values = {}, {}
    for name, entry in usable.items():
        recall[name] = np.mean([scoring.gains(row.ranks["test"], 10, False).mean() for row in entry.found.values()])
        each = [proxies.proxies_of(codes, sizes_of(codes), reference) for codes in entry.codes.values()]
        values[name] = {
            proxy: None if any(one[proxy] is None for one in each) else float(np.mean([one[proxy] for one in each]))
            for proxy in each[0]
        }
    good = [name for name in usable if not usable[name].tokenizer.bad]
    lines = []
    for proxy in next(iter(values.values())):
        cells = [proxy]
        for group in (list(usable), good):
            pairs = [(values[n][proxy], recall[n]) for n in group if values[n][proxy] is not None]
            rho = scoring.rank_correlation(*zip(*pairs, strict=True)) if pairs else None
            cells.append("–" if rho is None else f"{rho:+.2f}")
        lines.append([*cells, *("–" if values[n][proxy] is None else f"{values[n][proxy]:.3f}" for n in usable)])
    lines.sort(key=lambda cells: 0.0 if cells[1] == "–" else -abs(float(cells[1])))
    heads = ["指标", f"ρ（全部 {len(usable)} 种）", f"ρ（正经的 {len(good)} 种）", *(f"`{name}`" for name in usable)]
    last = ["Recall@10", "", "", *(_short(recall[name]) for name in usable)]
    note = "与 Recall@10 的 Spearman 等级相关，各做法先对种子取平均。"
    note += "十种做法时 |ρ| 要过 .65 才有 p < .05，六种时要过 .89；这许多指标一起看，最高的一个总会偏高。"
    note += "held-out pairs 用的是（验证、测试）物品对：它偷看了答案，只供对照，不能拿来挑做法。"
    return [note, "", *table(heads, [*lines, last])]


def table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> List[str]:
    rule = "|" + "---|" * len(heads)
    return ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(map(str, line)) + " |" for line in lines)]


def mean_of(values: Sequence[float], digits: int = 4) -> str:
    text = f"{statistics.fmean(values):.{digits}f}"
    text = text.removeprefix("0") if digits == 4 else text
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
