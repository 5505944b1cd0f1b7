"""搜索的后备路径：NumPy 片（没有编译器的 CPU）与 torch 片（CUDA，也能在 CPU 上跑），结果与编译路径逐位相同。

定义、误差界的推导见 `prepared.py`。CUDA 上提名改用 bfloat16 的乘积（张量核心，比 float32 快一个数量级），界的推导见
`kernel/amx.cpp`；候选挤爆的行再用 float32 重做。一片 T 个码字与一块 n 行相乘得 (T, n) 的得分；每 32 个码字一组取最大，
只有组内最大值够得着界的组才细看，所以每个得分只被读一遍。(B, K) 的矩阵从不整个存在。

形状字母：n 一块行数，T 一片码字数，G = T/32 组数，m 够得着界的（组，行）对数。
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator

import numpy as np
import torch

if TYPE_CHECKING:
    from .prepared import PreparedCodebook

__all__ = ["distance", "full_precision", "mixed_product", "multiply", "pack_halves", "search"]

_GROUP = 32  # K' 是它的倍数
_TILE = {"cpu": 1024, "cuda": 4096}  # T；与 n 一起使得分在 CPU 上占 8 MB，在 CUDA 上占 128 MB
_ROWS = {"cpu": 2048, "cuda": 8192}  # n；行再少，每片的固定开销就摊不薄
_LOOSE = (
    16.0  # 张量核心累加的舍入没有公开的规格，已知的实测比就近舍入差几倍；γ 放宽到它的这么多倍，仍远小于 bfloat16 的误差
)
_MAX_GROUPS = 4  # 一片里够得着界的组超过它的行，改为与全部码字比：候选总量因此有界
_WORTH_CHOOSING = 1 << 17  # 得分少于它的乘积不值得挑哪一家算
_PAIRS = 2048  # 一次裁决多少（行，码字）对：float64 的中间量占几 MB


def search(x: torch.Tensor, book: PreparedCodebook, out: torch.Tensor) -> None:
    """`x` (B, H) 的最近码字写进 `out` (B,)，按块进行，额外内存与 B 无关。"""
    rows = min(_ROWS.get(x.device.type, 4096), max(x.shape[0], 1))
    # 得分的大缓冲区由各块轮流用：每块重新申请，缺页中断会吃掉一成时间
    scores = torch.empty(min(_TILE.get(x.device.type, 1024), len(book.table)) * rows, device=x.device)
    quiet = np.errstate(over="ignore", invalid="ignore")  # −inf 的偏置与大到溢出的行都另有安排，不必警告
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_precision(x.device), quiet:
        for start in range(0, x.shape[0], rows):
            out[start : start + rows] = _search_block(x[start : start + rows], book, scores, book.halves is not None)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """搜索期间一律用真正的 float32：TF32 与 bfloat16 的乘积不满足误差界。只在用户改过设置时才动它。"""
    owner: Any = getattr(torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn, "matmul", None)
    if hasattr(owner, "fp32_precision"):  # torch ≥ 2.9；旧接口在用户混用新接口时会报错
        before = owner.fp32_precision
        changed = before not in ("none", "ieee")
        if changed:
            owner.fp32_precision = "ieee"
        try:
            yield
        finally:
            if changed:
                owner.fp32_precision = before
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _search_block(x: torch.Tensor, book: PreparedCodebook, scores: torch.Tensor, mixed: bool) -> torch.Tensor:
    """一块行 (n, H) 的编号 (n,)：提名，再裁决；`scores` 是得分的缓冲区，`mixed` 是否用 bfloat16 的乘积。"""
    limit, slope, curve, eta, tau = book.bound
    if not book.top_norm <= limit:  # float32 的得分会溢出：整块按定义比较
        none = x.new_zeros(0, dtype=torch.int64)
        return _settle(x, book, none, none, x.new_ones(x.shape[0], dtype=torch.bool))
    norm = _upper_norm(x)  # (n,)
    rest = eta * norm * norm + tau * (1 + norm + book.top_norm)  # (n,) 误差界里与码字无关的部分
    pull = slope * norm  # (n,) 误差界里 ‖c‖ 的系数
    crowded = ~(norm <= limit)  # (n,) 这些行直接与全部码字比
    table, x1 = book.table, torch.cat([x.T, x.new_ones(1, x.shape[0])])  # (H+1, n)；末行乘偏置
    if mixed:
        assert book.halves is not None
        table, x1 = book.halves, _half_rows(x, book.halves.shape[1])
        loss = _upper_norm(x - x1[: book.width].T.float())
        pull, curve = _LOOSE * pull + 1.001 * (loss + book.top_loss * (norm + loss)), _LOOSE * curve
    height = min(_TILE.get(x.device.type, 1024), len(table))
    buffer = scores[: height * x.shape[0]].view(height, -1)
    arrays = (table, book.norm, x1, pull, rest, buffer, crowded)
    if book.path == "numpy":  # numpy() 与张量共享内存，crowded 的改动两边都看得到
        found, low = _nominate(np, curve, *(t.numpy() for t in arrays))
    else:
        found, low = _nominate(torch, curve, *arrays)
    row, code, high = (torch.as_tensor(a) for a in found)
    keep = (high >= torch.as_tensor(low)[row]) & ~crowded[row]
    row, code = row[keep], code[keep]
    again = crowded.nonzero()[:, 0] if mixed else row[:0]
    if len(again) == 0:
        return _settle(x, book, row, code, crowded)
    sure = (~crowded).nonzero()[:, 0]
    place = torch.cumsum(~crowded, 0) - 1  # 留下的行里的第几行
    out = torch.empty_like(crowded, dtype=torch.int64)
    out[sure] = _settle(x[sure], book, place[row], code, crowded[sure])
    out[again] = _search_block(x[again], book, scores, False)
    return out


def _upper_norm(x: torch.Tensor) -> torch.Tensor:
    """(n, H) → (n,) 范数的上界：float32 求和误差 (H+8)u 与平方的下溢 √H·2⁻⁶² 都加上；不转 float64，省一份副本。"""
    width = x.shape[1]
    return (torch.linalg.vector_norm(x, dim=1) + width**0.5 * 2.0**-62) * (1 + (width + 8) * 2.0**-24)


# ---- CUDA 的 bfloat16 乘积 ----


@functools.cache
def mixed_product(device: torch.device) -> Callable[..., Any] | None:
    """(T, W) @ (W, n) 的 bfloat16 乘积，float32 累加并写进 `out`；这台设备或这一版 torch 没有则为 None。"""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        return None

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(a, b, out_dtype=torch.float32, out=out)

    try:
        one = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
        product(one, one, torch.empty(16, 16, device=device))
    except (TypeError, RuntimeError):  # torch < 2.8 没有 out_dtype
        return None
    return product


def pack_halves(codes: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """码字 (R, H) 与 ‖c‖²/2 (R,) → bfloat16 的 (R, W)：[c | 偏置 | 0]，W = H + 3 补到 8 的倍数。

    偏置拆成三个 bfloat16 之和：8 位尾数的三段正好装下 float32 的 24 位，所以它没有舍入误差。
    """
    out = codes.new_zeros(len(codes), -(-(codes.shape[1] + 3) // 8) * 8, dtype=torch.bfloat16)
    out[:, : codes.shape[1]] = codes
    rest = -half
    for column in range(codes.shape[1], codes.shape[1] + 3):
        out[:, column] = rest
        rest = (rest - out[:, column].float()).nan_to_num_(0.0, 0.0, 0.0)  # −inf 减去自己
    return out


def _half_rows(x: torch.Tensor, width: int) -> torch.Tensor:
    """(n, H) → bfloat16 的 (W, n)，与 `pack_halves` 的列对应。"""
    out = x.new_zeros(x.shape[0], width, dtype=torch.bfloat16)
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] : x.shape[1] + 3] = 1.0
    return out.T


def multiply(xp: Any, a: Any, b: Any, out: Any) -> None:
    """把 a @ b 写进 `out`，float32；`xp` 是数组所属的 numpy 或 torch，NumPy 数组由两家里快的那一家算。

    各家的求和次序不同，得分的末位也就不同；误差界对任何次序成立，所以编号与选了哪一家无关。
    """
    if xp is torch and a.dtype == torch.bfloat16:
        product = mixed_product(a.device)
        assert product is not None
        product(a, b, out)
    elif xp is np and a.shape[0] * b.shape[1] >= _WORTH_CHOOSING:
        _faster_product()(a, b, out)
    else:
        xp.matmul(a, b, out=out)


def _with_torch(a: Any, b: Any, out: Any) -> None:
    """与 np.matmul 相同，由 torch 的 BLAS 算。"""
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


def _with_numpy(a: Any, b: Any, out: Any) -> None:
    np.matmul(a, b, out=out)


@functools.cache
def _faster_product() -> Callable[[Any, Any, Any], None]:
    """在本机现测：Intel 上 torch 自带的 MKL 快一成多，AMD 上 NumPy 的 OpenBLAS 快两三成。每个进程一次，约 20 毫秒。"""
    a, b, out = np.ones((1024, 257), np.float32), np.ones((257, 1024), np.float32), np.empty((1024, 1024), np.float32)
    seconds: dict[Callable[[Any, Any, Any], None], float] = {_with_numpy: np.inf, _with_torch: np.inf}
    for _ in range(5):  # 交替着测，取各自最快的一次；只数本线程的时间，别的进程占着处理器也不算
        for product in seconds:
            start = time.thread_time()
            product(a, b, out)
            seconds[product] = min(seconds[product], time.thread_time() - start)
    return min(seconds, key=seconds.__getitem__)


def _nominate(
    xp: Any,
    curve: float,
    table: Any,
    norm: Any,
    x1: Any,
    pull: Any,
    rest: Any,
    scores: Any,
    crowded: Any,
) -> tuple[tuple[Any, Any, Any], Any]:
    """提名：返回候选的（行，编号，得分上界）与每行最好的得分下界；`xp` 是 numpy 或 torch，写法两者通用。"""
    found, low = [], rest - xp.inf  # (n,)
    terms = xp.stack([pull, rest * 0 + 1, rest])  # (3, n)；误差界写成 (G, 3) @ (3, n)，只写一遍内存
    for start in range(0, table.shape[0], scores.shape[0]):
        part = table[start : start + scores.shape[0]]  # (T, H+1)，bfloat16 的是 (T, W)
        # (32, G, n)：一组是步长为 G 的 32 个码字，于是组内取最大是整片的逐元素比较
        grouped = scores[: part.shape[0]]
        multiply(xp, part, x1, grouped)
        grouped = grouped.reshape(_GROUP, -1, x1.shape[1])
        part_norm = norm[start : start + part.shape[0]]  # (T,)
        best = xp.amax(grouped, axis=0)  # (G, n)
        top = xp.amax(part_norm.reshape(_GROUP, -1), axis=0)[:, None]  # (G, 1)
        slack = xp.matmul(xp.concatenate([top, curve * top * top, top * 0 + 1], 1), terms)  # (G, n)
        low = xp.maximum(low, xp.amax(best - slack, axis=0))
        hit = best + slack >= low  # (G, n)
        if xp.count_nonzero(hit) > 2 * len(low):  # 平均每行一组多；多出许多才逐行查看是谁挤爆了
            crowded |= hit.sum(0) > _MAX_GROUPS
            hit &= ~crowded
        (flat,) = xp.where(hit.reshape(-1))  # (m,)；一维的查找比二维快得多
        group, row = flat // len(low), flat % len(low)
        # 按各自码字的界再看一遍：一个范数巨大的码字不该让同组的邻居都成候选
        own = part_norm.reshape(_GROUP, -1)[:, group]  # (32, m)
        high = grouped[:, group, row] + (own * pull[row] + (curve * own * own + rest[row]))
        member, pair = xp.where(high >= low[row])
        found.append((row[pair], start + member * top.shape[0] + group[pair], high[member, pair]))
    row, code, high = (xp.concatenate(a) for a in zip(*found, strict=True))
    return (row, code, high), low


# ---- 裁决：只按 prepared.py 开头的定义 ----


def _settle(
    x: torch.Tensor, book: PreparedCodebook, row: torch.Tensor, code: torch.Tensor, crowded: torch.Tensor
) -> torch.Tensor:
    """候选 (row, code) → 每行的编号；没有候选或候选太多的行与全部码字比。"""
    n = x.shape[0]
    count = torch.bincount(row, minlength=n)  # (n,)
    out = torch.zeros(n, dtype=torch.int64, device=x.device)
    out[row] = code
    several = (count > 1)[row]
    row, code = row[several], code[several]
    if row.numel():
        parts = zip(row.split(_PAIRS), code.split(_PAIRS), strict=True)
        far = torch.cat([distance(x[r], book.table[c, :-1]) for r, c in parts])  # (m,)
        least = far.new_full((n,), torch.inf).scatter_reduce(0, row, far, "amin")  # (n,)
        win = far == least[row]
        first = torch.full_like(out, book.size).scatter_reduce(0, row[win], code[win], "amin")
        out = torch.where(first < book.size, first, out)
    lost = (crowded | (count == 0)).nonzero()[:, 0]
    together = max(1, _PAIRS // book.size)
    for start in range(0, len(lost), together):
        part = lost[start : start + together]
        out[part] = _brute_force(x[part], book)
    return out


def _brute_force(x: torch.Tensor, book: PreparedCodebook) -> torch.Tensor:
    """(r, H) 与全部码字按定义比较 → (r,)。"""
    least = x.new_full((x.shape[0],), torch.inf, dtype=torch.float64)  # (r,)
    out = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for start in range(0, book.size, _PAIRS):
        stop = min(start + _PAIRS, book.size)
        far = distance(x[:, None], book.table[None, start:stop, :-1])  # (r, T)
        near = far.amin(1)
        index = torch.arange(start, stop, device=x.device)
        first = torch.where(far == near[:, None], index, stop - 1).amin(1)  # 并列取最低编号
        out = torch.where(near < least, first, out)
        least = torch.minimum(near, least)
    return out


def distance(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """定义里的距离，(…, H) 可广播；逐元素运算不会被融合成 FMA，求和次序写死，所以逐位可重现。"""
    gap = x.double() - c.double()
    square = gap.mul_(gap)
    if gap.shape[-1] % 16:
        square = torch.nn.functional.pad(square, (0, -gap.shape[-1] % 16))
    square = square.unflatten(-1, (-1, 16))  # (…, ⌈H/16⌉, 16)
    lanes = square[..., 0, :]
    for i in range(1, square.shape[-2]):
        lanes += square[..., i, :]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]
