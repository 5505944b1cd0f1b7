"""搜索的后备路径：NumPy 片（没有编译器的 CPU）与 torch 片（CUDA，也能在 CPU 上跑），结果与编译路径逐位相同。

定义、误差界的推导见 `definition.py`。CUDA 上提名改用 bfloat16 的乘积（张量核心，比 float32 快一个数量级），界的推导见
`kernel/amx.h`；候选过多的行再用 float32 重做。一片 T 个码字与一块 n 行相乘得 (T, n) 的得分；每 32 个码字一组取最大，
只有组内最大值够得着界的组才细看，所以每个得分只被读一遍。(B, K) 的矩阵从不整个存在。

形状字母：n 一块行数，T 一片码字数，G = T/32 组数，m 够得着界的（组，行）对数。
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .definition import PAIRS, brute_force, distance
from .prepared import PreparedCodebook
from .products import full_precision, half_rows, multiply

__all__ = ["search"]

_GROUP = 32  # K' 是它的倍数
_TILE = {"cpu": 1024, "cuda": 4096}  # T；与 n 一起使得分在 CPU 上占 8 MB，在 CUDA 上占 128 MB
_ROWS = {"cpu": 2048, "cuda": 8192}  # n；行再少，每片的固定开销就摊不薄
_LOOSE = (
    16.0  # 张量核心累加的舍入没有公开的规格，已知的实测比就近舍入差几倍；γ 放宽到它的这么多倍，仍远小于 bfloat16 的误差
)
_MAX_GROUPS = 4  # 一片里够得着界的组超过它的行，改为与全部码字比：候选总量因此有界


def search(x: torch.Tensor, book: PreparedCodebook, out: torch.Tensor) -> None:
    """`x` (B, H) 的最近码字写进 `out` (B,)，按块进行，额外内存与 B 无关。"""
    rows = min(_ROWS.get(x.device.type, 4096), max(x.shape[0], 1))
    # 得分的大缓冲区由各块轮流用：每块重新申请，缺页中断会吃掉一成时间
    scores = torch.empty(min(_TILE.get(x.device.type, 1024), len(book.table)) * rows, device=x.device)
    quiet = np.errstate(over="ignore", invalid="ignore")  # −inf 的偏置与大到溢出的行都另有安排，不必警告
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_precision(x.device), quiet:
        for start in range(0, x.shape[0], rows):
            out[start : start + rows] = _search_block(x[start : start + rows], book, scores, book.halves is not None)


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
        table, x1 = book.halves, half_rows(x, book.halves.shape[1])
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
        if xp.count_nonzero(hit) > 2 * len(low):  # 平均每行一组多；多出许多才逐行查看是谁的候选过多
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


# ---- 裁决：只按 definition.py 开头的定义 ----


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
        parts = zip(row.split(PAIRS), code.split(PAIRS), strict=True)
        far = torch.cat([distance(x[r], book.table[c, :-1]) for r, c in parts])  # (m,)
        least = far.new_full((n,), torch.inf).scatter_reduce(0, row, far, "amin")  # (n,)
        win = far == least[row]
        first = torch.full_like(out, book.size).scatter_reduce(0, row[win], code[win], "amin")
        out = torch.where(first < book.size, first, out)
    lost = (crowded | (count == 0)).nonzero()[:, 0]
    together = max(1, PAIRS // book.size)
    for start in range(0, len(lost), together):
        part = lost[start : start + together]
        out[part] = brute_force(x[part], book.table[: book.size, :-1])
    return out
