"""行为编号的配方：哪些向量、哪些形状，由代理挑；代理说得准不准，由同一个生成模型在两份数据上说。

    python benchmarks/bench_behaviour_recipe.py --parts proxies,shapes,vectors      # 补缺的格子，写表
    python benchmarks/bench_behaviour_recipe.py --parts proxies --sets second       # 只跑一份数据
    python benchmarks/bench_behaviour_recipe.py --report                            # 只由缓存写表

只看验证物品，测试物品从不读。第二份数据由第一份造：只留三类物品，只用 train_items 与 valid_item，最后一个当考题。一格是
（数据、向量、形状、种子），存进缓存；被打断后重跑只补缺的。编号一律是残差 k-means，冲突的加后缀。
"""

from __future__ import annotations

import os

from quality.row import THREADS

os.environ.update(THREADS)  # 要在导入 NumPy 与 torch 之前

import argparse
import datetime
import hashlib
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_downstream import ROOT, default_folder, say
from downstream import data as interactions
from downstream import generator, scoring, small_generator, training
from downstream.data import Interactions
from downstream.fused import hit_rate, residual_kmeans, vectors_of
from downstream.tokenizers import suffixed

from algorithm.semantic_id.behaviour.recipe import Recipe
from algorithm.semantic_id.metrics import codes as metrics
from algorithm.semantic_id.metrics import meaning

SECOND = ("Skin Care", "Bath & Body", "Fragrance")
EVERY = 2  # 小生成模型只给一半的用户排名


class Case(NamedTuple):
    """一种编号：向量的名字、配方、各层大小。"""

    name: str
    recipe: Recipe
    sizes: Tuple[int, ...]


TEXT, SMOOTH, Z = Recipe(smoothing=0, blend=0), Recipe(window=20, blend=0), Recipe(window=20)
TP, HOP2, HOP2P = Recipe(window=20, smoothing=0), Recipe(window=20, hops=2, blend=0), Recipe(window=20, hops=2)
CUBE = (256, 256, 256)
PROXY_CASES = [
    *(Case("smooth+factors", Z, sizes) for sizes in (CUBE, (2048, 128), (4096, 64), (1024, 256))),
    *(Case("text", TEXT, sizes) for sizes in (CUBE, (1024, 256), (4096, 64))),
    *(Case(n, r, CUBE) for n, r in (("smooth", SMOOTH), ("text+factors", TP), ("2 hops", HOP2))),
    Case("2 hops+factors", HOP2P, CUBE),
    *(Case("smooth+factors", Z, sizes) for sizes in ((64, 64, 64), (8192, 16))),
]
SHAPE_CASES = [
    Case("smooth+factors", Z, sizes)
    for sizes in (
        CUBE,
        (2048, 128),
        (2048, 256),
        (4096, 64),
        (4096, 256),
        (2048, 1024),
        (1024, 1024, 256),
        (4096, 128, 64),
    )
]
VECTOR_CASES = [
    *(Case(n, r, CUBE) for n, r in (("text", TEXT), ("smooth", SMOOTH), ("2 hops+factors", HOP2P))),
    Case("smooth+factors", Z, CUBE),
    *(Case(f"window {window}", Recipe(window=window), CUBE) for window in (1, 3, 5, 10)),
    *(Case(f"a = {weight:g}", Recipe(window=20, smoothing=weight), CUBE) for weight in (1.0, 3.0, 5.0)),
    *(Case(f"b = {blend:g}", Recipe(window=20, blend=blend), CUBE) for blend in (0.4, 1.0, 1.4)),
    *(Case(f"{count} factors", Recipe(window=20, num_factors=count), CUBE) for count in (32, 64, 256)),
    *(Case(f"shrink {shrink:g}", Recipe(window=20, shrink=shrink), CUBE) for shrink in (0.0, 3.0, 30.0)),
    # 单独好的放在一起
    Case("window 3, shrink 30", Recipe(window=3, shrink=30.0), CUBE),
    Case("window 3, shrink 30, a = 1", Recipe(window=3, shrink=30.0, smoothing=1.0), CUBE),
    Case("window 3, shrink 30, b = .4", Recipe(window=3, shrink=30.0, blend=0.4), CUBE),
    Case("window 3, b = .4", Recipe(window=3, blend=0.4), CUBE),
    Case("window 3, a = 1, b = .4", Recipe(window=3, smoothing=1.0, blend=0.4), CUBE),
]
PARTS = {"proxies": PROXY_CASES, "shapes": SHAPE_CASES, "vectors": VECTOR_CASES}
# 各部分要哪些数：向量只在同一形状里比，便宜的就够
WANTED = {"proxies": ("hit", "small", "recall"), "shapes": ("hit", "small"), "vectors": ("hit",)}
FIGURES = {
    "recall": "Recall@10 验证",
    "small": "小生成模型",
    "hit": "重建近邻",
    "lift": "L1 提升度",
    "collisions": "冲突率",
}


