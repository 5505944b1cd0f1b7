"""编码速度：我们与同类工具同场交错测量，同一份向量、同一份码本、单线程、CPU 时间。

    python benchmarks/bench_encode.py                                   # 内置生成器
    python benchmarks/bench_encode.py --features vectors.npy --output benchmarks/results/encode.md

「上限」是同一轮里 NumPy 与 torch 整形状 sgemm 中较快的一个（只做乘积，不找最小值）；「÷上限」是各轮比值的中位数。
「一致」是与 float64 逐层贪心编码完全相同的行的比例；「并列一致」只看特意放进去的近乎并列的行（两个 L1 码字的中点）。
没装的同类工具会跳过；安装：pip install -e ".[bench]"。`--device cuda` 量显卡：前后同步的墙上时间，只有 CPU 版的
（编译内核、NumPy 后备、faiss-cpu、numpy 版的 semantic-id）都跳过，上限只由 torch 给出。

四节可选：`--exactness` 量裁决的代价；`--beams 2 4 16` 量束搜索各宽度相对贪心的时间与误差；`--threads 2` 量几个线程比
一个快多少；`--scaling` 量耗时怎样随 N（1 万到 100 万，由生成器造）与 K 增长，另需几分钟与 1 GB 内存。
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # 必须早于 import numpy：各家都只许用一个线程

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stopwatch import Stopwatch  # noqa: E402

from algorithm.semantic_id.search import beam  # noqa: E402
from algorithm.semantic_id.search import isa as _search_isa  # noqa: E402
from algorithm.semantic_id.search.nearest import PreparedCodebook, nearest, prepare  # noqa: E402

Encoder = Callable[[torch.Tensor], torch.Tensor]
NEAR_TIES = 400
PLAIN = ("generic", "avx2", "avx512")  # 乘积是 float32 的路径


def load_features(path: str | None, rows: int, seed: int) -> torch.Tensor:
    """(rows, D) float32：文件里随机取行，或由生成器造出低秩混合。"""
    generator = np.random.default_rng(seed)
    if path is not None:
        source = np.load(path, mmap_mode="r")
        picked = np.sort(generator.permutation(len(source))[:rows])
        return torch.from_numpy(source[picked].astype(np.float32))
    centers = generator.standard_normal((500, 256), dtype=np.float32)
    basis = generator.standard_normal((64, 256), dtype=np.float32) / 8
    coordinates = generator.standard_normal((rows, 64), dtype=np.float32)
    return torch.from_numpy(centers[generator.integers(0, 500, rows)] + coordinates @ basis)


def make_codebooks(train: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """逐层残差 Lloyd 两轮：足够像真的码本，又不依赖训练代码。"""
    books, residual = [], train.clone()
    for level, size in enumerate(sizes):
        picked = torch.randperm(len(residual), generator=torch.Generator().manual_seed(level))[:size]
        weight = residual[picked].clone()
        for _ in range(2):
            indices = nearest(residual, prepare(weight))
            counts = torch.bincount(indices, minlength=size)
            sums = torch.zeros_like(weight).index_add_(0, indices, residual)
            weight = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), weight)
        residual -= weight[nearest(residual, prepare(weight))]
        books.append(weight.contiguous())
    return books


def float64_codes(x: torch.Tensor, books: list[torch.Tensor]) -> torch.Tensor:
    """(B, L) 参照：残差仍是 float32，距离在 float64 里按定义的展开式之外的办法直接求差平方和。"""
    codes = []
    for weight in books:
        wide, found = weight.double(), []
        for row in x.double():
            found.append((wide - row).square_().sum(1).argmin())
        codes.append(torch.stack(found))
        x = x - weight[codes[-1]]
    return torch.stack(codes, 1)


# ---- 参赛者 ----


def greedy(step: Callable[[torch.Tensor, int], torch.Tensor], books: list[torch.Tensor]) -> Encoder:
    """逐层：最近码字，减去它。"""

    def encode(x: torch.Tensor) -> torch.Tensor:
        codes = []
        for level, weight in enumerate(books):
            codes.append(step(x, level))
            x = x - weight[codes[-1]]
        return torch.stack(codes, 1)

    return encode


def prepared_for(books: list[torch.Tensor], path: str) -> list[PreparedCodebook]:
    """按点名的搜索路径整理码本。"""
    before = os.environ.get("SEMID_SEARCH")
    os.environ["SEMID_SEARCH"] = path
    try:
        prepared = [prepare(weight) for weight in books]
    finally:
        os.environ.pop("SEMID_SEARCH")
        if before is not None:
            os.environ["SEMID_SEARCH"] = before
    print(f"semid {path}: {prepared[0].path}", file=sys.stderr)
    return prepared


def ours(books: list[torch.Tensor], path: str) -> Encoder:
    prepared = prepared_for(books, path)
    return greedy(lambda x, level: nearest(x, prepared[level], num_threads=1), books)


def import_faiss():
    """faiss 轮子自带的旧 OpenBLAS 认不出新处理器，会退到 SSE 内核：替它点名，免得胜之不武。"""
    kernels = {"avx512": "SkylakeX", "avx2": "Haswell"}
    best = [kernels[isa.name] for isa in _search_isa.available() if isa.name in kernels]
    if best:
        os.environ.setdefault("OPENBLAS_CORETYPE", best[-1])
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


def faiss_flat(books: list[torch.Tensor]) -> Encoder:
    faiss = import_faiss()
    indexes = []
    for weight in books:
        indexes.append(faiss.IndexFlatL2(weight.shape[1]))
        indexes[-1].add(weight.numpy())
    return greedy(lambda x, level: torch.from_numpy(indexes[level].search(x.numpy(), 1)[1][:, 0]), books)


def faiss_residual(books: list[torch.Tensor], width: int = 1) -> Encoder:
    """束宽大于 1 时用 faiss 自己的内积表。"""
    faiss = import_faiss()
    bits = [(len(weight) - 1).bit_length() for weight in books]
    if any(1 << b != len(weight) for b, weight in zip(bits, books, strict=True)):
        raise ImportError("faiss ResidualQuantizer takes powers of two only")
    vector = faiss.UInt64Vector()
    for b in bits:
        vector.push_back(b)
    quantizer = faiss.ResidualQuantizer(books[0].shape[1], vector)
    faiss.copy_array_to_vector(torch.cat(books).numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained, quantizer.max_beam_size = True, width
    if width > 1:
        quantizer.use_beam_LUT = 1
        quantizer.compute_codebook_tables()

    def encode(x: torch.Tensor) -> torch.Tensor:
        packed = quantizer.compute_codes(x.numpy())
        value = sum(packed[:, i].astype(np.int64) << 8 * i for i in range(packed.shape[1]))
        shifts = np.cumsum([0, *bits[:-1]])
        return torch.from_numpy(np.stack([value >> s & (1 << b) - 1 for s, b in zip(shifts, bits, strict=True)], 1))

    return encode


def semantic_id_kmeans(books: list[torch.Tensor], backend: str) -> Encoder:
    from semantic_id import RQKMeans

    model = RQKMeans(n_levels=len(books), n_clusters=[len(weight) for weight in books])
    model.codebooks_, model.D_ = [weight.cpu().numpy() for weight in books], books[0].shape[1]
    if backend == "numpy":
        return lambda x: torch.from_numpy(model.encode(x.numpy(), batch_size=4096)).long()
    device = str(books[0].device)  # 它的接口只收 NumPy 数组，来回的搬运算在它头上
    return lambda x: torch.from_numpy(model._encode_torch(x.cpu().numpy(), device, 4096)).long().to(x.device)


def semantic_id_rqvae(books: list[torch.Tensor]) -> Encoder:
    from semantic_id import RQVAE

    width, device = books[0].shape[1], str(books[0].device)
    sizes = [len(weight) for weight in books]
    model = RQVAE(in_dim=width, e_dim=width, num_emb_list=sizes, layers=[width], device=device)
    model.module.encoder = torch.nn.Identity()  # 只比量化，不比网络
    layers = [m for m in model.module.modules() if hasattr(m, "embedding") and hasattr(m, "n_e")]
    for layer, weight in zip(layers, books, strict=True):
        layer.embedding.weight.data.copy_(weight)
    model.module.to(device)
    return lambda x: torch.from_numpy(model.encode(x.cpu().numpy(), device=device)).long().to(x.device)


def vector_quantize(books: list[torch.Tensor]) -> Encoder:
    from vector_quantize_pytorch import ResidualVQ

    model = ResidualVQ(dim=books[0].shape[1], codebook_size=tuple(len(weight) for weight in books))
    model = model.eval().to(books[0].device)
    for layer, weight in zip(model.layers, books, strict=True):
        layer._codebook.embed.data.copy_(weight[None])

    @torch.no_grad()
    def encode(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(part[None])[1][0] for part in x.split(2048)])

    return encode


CPU_ONLY = ("semid, avx512", "semid, avx2", "semid, numpy fallback", "faiss", "semantic-id RQKMeans numpy")


def contestants(books: list[torch.Tensor], only: str) -> dict[str, Encoder]:
    """名字 → 编码函数；装不上的、这种设备没有的跳过。`only` 只留名字里含它的（`semid, auto` 总在）。"""
    on_cpu = books[0].device.type == "cpu"
    makers: dict[str, Callable[[], Encoder]] = {
        "semid, auto": lambda: ours(books, "auto"),
        **{f"semid, {path}": partial(ours, books, path) for path in ("avx512-int16", "avx512", "avx2-int16", "avx2")},
        "semid, numpy fallback": lambda: ours(books, "numpy"),
        "faiss IndexFlatL2 per level": lambda: faiss_flat(books),
        "faiss ResidualQuantizer, beam 1": lambda: faiss_residual(books),
        "sketch: cdist + argmin": lambda: greedy(lambda x, level: torch.cdist(x, books[level]).argmin(-1), books),
        "semantic-id RQKMeans numpy": lambda: semantic_id_kmeans(books, "numpy"),
        "semantic-id RQKMeans torch": lambda: semantic_id_kmeans(books, "torch"),
        "semantic-id RQVAE quantizer": lambda: semantic_id_rqvae(books),
        "vector-quantize-pytorch ResidualVQ": lambda: vector_quantize(books),
    }
    out = {}
    for name, make in makers.items():
        if (only not in name and name != "semid, auto") or (not on_cpu and name.startswith(CPU_ONLY)):
            continue
        try:
            out[name] = make()
        except (ImportError, RuntimeError) as error:
            print(f"skip {name}: {error}", file=sys.stderr)
    return out


# ---- 测量 ----


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


# ---- 裁决的代价 ----


def measure_exactness(x: torch.Tensor, books: list[torch.Tensor], rounds: int, watch: Stopwatch) -> list[str]:
    """误差界清零，float32 的得分说了算，与正常的搜索交错跑：多出来的时间就是「一个向量一个 ID」的代价。"""
    lines = ["## 裁决的代价", "", "| 路径 | 时间 ÷ 只看 float32 得分 | 编码因此不同的行 |", "|---|---|---|"]
    native = [isa.name for isa in _search_isa.available() if isa.name in PLAIN]  # 低精度的只提名，没有「只看得分」
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


# ---- 束搜索 ----


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
    native = [isa.name for isa in _search_isa.available()]
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


# ---- 线程 ----


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


# ---- 规模 ----


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
