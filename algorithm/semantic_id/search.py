"""最近码字搜索：全项目唯一的热点，查找、训练、k-means 都走这里。

「最近」的定义（一个向量只有一个 ID，与同批的别的行无关）：
    使 float64 的 Σ_d (x_d − c_d)² 最小的**最低**编号；差与平方都在 float64 里算，16 路各自按 d 递增累加
    （第 j 路管 d = j, j+16, …），再按 8、4、2、1 折半相加，不用 FMA。顺序写死，所以任何设备都能逐位重现。

快速的 float32 得分 h = x·c − ‖c‖²/2（越大越近）只负责**提名**：凡得分落在严格舍入误差界以内的码字都是候选，
唯一候选即答案，其余按定义裁决。因此结果是（行，码本）的纯函数，与批大小、行序、线程数、步长、指令集都无关。

误差界：u = 2⁻²⁴，m = H + 8，γ = m·u/(1 − m·u)，任何求和次序下
    |ĥ − h| ≤ γ‖x‖‖c‖ + 0.6γ‖c‖² + η‖x‖² + τ(1 + ‖x‖ + max‖c‖)
0.6γ‖c‖² 含偏置参与求和（γ/2）、偏置自身舍入（u/2 ≤ 0.06γ）；η = (H+16)·2⁻⁵³ 覆盖 float64 定义自身的舍入；
τ = m·2⁻¹²⁴ 覆盖下溢，哪怕处理器把次正规数清零。m 里多出的 8 项留给得分比较时的 float32 舍入。

本文件**假定**输入有限且 |x| ≤ 1e15，由门口（`checks.py`）负责；违反时结果无意义，但编号仍在 [0, K)。

形状字母：B 行数，H 宽度，K 码字数，T 一片码字，G 一片内的组数，n 一块行数。
"""

from __future__ import annotations

import os
from typing import Any, Optional

import numpy as np
import torch

__all__ = ["PreparedCodebook", "nearest", "prepare"]

_PATHS = ("auto", "avx512", "avx2", "generic", "numpy", "torch")
_PANEL = 32  # 每组码字数；填充行的偏置是 −inf，永远不会被提名
_LIMIT = 1e18  # 范数超过它时 float32 的乘积可能溢出，这样的行直接按定义裁决


class PreparedCodebook:
    """为搜索整理好的码本，自带所需数据的副本；由 `prepare` 创建，只有 `refresh_` 会改它。

    Attributes:
        size: 码字数 K。
        width: 宽度 H。
        path: 用哪条路径搜索（avx512、avx2、generic、numpy、torch）。
        table: (K', H+1) 每行是 [c | −‖c‖²/2]，K' 是 K 向上取到 32 的倍数。
        norm: (K',) ‖c‖ 的上界，float32。
    """

    def __init__(self, weight: torch.Tensor, path: str) -> None:
        size, width = weight.shape
        padded = -(-size // _PANEL) * _PANEL
        self.size, self.width, self.path = size, width, path
        self.table = weight.new_zeros(padded, width + 1)  # (K', H+1)
        self.norm = weight.new_zeros(padded)  # (K',)
        self._half = weight.new_full((padded,), float("inf"))  # (K',) ‖c‖²/2
        self._keys = torch.zeros(size, dtype=torch.int64, device=weight.device)  # (K,) 行内容的散列
        self._sample = weight.new_zeros(size, 2)
        self._source = (0, 0)
        self.top_norm = 0.0

    def refresh_(self, weight: torch.Tensor, rows: torch.Tensor) -> None:
        """码本的 `rows` 行变了：只重新整理这些行，其余向量级的量整体重算（O(K)，很便宜）。

        Args:
            weight: (K, H) 当前码本。
            rows: (R,) 变了的行号，可以重复。
        """
        weight = _as_weight(weight)
        if weight.shape != (self.size, self.width) or weight.device != self.table.device:
            raise ValueError(
                f"weight is {tuple(weight.shape)} on {weight.device}, but the prepared codebook is "
                f"{(self.size, self.width)} on {self.table.device}; call prepare again"
            )
        with torch.no_grad():
            for part in rows.to(weight.device).split(2048):  # 分块：float64 与 int64 的中间量有界
                self._pack(weight, part)
            self._finish(weight)

    def is_current(self, weight: torch.Tensor) -> bool:
        """整理之后 `weight` 是否没变过：看地址、版本号，再抽两列核对（`.data` 的改动不涨版本号）。"""
        weight = weight.detach()
        if weight.shape != (self.size, self.width) or weight.device != self.table.device:
            return False
        return _source_of(weight) == self._source and torch.equal(_sample_of(weight), self._sample)

    def _pack(self, weight: torch.Tensor, rows: torch.Tensor) -> None:
        """写入这些行的码字、范数、散列与抽样。"""
        codes = weight[rows] + 0.0  # (R, H)；−0.0 变成 0.0，散列才认得出它们相同
        square = codes.double().square().sum(1)  # (R,)
        self.table[rows, :-1] = codes
        self._half[rows] = (square * 0.5).float()
        self.norm[rows] = (square.sqrt() * (1 + 1e-6)).float()
        self._keys[rows] = (codes.view(torch.int32).long() * _multipliers(self.width, weight.device)).sum(1)
        self._sample[rows] = _sample_of(weight)[rows]

    def _finish(self, weight: torch.Tensor) -> None:
        """由逐行的量得出偏置：重复的码字只留编号最低的一个，其余偏置 −inf。"""
        bias = -self._half
        bias[: self.size][_twins(self._keys, weight)] = float("-inf")
        self.table[:, -1] = bias
        self.top_norm = float(self.norm.amax())
        self._source = _source_of(weight)


@torch.compiler.disable
def prepare(weight: torch.Tensor) -> PreparedCodebook:
    """整理码本供 `nearest` 反复使用。

    Args:
        weight: (K, H) float32，K ≥ 1，H ≥ 1，全部有限。

    Returns:
        整理好的码本；之后 `weight` 变了用 `refresh_` 或重新 `prepare`。

    Raises:
        ValueError: 形状不对，或环境变量 `SEMID_SEARCH` 不认识。
    """
    weight = _as_weight(weight)
    book = PreparedCodebook(weight, _choose_path(weight.device))
    book.refresh_(weight, torch.arange(weight.shape[0]))
    return book


@torch.compiler.disable
def nearest(x: torch.Tensor, codebook: PreparedCodebook, *, num_threads: Optional[int] = None) -> torch.Tensor:
    """每行的最近码字，定义见文件开头。

    Args:
        x: (B, H) float32，B ≥ 0，任意步长；假定有限且 |x| ≤ 1e15。
        codebook: `prepare` 的结果，与 x 同设备。
        num_threads: 编译路径用几个线程，默认 `torch.get_num_threads()`；结果与它无关。

    Returns:
        (B,) int64，取值 [0, K)。

    Raises:
        ValueError: x 的形状或设备与码本不符，或 `num_threads` 小于 1。
    """
    if x.ndim != 2 or x.shape[1] != codebook.width or x.device != codebook.table.device:
        raise ValueError(
            f"x is {tuple(x.shape)} on {x.device}, but the codebook needs (B, {codebook.width}) "
            f"on {codebook.table.device}"
        )
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"num_threads={threads} is out of range; use an int >= 1 or None")
    x = x.detach().float()
    out = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)  # (B,)
    rows = 1024 if x.device.type == "cpu" else 4096
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for start in range(0, x.shape[0], rows):
            out[start : start + rows] = _search_block(x[start : start + rows], codebook)
    return out