def second_set(folder: Path, data: Interactions) -> Interactions:
    """三类物品、重新编号；每人的串是 train_items 加 valid_item 里留下的，最后一个是考题，不满三个的人不要。"""
    labels = pq.read_table(folder / "items.parquet", columns=["l1_category"]).column(0).to_pylist()
    keep = np.array([label in SECOND for label in labels])
    place = np.cumsum(keep) - 1
    whole = [place[row[keep[row]]] for row in data.test_histories]
    whole = [row for row in whole if len(row) >= 3]
    last = np.array([row[-1] for row in whole])
    digest = hashlib.sha256((data.digest + repr(SECOND)).encode()).hexdigest()[:16]
    return Interactions(data.features[keep], [row[:-1] for row in whole], last, last, digest)


def measure(case: Case, data: Interactions, seed: int, wanted: Sequence[str]) -> Dict[str, Any]:
    """一格里要的数。"""
    codes, rebuilt = residual_kmeans(vectors_of(case.recipe, data), case.sizes, seed)
    unique, sizes = suffixed(codes, case.sizes)
    row: Dict[str, Any] = {"collisions": metrics.collision_rate(codes)}
    row["lift"] = meaning.co_consumption(codes, data.train_pairs())[2][0]
    if "hit" in wanted:
        row["hit"] = hit_rate(rebuilt, np.array([history[-1] for history in data.histories]), data.valid)
    if "small" in wanted:
        table, some = torch.from_numpy(np.ascontiguousarray(unique, dtype=np.int64)), range(0, data.num_users, EVERY)
        started = time.process_time()
        small = small_generator.train(data.histories, table, sizes, seed)
        found = small_generator.recommend(small, [data.histories[user] for user in some], table)
        row["small"] = recall(found, data.valid[::EVERY])
        row["small_cpu_s"] = time.process_time() - started
    if "recall" in wanted:
        started = time.process_time()
        model = training.train(data.histories, unique, sizes, generator.SIZES["tiny"], seed)
        row["recall"] = recall(training.recommend(model, data.histories, unique, sizes), data.valid)
        row["recall_cpu_s"] = time.process_time() - started
    return row


def recall(found: np.ndarray, targets: np.ndarray) -> float:
    return float(scoring.gains(scoring.ranks_of(found, targets), 10, False).mean())


def cell(
    case: Case, data: Interactions, seed: int, wanted: Sequence[str], cache: Path, fill: bool
) -> Dict[str, Any] | None:
    """缓存里的一格；缺的数在 fill 时补上，否则为 None。"""
    key = {"data": data.digest, "recipe": asdict(case.recipe), "sizes": case.sizes, "seed": seed}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{name}.json"
    row: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lacking = [figure for figure in wanted if figure not in row]
    if lacking and fill:
        found = measure(case, data, seed, lacking)
        say(f"{case.name} {case.sizes} seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
        row = key | row | found
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(row), encoding="utf-8")
        part.rename(path)
        lacking = []
    return None if lacking else row


