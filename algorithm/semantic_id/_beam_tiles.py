"""束搜索的后备路径（NumPy 片与 torch 片），与编译路径同一定义、逐位相同的结果。

有内积表的层，z 与码本乘一次，每条路径减去自己的表行；没有表的层，全部路径的残差并成 (n·w, H) 直接乘。
定义与误差界见 `beam.py`。

形状字母：n 一块行数，w 每行的路径数（各行补齐到同样多，空位误差为 inf），M 束宽，T 一片码字数，G = T/32 组数，
m 候选（行，路径，编号）数。
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

import numpy as np
import torch

from ._search_tiles import distance, full_precision
from .search import PreparedCodebook

__all__ = ["TILE", "search"]

_GROUP = 32
TILE = 1024  # T；内积表也按它分片，一片连续存放
_PAIRS = 2048  # 一次裁决多少对：float64 的中间量占几 MB
_PATHS = {"cpu": 2048, "cuda": 16384}  # 一块约多少条路径：得分 (n·w, T) 在 CPU 上占 8 MB，轮流用一片内积表

Bound = Tuple[float, ...]


class _Beam(NamedTuple):
    """一块行当前的路径，每行按编号字典序排列。"""

    codes: torch.Tensor  # (n, w, l)
    slots: torch.Tensor  # (n, w, l) 在内积表里的行号：此前各层码字数之和 + 编号
    reach: torch.Tensor  # (n, w) Σ‖q‖
    residual: torch.Tensor  # (n, w, H)
    error: torch.Tensor  # (n, w) float64；空位是 inf
    paths: torch.Tensor  # (n,) 实有几条
    greedy: torch.Tensor  # (n,) 贪心路径在第几个


def search(
    z: torch.Tensor,
    books: Sequence[PreparedCodebook],
    tables: Sequence[torch.Tensor | None],
    bound: Bound,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """`z` (B, H) 的路径与误差写进 `codes` (B, M, L) 与 `errors` (B, M)，按块进行。"""
    beam_size = codes.shape[1]
    step = max(1, _PATHS.get(z.device.type, 1024) // beam_size)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False), full_precision(z.device):
        for start in range(0, z.shape[0], step):
            part = z[start : start + step]
            n = part.shape[0]
            none = part.new_zeros(n, 1, 0, dtype=torch.int64)
            one = part.new_ones(n, dtype=torch.int64)
            zero = part.new_zeros(n, 1)
            beam = _Beam(none, none, zero, part[:, None], zero.double(), one, 0 * one)
            first = 0
            for book, table in zip(books, tables, strict=True):
                beam = _extend(beam, part, book, table, bound, beam_size)
                beam = beam._replace(slots=torch.cat([beam.slots, beam.codes[:, :, -1:] + first], 2))
                first += book.size
            _write(beam, codes[start : start + n], errors[start : start + n])


def _write(beam: _Beam, codes: torch.Tensor, errors: torch.Tensor) -> None:
    """按误差排序（稳定，所以并列的保持字典序）后写出；贪心路径是多带的那一条时，它顶替最后一名。"""
    limit = codes.shape[1]
    error, order = torch.sort(beam.error, dim=1, stable=True)
    if error.shape[1] > limit:
        extra = beam.paths > limit
        error[extra, limit - 1], order[extra, limit - 1] = error[extra, limit], order[extra, limit]
    width = min(limit, error.shape[1])
    path = beam.codes.gather(1, order[:, :width, None].expand(-1, -1, beam.codes.shape[2]))
    empty = torch.arange(width, device=error.device) >= beam.paths[:, None]
    errors[:, :width] = error[:, :width]
    codes[:, :width] = path.masked_fill(empty[:, :, None], -1)


def _extend(
    beam: _Beam, z: torch.Tensor, book: PreparedCodebook, table: torch.Tensor | None, bound: Bound, beam_size: int
) -> _Beam:
    """接上一层：提名，裁决，留下前 `beam_size` 名与贪心路径。"""
    n, w = beam.error.shape
    slot, code, crowded = _nominate(beam, z, book, table, bound, beam_size)
    x = beam.residual.reshape(n * w, -1)
    pairs = zip(slot.split(_PAIRS), code.split(_PAIRS), strict=True)
    error = torch.cat([_error(x[s], book.table[c, :-1]) for s, c in pairs])  # (m,)
    for row in crowded.nonzero()[:, 0].tolist():
        full = _brute_force(beam, row, book, beam_size)
        slot, code, error = (torch.cat(pair) for pair in zip((slot, code, error), full, strict=True))
    return _keep(beam, book, slot, code, error, beam_size)


def _nominate(
    beam: _Beam, z: torch.Tensor, book: PreparedCodebook, table: torch.Tensor | None, bound: Bound, beam_size: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """候选的（路径下标，编号），以及候选太多、要与全部码字比的行 (n,)。"""
    n, w = beam.error.shape
    scorer = _Scorer(beam, z, book, table)
    half = 0.5 * beam.error.reshape(-1).float()  # (n·w,) 得分里减去的 E/2
    norm, rest, crowded = _margins(beam, scorer.reach, half, book, bound)
    valid = (torch.arange(w, device=z.device) < beam.paths[:, None]) & ~crowded[:, None]
    half = torch.where(valid.view(-1), half, torch.inf)  # 空位与挤爆的行不再提名
    top = z.new_full((n, beam_size), -torch.inf)  # (n, M) 目前最好的 M 个得分下界
    low_greedy = z.new_full((n,), -torch.inf)
    greedy = torch.arange(n, device=z.device) * w + beam.greedy  # (n,) 贪心路径的下标
    found = []
    for start in range(0, book.table.shape[0], TILE):
        scores = scorer.tile(start)  # (n·w, 32, G)：一组是步长为 G 的 32 个码字
        part_norm = book.norm[start : start + TILE].view(_GROUP, -1)  # (32, G)
        wide = part_norm.amax(0)  # (G,)
        slack = torch.outer(norm, bound[1] * wide) + (bound[2] * wide * wide + rest[:, None])  # (n·w, G)
        best = scores.amax(1) - half[:, None]
        lower = best - slack
        # 每组最大值是不同的候选，所以它们的第 M 大也是全部候选第 M 大的下界
        top = torch.cat([top, lower.view(n, -1)], 1).topk(beam_size, dim=1).values
        low_greedy = torch.maximum(low_greedy, lower[greedy].amax(1))
        bar = _bar(top, low_greedy, greedy, w)
        hit = best + slack >= bar[:, None]
        if torch.count_nonzero(hit) > 2 * beam_size * n:  # 平均多出许多，才逐行查看是谁挤爆了：候选的总量因此有界
            crowded |= hit.view(n, -1).sum(1) > 8 * beam_size + 64
            hit &= ~crowded.repeat_interleave(w)[:, None]
        slot, group = hit.nonzero(as_tuple=True)  # (m',)
        own = part_norm.T[group]  # (m', 32)
        high = scores[slot, :, group] - half[slot, None]
        high += own * (bound[1] * norm[slot, None] + bound[2] * own) + rest[slot, None]
        pair, member = (high >= bar[slot, None]).nonzero(as_tuple=True)
        found.append((slot[pair], start + member * part_norm.shape[1] + group[pair], high[pair, member]))
    slot, code, high = (torch.cat(parts) for parts in zip(*found, strict=True))
    keep = (high >= _bar(top, low_greedy, greedy, w)[slot]) & ~crowded[slot // w]
    return slot[keep], code[keep], crowded


def _margins(
    beam: _Beam, reach: torch.Tensor, half: torch.Tensor, book: PreparedCodebook, bound: Bound
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """误差界里的 W (n·w,)、与码字无关的部分 (n·w,)，以及范数大到 float32 可能溢出的行 (n,)。"""
    limit, _, _, eta, tau, drift, _ = bound
    rest = eta * reach * reach + 2 * drift * half + tau * (1 + reach + book.top_norm)
    far = ~(reach <= limit) if book.top_norm <= limit else torch.ones_like(reach, dtype=torch.bool)
    return reach, rest, far.view(beam.error.shape).any(1)


class _Scorer:
    """一片片地给出得分 z·c − Σ q·c − ‖c‖²/2（有表）或 r·c − ‖c‖²/2（没有表）。

    Attributes:
        reach: (n·w,) 误差界里的 W：有表时 ‖z‖ + Σ‖q‖，没有表时 ‖r‖，都是上界；空位是 0 或很小的数。
    """

    def __init__(self, beam: _Beam, z: torch.Tensor, book: PreparedCodebook, table: torch.Tensor | None) -> None:
        n, w = beam.error.shape
        self._book, self._table = book, table
        x = beam.residual.reshape(n * w, -1) if table is None else z
        self._x1 = torch.cat([x, x.new_ones(len(x), 1)], 1)
        # ‖x‖ 的上界，同 _search_tiles
        norm = torch.linalg.vector_norm(x, dim=1) + x.shape[1] ** 0.5 * 2.0**-62
        self.reach = norm * (1 + (x.shape[1] + 8) * 2.0**-24)
        if table is not None:
            self._slots = beam.slots.reshape(n * w, -1)  # (n·w, l)
            prefix = beam.reach.view(-1) * (1 + 2.0**-20)  # (n·w,) Σ‖q‖ 的上界
            self.reach = (self.reach.repeat_interleave(w) + prefix) * (1 + 2.0**-20)

    def tile(self, start: int) -> torch.Tensor:
        """从第 `start` 个码字起一片的得分 (n·w, 32, G)；下一次调用会覆盖它。"""
        part = self._book.table[start : start + TILE]  # (T, H+1)
        if self._book.path == "numpy":  # NumPy 的 BLAS 在 CPU 上快得多
            with np.errstate(over="ignore", invalid="ignore"):  # 大到溢出的行另按定义比较，不必警告
                product = torch.from_numpy(np.matmul(self._x1.numpy(), part.numpy().T))  # (n 或 n·w, T)
        else:
            product = self._x1 @ part.T
        if self._table is None:
            return product.view(len(product), _GROUP, -1)
        size = self._table.numel() // self._book.table.shape[0]  # S
        piece = self._table[start * size : (start + len(part)) * size].view(size, len(part))  # (S, T)
        # 一次读、一次写就加完各层的表行；逐层取行再相减要多走几遍内存
        scores = torch.nn.functional.embedding_bag(self._slots, piece, mode="sum")  # (n·w, T)
        paths = scores.view(len(product), -1, len(part))  # (n, w, T)
        torch.sub(product[:, None], paths, out=paths)
        return scores.view(-1, _GROUP, len(part) // _GROUP)


def _bar(top: torch.Tensor, low_greedy: torch.Tensor, greedy: torch.Tensor, w: int) -> torch.Tensor:
    """(n·w,) 每条路径的门槛：第 M 大的下界；贪心路径还要留住它自己最近的码字。"""
    bar = top[:, -1].clamp(min=torch.finfo(top.dtype).min).repeat_interleave(w)  # 有限：填充的 −inf 永远够不着
    bar[greedy] = torch.minimum(bar[greedy], low_greedy.clamp(min=torch.finfo(top.dtype).min))
    return bar


def _brute_force(
    beam: _Beam, row: int, book: PreparedCodebook, beam_size: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """一行的全部路径与全部码字按定义比较，返回各路径的前 M 名：合起来必含前 M 名与贪心的最近码字。"""
    w = beam.error.shape[1]
    code = (~book.twin).nonzero()[:, 0]  # (K'',)
    out = []
    for path in range(int(beam.paths[row])):
        x = beam.residual[row, path]
        far = torch.cat([_error(x, book.table[part, :-1]) for part in code.split(_PAIRS)])
        far, order = torch.sort(far, stable=True)
        best = order[:beam_size]
        out.append((torch.full_like(best, row * w + path), code[best], far[: len(best)]))
    slot, code, far = (torch.cat(parts) for parts in zip(*out, strict=True))
    return slot, code, far


def _keep(
    beam: _Beam, book: PreparedCodebook, slot: torch.Tensor, code: torch.Tensor, error: torch.Tensor, beam_size: int
) -> _Beam:
    """候选按（误差，编号字典序）排名，每行留前 `beam_size` 名与贪心，组成下一层的束。"""
    n, w = beam.error.shape
    order = _lexsort(slot // w, error, slot, code)
    slot, code, error = slot[order], code[order], error[order]
    row = slot // w
    position = torch.arange(len(row), device=row.device)
    first = torch.full((n,), len(row), device=row.device).scatter_reduce(0, row, position, "amin")
    keep = position - first[row] < beam_size
    heir = (slot == row * w + beam.greedy[row]).nonzero()[:, 0]  # 贪心路径的候选，已按（误差，编号）排好
    nearest = torch.full((n,), len(row), device=row.device).scatter_reduce(0, row[heir], heir, "amin")  # (n,)
    keep[nearest] = True
    greedy = torch.zeros_like(keep)
    greedy[nearest] = True
    slot, code, error, greedy = slot[keep], code[keep], error[keep], greedy[keep]
    order = _lexsort(slot, code)
    slot, code, error, greedy = slot[order], code[order], error[order], greedy[order]
    row = slot // w
    count = torch.bincount(row, minlength=n)
    rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    width = int(count.max())
    old = beam.residual.reshape(n * w, -1)[slot]
    codes = beam.codes.new_zeros(n, width, beam.codes.shape[2] + 1)
    codes[row, rank, :-1] = beam.codes.reshape(n * w, -1)[slot]
    codes[row, rank, -1] = code
    slots = beam.slots.new_zeros(n, width, beam.slots.shape[2])
    slots[row, rank] = beam.slots.reshape(n * w, -1)[slot]
    reach = old.new_zeros(n, width)
    reach[row, rank] = beam.reach.reshape(-1)[slot] + book.norm[code]
    residual = old.new_zeros(n, width, old.shape[1])
    residual[row, rank] = old - book.table[code, :-1]
    wide = error.new_full((n, width), torch.inf)
    wide[row, rank] = error
    return _Beam(codes, slots, reach, residual, wide, count, rank[greedy])


def _error(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """定义里的距离；残差溢出时的 NaN 当作 inf，排序才有定义。"""
    return torch.nan_to_num(distance(x, c), nan=torch.inf, posinf=torch.inf)


def _lexsort(*keys: torch.Tensor) -> torch.Tensor:
    """按多个键排序的下标，第一个键最要紧。"""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[torch.sort(key[order], stable=True).indices]
    return order