def _choose_path(device: torch.device) -> str:
    """环境变量 `SEMID_SEARCH` 选路径；不在 CPU 上的码本总走 torch。"""
    wish = os.environ.get("SEMID_SEARCH", "auto")
    if wish not in _PATHS:
        raise ValueError(f"SEMID_SEARCH={wish!r} is not supported; use one of {', '.join(_PATHS)}")
    if device.type != "cpu":
        return "torch"
    return "numpy" if wish in ("auto", "avx512", "avx2", "generic") else wish


# ---- 提名：片状矩阵乘积，组内取最大，只有够得着界的组才细看 ----


def _search_block(x: torch.Tensor, book: PreparedCodebook, tile: int = 2048) -> torch.Tensor:
    """一块行的搜索；NumPy 与 torch（含 CUDA）共用，只有数组库不同。"""
    xp: Any = np if book.path == "numpy" else torch
    n, height = x.shape[0], min(tile, book.table.shape[0])
    x1 = torch.ones(book.width + 1, n, device=x.device)  # (H+1, n)，末行乘偏置
    x1[:-1] = x.T
    norm = (x.double().square().sum(1).sqrt() * (1 + 1e-6)).float()  # (n,)
    slope, curve, rest = _bound(book, norm)
    crowded = ~(norm.double() * book.top_norm <= _LIMIT) | ~(norm <= _LIMIT) | (book.top_norm > _LIMIT)  # (n,)
    scores = torch.empty(height, n, device=x.device)  # (T, n) 唯一的大缓冲区，反复使用
    host = (lambda t: t.numpy()) if xp is np else (lambda t: t)
    table, codes_norm, x1, norm, rest, scores, crowded_ = map(
        host, (book.table, book.norm, x1, norm, rest, scores, crowded)
    )
    low = rest * 0 - xp.inf  # (n,) 已知的最好下界
    found = []
    for start in range(0, table.shape[0], height):
        part = table[start : start + height]  # (T, H+1)
        s = xp.matmul(part, x1, out=scores[: part.shape[0]])  # (T, n)
        grouped = s.reshape(_PANEL, -1, n)  # (32, G, n)：组由步长为 G 的码字组成，取最大只是整片逐元素比较
        best = xp.amax(grouped, axis=0)  # (G, n)
        top = xp.amax(codes_norm[start : start + height].reshape(_PANEL, -1), axis=0)[:, None]  # (G, 1)
        slack = (curve * top * top) + (slope * top) * norm + rest  # (G, n)
        low = xp.maximum(low, xp.amax(best - slack, axis=0))
        hit = best + slack >= low
        crowded_ |= hit.sum(0) > 4  # 挤满近乎并列者的行交给逐一裁决，候选总量因此有界
        group, row = xp.where(hit & ~crowded_)  # (m,)
        near = grouped[:, group, row]  # (32, m)
        members = start + xp.arange(_PANEL)[:, None] * best.shape[0] + group  # (32, m)
        own = codes_norm[members]
        near = near + (curve * own * own + slope * own * norm[row] + rest[row])
        i, pair = xp.where(near >= low[row])
        found.append((row[pair], members[i, pair], near[i, pair]))
    row, code, high = (torch.as_tensor(xp.concatenate(a)).to(x.device) for a in zip(*found, strict=True))
    keep = (high >= torch.as_tensor(low)[row]) & ~crowded[row]
    return _settle(x, book, row[keep], code[keep], crowded)


