"""质量对照：相对误差、冲突、均匀、语义、时间，同类工具与我们并排，同样的训练行、同样的码本大小。

    python benchmarks/bench_quality.py --datasets beauty --seeds 11 --tools faiss-rkm,faiss-rq
    python benchmarks/bench_quality.py --datasets beauty --inner --tools semid-fast,semid-default
    python benchmarks/bench_quality.py --report --hardware zen5-2core      # 只由缓存写表

每一格（数据、码本大小、种子、工具）在自己的子进程里跑，单线程，训练的 CPU 秒有上限（默认 1800，超了记为
not finished），结果留在 benchmarks/cache/quality/，被打断后重跑同一条命令就接着来。我们自己的格子默认不跑：挑配方用
`--inner`（只在训练行里再切 85 / 15），最后一张表才加 `--final`，未见的行只读那一次。

同类工具：pip install -e ".[bench]"；rectokens 声明依赖 triton，而 CPU 上用不到它，所以单独装：
pip install --no-deps rectokens。没装的工具跳过，各说一行。
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path

from quality import row as rows
from quality.data import DATASETS, ROOT
from quality.tools import TOOLS

CPU_LIMIT = 1800
DEFAULT_DATASETS = ("beauty", "beauty_title", "wordnet")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def default_data_folder() -> Path:
    """仓库旁边的 shared/data；从仓库里的 shared/ 也找。"""
    found = [path for path in (ROOT.parent / "shared" / "data", ROOT / "shared" / "data") if path.is_dir()]
    return found[0] if found else ROOT.parent / "shared" / "data"


def cells_of(args: argparse.Namespace) -> list[rows.Cell]:
    """按参数选出的格子，数据 → 码本大小 → 种子 → 工具。"""
    chosen = []
    for name in args.datasets:
        dataset = DATASETS[name]
        if missing := dataset.missing(args.data_folder):
            say(f"skip {name}: {missing} is not under the data folder; give --data-folder")
            continue
        for sizes in args.shapes or dataset.shapes:
            for seed in args.seeds or dataset.seeds:
                chosen += [rows.Cell(name, sizes, seed, tool, args.inner) for tool in args.tools]
    return chosen


def why_not(cell: rows.Cell, args: argparse.Namespace) -> str | None:
    """跳过一格的理由；可以跑为 None。"""
    tool = TOOLS[cell.tool]
    if reason := tool.limits(cell.dataset, cell.sizes):
        return reason
    if tool.ours and not (cell.inner or args.final):
        return "our own rows read the unseen items: use --inner to choose recipes, --final for the last table"
    if tool.version() is None:
        return f"{tool.package} is not installed"
    return None


def parse_args() -> argparse.Namespace:
    def names(known: dict) -> object:
        def parse(text: str) -> list[str]:
            wanted = text.split(",")
            if unknown := [name for name in wanted if name not in known]:
                raise argparse.ArgumentTypeError(f"unknown name {unknown[0]!r}; known: {', '.join(known)}")
            return wanted

        return parse

    def shapes(text: str) -> list[tuple[int, ...]]:
        return [tuple(int(k) for k in shape.split("/")) for shape in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=names(DATASETS), default=list(DEFAULT_DATASETS), help=", ".join(DATASETS))
    parser.add_argument("--shapes", type=shapes, help="如 256/256/256,1024/1024/1024；默认每份数据自己的")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], help="如 11,12,13")
    peers = [name for name, tool in TOOLS.items() if not tool.ours]
    parser.add_argument("--tools", type=names(TOOLS), help=f"默认全部同类（写表时连我们的）；可选 {', '.join(TOOLS)}")
    parser.add_argument("--data-folder", type=Path, default=default_data_folder(), help="内有 wordnet/ 与 beauty/")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / "cache" / "quality")
    parser.add_argument("--cpu-limit", type=int, default=CPU_LIMIT, help="一格训练的 CPU 秒上限")
    parser.add_argument("--inner", action="store_true", help="只在训练行里再切 85 / 15，不碰未见的行")
    parser.add_argument("--final", action="store_true", help="允许我们自己的工具读未见的行：只为最后一张表")
    parser.add_argument("--report", action="store_true", help="不训练，只由缓存写表")
    parser.add_argument("--hardware", default=f"{platform.machine()}-{os.cpu_count()}core", help="硬件名，进文件名")
    parser.add_argument("--output", type=Path, help="默认 benchmarks/results/quality_<硬件>_<日期>.md")
    args = parser.parse_args()
    args.data_folder, args.cache = args.data_folder.resolve(), args.cache.resolve()
    if args.tools is None:
        args.tools = list(TOOLS) if args.report else peers
    return args


def report(args: argparse.Namespace) -> None:
    from quality import report as reports

    name = f"quality{'_inner' if args.inner else ''}_{args.hardware}_{datetime.date.today()}.md"
    output = args.output or ROOT / "benchmarks" / "results" / name
    # 结果里不写本机路径：带路径的选项不抄
    words = [word for word in sys.argv[1:] if "/" not in word or word.replace("/", "").replace(",", "").isdigit()]
    hidden = ("--data-folder", "--cache", "--output")
    command = " ".join(["python benchmarks/bench_quality.py", *(word for word in words if word not in hidden)])
    reports.write(cells_of(args), args.data_folder, args.cache, output, args.hardware, command)
    say(f"wrote {output.name}")


def main() -> None:
    args = parse_args()
    if args.report:
        report(args)
        return
    for cell in cells_of(args):
        if reason := why_not(cell, args):
            say(f"skip {cell.label}: {reason}")
            continue
        folder = rows.folder_of(cell, args.data_folder, args.cache)
        row = rows.read_row(folder)
        if rows.is_done(row, args.cpu_limit):
            say(f"cached {cell.label}: {row['status']}")
            continue
        say(f"run {cell.label}")
        row = rows.run(cell, args.data_folder, args.cache, args.cpu_limit)
        say(f"  {row['status']} {summary(row)}")


def summary(row: dict) -> str:
    """一行进度：训练秒数与各读法的相对误差。"""
    if row["status"] != "finished":
        return row.get("error", f"within {row['cpu_limit']} CPU s")
    texts = [f"{row['train_cpu_s']:.0f} CPU s, peak {row['peak_bytes'] / 2**20:.0f} MB"]
    for name, reading in row["readings"].items():
        pairs = [f"{reading['squared_error'][side] / row['deviation'][side]:.4f}" for side in ("train", "unseen")]
        texts.append(f"{name} {' / '.join(pairs)}")
    return "; ".join(texts)


if __name__ == "__main__":
    main()
