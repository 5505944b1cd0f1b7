"""编码速度：我们与同类工具同场交错测量，同一份向量、同一份码本、单线程、CPU 时间。

    python benchmarks/bench_encode.py                                   # 内置生成器
    python benchmarks/bench_encode.py --features vectors.npy --output benchmarks/results/encode.md

「上限」是同一轮里 NumPy 与 torch 整形状 sgemm 中较快的一个（只做乘积，不找最小值）；「÷上限」是各轮比值的中位数。
「一致」是与 float64 逐层贪心编码完全相同的行的比例；「并列一致」只看特意放进去的近乎并列的行（两个 L1 码字的中点）。
没装的同类工具会跳过；安装：pip install -e ".[bench]"。`--device cuda` 量显卡：前后同步的墙上时间，只有 CPU 版的
（编译内核、NumPy 后备、faiss-cpu、numpy 版的 semantic-id）都跳过，上限只由 torch 给出。

五节可选：`--exactness` 量裁决的代价；`--twins` 量全是同一个码字的码本；`--beams 2 4 16` 量束搜索各宽度相对贪心的时间与
误差；`--threads 2` 量几个线程比一个快多少；`--scaling` 量耗时怎样随 N（1 万到 100 万，由生成器造）与 K 增长，另需几分钟
与 1 GB 内存。
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # 必须早于 import numpy：各家都只许用一个线程

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from encode.beams import measure_beams, measure_small_beams  # noqa: E402
from encode.contestants import import_faiss  # noqa: E402
from encode.data import load_features, make_codebooks  # noqa: E402
from encode.extras import measure_exactness, measure_scaling, measure_threads, measure_twins  # noqa: E402
from encode.measure import measure  # noqa: E402
from stopwatch import Stopwatch  # noqa: E402

__all__ = ["Stopwatch", "command_line", "import_faiss", "kernel_names", "load_features"]  # 别的基准也用


def kernel_names() -> str:
    """BLAS 实际选用的内核；没有 threadpoolctl 就说不知道。"""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown (pip install threadpoolctl)"
    return ", ".join(sorted({f"{i['internal_api']} {i.get('architecture') or ''}".strip() for i in threadpool_info()}))


def command_line(args: argparse.Namespace) -> str:
    """写进结果的命令，不带本机的路径。"""
    words = []
    for word in sys.argv[1:]:
        word = Path(word).name if word in (args.features, args.output) else word
        words.append(f"'{word}'" if " " in word else word)
    return " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *words])


def report(
    args: argparse.Namespace, x: torch.Tensor, rows: list[tuple[str, ...]], sections: list[str], watch: Stopwatch
) -> str:
    heads = ("编码器", f"物品 / {watch.unit}", "÷上限", "一致", "并列一致", "额外内存 MB", "单条 ms")
    how = "前后同步的墙上时间" if watch.is_cuda else "一个线程，CPU 时间"
    lines = [
        "# 编码速度",
        "",
        f"- 日期：{datetime.date.today()}；硬件：{args.hardware or watch.hardware()}",
        f"- {how}，交错 {args.rounds} 轮取中位数",
        f"- 版本：torch {torch.__version__}，numpy {np.__version__}，Python {platform.python_version()}",
        f"- 矩阵乘积内核：{kernel_names()}",
        f"- 数据：{Path(args.features).name if args.features else '内置生成器'}，{len(x)} 行 × {x.shape[1]} 维；"
        f"码本 {'/'.join(map(str, args.sizes))}",
        f"- 命令：`{command_line(args)}`",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *sections,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="编码速度：与同类工具交错测量")
    parser.add_argument("--features", help="(N, D) 的 .npy；默认用内置生成器")
    parser.add_argument("--rows", type=int, default=8064, help="编码多少行")
    parser.add_argument("--train-rows", type=int, default=40000, help="用多少行造码本")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384], help="各层码本大小")
    parser.add_argument("--rounds", type=int, default=9, help="交错多少轮")
    parser.add_argument("--check", type=int, default=400, help="拿多少行与 float64 核对")
    parser.add_argument("--only", default="", help="只测名字里含这段文字的")
    parser.add_argument("--beams", type=int, nargs="+", default=[], help="也量这些束宽，第一个还量不建表时")
    parser.add_argument("--exactness", action="store_true", help="也量裁决的代价：与只看 float32 得分的搜索相比")
    parser.add_argument("--twins", action="store_true", help="也量全是同一个码字的码本")
    parser.add_argument("--scaling", action="store_true", help="也量耗时怎样随 N 与 K 增长")
    parser.add_argument("--threads", type=int, default=1, help="也量这么多线程比一个快多少")
    parser.add_argument("--repeats", type=int, default=60, help="量线程时交错多少遍")
    parser.add_argument("--device", default="cpu", help="cpu 或 cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hardware", default="", help="硬件的文字说明，写进结果")
    parser.add_argument("--output", help="把表格也写进这个 .md 文件")
    args = parser.parse_args()
    torch.set_num_threads(1)
    watch = Stopwatch(args.device)
    data = load_features(args.features, args.rows + args.train_rows, args.seed)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
    x, train = data[order[: args.rows]].contiguous(), data[order[args.rows :]].contiguous()
    books = make_codebooks(train.to(watch.device), args.sizes)
    x, mean = x.to(watch.device), train.mean(0).to(watch.device)
    rows = measure(x, books, args.rounds, args.check, args.only, watch)
    sections = measure_exactness(x, books, args.rounds, watch) if args.exactness else []
    if args.twins:
        sections += measure_twins(watch)
    if args.beams:
        sections += measure_beams(x, mean, books, args.beams, args.rounds, watch)
        sections += measure_small_beams(x, books, args.beams[0], watch)
    if args.threads > 1 and not watch.is_cuda:
        sections += measure_threads(x, books, args.threads, args.repeats)
    if args.scaling:
        sections += measure_scaling(books, args.seed, watch)
    text = report(args, x, rows, sections, watch)
    print(text)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