def _bound(book: PreparedCodebook, norm: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """误差界的系数：‖x‖‖c‖ 的、‖c‖² 的、与码字无关的部分 (n,)。"""
    m = book.width + 8
    gamma = 1.001 * m * 2.0**-24 / (1 - m * 2.0**-24)
    eta, tau = (book.width + 16) * 2.0**-53, m * 2.0**-124
    return gamma, 0.6 * gamma, eta * norm * norm + tau * (1 + norm + book.top_norm)


# ---- 裁决：只按文件开头的定义 ----


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
        parts = zip(row.split(8192), code.split(8192), strict=True)
        far = torch.cat([_distance(x[r], book.table[c, :-1]) for r, c in parts])  # (m,)
        least = far.new_full((n,), torch.inf).scatter_reduce(0, row, far, "amin")  # (n,)
        win = far == least[row]
        first = torch.full_like(out, book.size).scatter_reduce(0, row[win], code[win], "amin")
        out = torch.where(first < book.size, first, out)
    for part in (crowded | (count == 0)).nonzero()[:, 0].split(16):
        out[part] = _brute_force(x[part], book)
    return out


def _brute_force(x: torch.Tensor, book: PreparedCodebook) -> torch.Tensor:
    """(r, H) 与全部码字按定义比较 → (r,)。"""
    least = x.new_full((x.shape[0],), torch.inf, dtype=torch.float64)  # (r,)
    out = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for start in range(0, book.size, 4096):
        stop = min(start + 4096, book.size)
        far = _distance(x[:, None], book.table[None, start:stop, :-1])  # (r, T)
        near = far.amin(1)
        index = torch.arange(start, stop, device=x.device)
        first = torch.where(far == near[:, None], index, stop - 1).amin(1)  # 并列取最低编号
        out = torch.where(near < least, first, out)
        least = torch.minimum(near, least)
    return out


def _distance(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """定义里的距离，末维是 H，前面的维可广播；逐元素运算不会被融合成 FMA，所以逐位可重现。"""
    lanes = x.new_zeros(*torch.broadcast_shapes(x.shape[:-1], c.shape[:-1]), 16, dtype=torch.float64)
    for start in range(0, x.shape[-1], 16):
        gap = x[..., start : start + 16].double() - c[..., start : start + 16].double()
        lanes[..., : gap.shape[-1]] += gap * gap
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


# ---- 小件 ----


def _as_weight(weight: torch.Tensor) -> torch.Tensor:
    """码本的形状与 dtype。"""
    if weight.ndim != 2 or weight.shape[0] < 1 or weight.shape[1] < 1 or weight.dtype != torch.float32:
        raise ValueError(f"weight must be float32 of shape (K, H), got {weight.dtype} {tuple(weight.shape)}")
    return weight.detach()


def _source_of(weight: torch.Tensor) -> tuple[int, int]:
    """地址与版本号；推理模式下生成的张量没有版本号，记 −1。"""
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


def _sample_of(weight: torch.Tensor) -> torch.Tensor:
    """(K, 2) 每行两个元素：首列与中列。"""
    return weight[:, :: max(1, (weight.shape[1] + 1) // 2)][:, [0, -1]]


def _multipliers(width: int, device: torch.device) -> torch.Tensor:
    """(H,) 散列用的奇数乘子；相同散列还会逐元素核对，所以它不必难以碰撞，只要求固定。"""
    return (torch.arange(1, width + 1, dtype=torch.int64, device=device) * 0x9E3779B97F4A7C1 ^ 0x5DEECE66D) | 1


def _twins(keys: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(K,) bool：前面已有完全相同的码字。折叠它们，几百个全零的死码字才不会让每一行都去裁决。"""
    twin = torch.zeros(keys.shape[0], dtype=torch.bool, device=keys.device)
    keys, order = torch.sort(keys, stable=True)
    same = (keys[1:] == keys[:-1]).nonzero()[:, 0]
    for part in same.split(4096):
        later, earlier = order[part + 1], order[part]
        twin[later] = (weight[later] == weight[earlier]).all(1)
    return twin