def table(cases: List[Case], rows: List[Dict[str, Any]], wanted: Sequence[str]) -> Iterator[str]:
    """一张表，按最后一个要的数从好到差；有整个生成模型的数时加一行等级相关。"""
    figures = [name for name in FIGURES if name in wanted or name in ("lift", "collisions")]
    yield "| " + " | ".join(["向量", "码本", *(FIGURES[name] for name in figures)]) + " |"
    yield "|---" * (len(figures) + 2) + "|"
    for place in np.argsort([-row[wanted[-1]] for row in rows], kind="stable"):
        cells = [f"{rows[place][name]:.1f}" if name == "lift" else f"{rows[place][name]:.4f}" for name in figures]
        yield "| " + " | ".join([cases[place].name, " / ".join(map(str, cases[place].sizes)), *cells]) + " |"
    if "recall" in wanted:
        truth = [row["recall"] for row in rows]
        rho = [scoring.rank_correlation([row[name] for row in rows], truth) for name in figures]
        yield "| **Spearman** | | " + " | ".join("–" if value is None else f"{value:+.2f}" for value in rho) + " |"


def report(args: argparse.Namespace, sets: Dict[str, Interactions]) -> List[str]:
    lines = ["# 行为编号的配方", "", f"- 日期：{datetime.date.today()}；一个线程；硬件：{args.hardware}"]
    lines += [f"- 命令：`python benchmarks/bench_behaviour_recipe.py --parts {','.join(args.parts)}`"]
    lines += [f"- {name}：{d.num_items:,} 个物品，{d.num_users:,} 个用户，摘要 {d.digest}" for name, d in sets.items()]
    lines += [
        "- 只看验证物品；编号是残差 k-means，冲突的加后缀；一个种子。Recall@10 是 `tiny` 生成模型，全部用户；",
        f"  「小生成模型」是 `downstream/small_generator.py`，{small_generator.EPOCHS} 个 epoch，一半用户；"
        "「重建近邻」是最后一个训练物品的重建的前十个近邻里有没有验证物品。",
        "- 一格的标准误约 .002（第一份，全部用户）、.003（第二份）。",
        "",
    ]
    for part in args.parts:
        for name, data in sets.items():
            cases = PARTS[part]
            rows = [cell(case, data, args.seed, WANTED[part], args.cache, False) for case in cases]
            known = [(case, row) for case, row in zip(cases, rows, strict=True) if row is not None]
            if len(known) > 2:
                lines += [f"## {part}，{name}", "", *table(*map(list, zip(*known, strict=True)), WANTED[part]), ""]
    return lines


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=default_folder())
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["first", "second"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / "cache" / "behaviour_recipe")
    parser.add_argument("--report", action="store_true", help="不训练，只由缓存写表")
    parser.add_argument("--hardware", default=f"{platform.machine()}-{os.cpu_count()}core")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if gone := interactions.missing(args.data_folder):
        say(f"no {gone} under --data-folder; nothing measured (the schema is in docs/guides/downstream.md)")
        return
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # 两个生成模型都用；Zen 5 上快一倍，误差相同
    first = interactions.load(args.data_folder)
    sets = {"first": first, "second": second_set(args.data_folder, first)}
    sets = {name: sets[name] for name in args.sets}
    for part in args.parts:
        for data in sets.values():
            for case in PARTS[part] if not args.report else ():
                cell(case, data, args.seed, WANTED[part], args.cache, True)
    name = f"behaviour_recipe_{args.hardware}_{datetime.date.today()}.md"
    output = args.output or ROOT / "benchmarks" / "results" / name
    output.write_text("\n".join(report(args, sets)).rstrip() + "\n", encoding="utf-8")
    say(f"wrote {output.name}")


if __name__ == "__main__":
    main()
