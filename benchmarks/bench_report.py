"""报告的规模：十万个物品的一页有多大，在真的无头 Chromium 里多久打开，点、查、拖一下要多久。

    python benchmarks/bench_report.py --rows 100000 --output benchmarks/results/report.md

数据是生成的（与 `bench_evaluate.py` 同一个生成器），标题是 4–12 个词，体积才像真的；走的是真的路：训练 → 评估 → 报告。
没有显卡，画布在 CPU 上画。「打开」是页面自己从导航算到画完的毫秒，其余是从输入到下一帧画完的墙上时间；都取几遍的中位数
与最大。需要 Chromium（Debian 的 chromium）。
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_evaluate import DIM, generate

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.cli.options import Session
from algorithm.semantic_id.cli.quality import evaluate
from algorithm.semantic_id.report.page import write_report
from algorithm.semantic_id.tests.report.chromium import Chromium, find_chromium

_NEXT_FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


def name_items(folder: Path, rows: int) -> None:
    """把生成器的编号标题换成几个词的标题。"""
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(8000)]
    titles = [" ".join(words[i] for i in rng.integers(0, len(words), rng.integers(4, 13))) for _ in range(rows)]
    table = pq.read_table(folder / "items.parquet")
    topics = pa.array([f"topic {i}" for i in table.column("category").to_pylist()])
    table = table.set_column(1, "title", pa.array(titles)).set_column(2, "category", topics)
    pq.write_table(table, folder / "items.parquet")


def build(folder: Path, rows: int, sizes: tuple[int, ...]) -> tuple[Path, int, float]:
    """训练、评估、写报告；返回（网页，字节，写报告的秒）。"""
    generate(folder, rows)
    name_items(folder, rows)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=DIM, codebook_sizes=sizes))
    train_codebook(
        encoder,
        folder / "x.npy",
        num_epochs=0,
        config=TrainerConfig(max_train_rows=20_000),
        output_dir=folder / "model",
        progress=False,
    )
    evaluate.run(
        Session("en", progress=False), folder / "model", folder / "x.npy", items=folder / "items.parquet",
        labels="category",
        interactions=folder / "interactions.parquet", pairs_of="test", output=folder / "model" / "evaluation",
    )  # fmt: skip
    start = time.perf_counter()
    result = write_report([folder / "model"], folder / "report.html")
    return folder / "report.html", result["bytes"], time.perf_counter() - start


def measure(page: Path, rounds: int) -> Dict[str, List[float]]:
    """每个动作几遍的毫秒。"""
    path = find_chromium()
    if path is None:
        raise SystemExit("no Chromium on PATH; apt-get install chromium, or set SEMID_CHROMIUM")
    times: Dict[str, List[float]] = {"打开": [], "点进一格前缀": [], "查一个词": [], "地图缩放一格": []}
    with Chromium(path) as browser:

        def timed(name: str, act: Callable[[], object]) -> None:
            start = time.perf_counter()
            act()
            browser.evaluate(_NEXT_FRAME)
            times[name].append(1e3 * (time.perf_counter() - start))

        def zoom() -> None:
            browser.send(
                "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-40, modifiers=2
            )  # 2 是 Ctrl

        for _ in range(rounds):
            times["打开"].append(browser.open(page))
            timed("点进一格前缀", lambda: browser.click_on("#treemap"))
            browser.click_on("#query")
            timed("查一个词", lambda: (browser.type("an"), browser.wait_for("document.querySelector('#hits li')")))
            browser.evaluate("document.getElementById('plane').scrollIntoView({block: 'center'})")
            x, y = browser.evaluate(
                "(() => { const b = document.getElementById('plane').getBoundingClientRect();"
                " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
            )
            for _ in range(5):
                timed("地图缩放一格", zoom)
        if browser.errors:
            raise RuntimeError(f"the page reported errors: {browser.errors}")
    return times


def main() -> None:
    """生成、评估、写报告、在浏览器里量、写表。"""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--codebook-sizes", type=int, nargs="+", default=(1024, 4096, 16384))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hardware", default=platform.machine(), help="硬件的文字说明，写进结果")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        page, size, seconds = build(Path(temporary), args.rows, tuple(args.codebook_sizes))
        times = measure(page, args.rounds)
    sizes = "/".join(map(str, args.codebook_sizes))
    lines = [
        f"# 报告的规模，{date.today()}",
        "",
        f"`python benchmarks/bench_report.py --rows {args.rows}`；{args.hardware}，Python {platform.python_version()}；"
        f"生成的 {args.rows:,} 个物品，码本 {sizes}，标题 4–12 个词，{args.rounds} 遍。",
        "",
        f"写报告 {seconds:.1f} 秒，{size / 1e6:.1f} MB。",
        "",
        "| 动作 | 中位数 ms | 最大 ms |",
        "|---|---|---|",
        *(f"| {name} | {statistics.median(got):.0f} | {max(got):.0f} |" for name, got in times.items()),
        "",
    ]
    print("\n".join(lines))
    if args.output is not None:
        args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
