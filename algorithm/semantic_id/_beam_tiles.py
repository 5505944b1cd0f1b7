"""束搜索的后备路径（NumPy 片与 torch 片），与编译路径同一定义、逐位相同的结果。

有内积表的层，z 与码本只乘一次，得分与内积表都是 int16 定点数：每条路径减去自己的表行，一个得分只搬两三个字节。定点数按
2¹⁶ 取模，z·c 与 q·c 各自绕回几圈都无妨，只要最后的得分落在范围里；落不进范围的行、定点数分不清的行，改走没有表的
办法：残差直接与码本相乘，按 float32 与各码字自己的范数定界。那样还分不清的行才与全部码字比。定义与误差界见 `beam.py`。

形状字母：n 一块行数，m 一块行的路径数（平铺，同一行的相邻），M 束宽，T 一片码字数，S 此前各层码字数之和，
G = K'/8 组数，J 粗组数，h 够得着界的（路径，组）数。
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from ._search_tiles import distance, full_precision, multiply
from .search import PreparedCodebook

__all__ = ["TILE", "search", "to_fixed", "unit_of"]

_GROUP = 16  # K' 是它的倍数；一片里相隔 T/8 的八个码字一组，组内取最大因此是长条的逐元素比较
TILE = 2048  # T；内积表也按它分片，一片连续存放
_PAIRS = 512  # 一次裁决多少对：float64 的中间量不出 L2
_PATHS = {"cpu": 4096, "cuda": 16384}  # 一块约多少条路径
_STRIP = 128
_CHUNK = {"cpu": 128, "cuda": 1 << 30}  # 一次减多少条路径的表：两个缓冲区共 1 MB，留在 L2 里
_SCORES = {"cpu": 1 << 23, "cuda": 1 << 27}  # 没有表时一次留多少个 float32 得分
_LARGEST, _LOWEST = 32700, -32768  # 定点得分的范围；填充与重复的码字恒为后者
_LEAST = torch.finfo(torch.float32).min  # 有限：填充的得分 −inf 永远够不着
_REACH = 2.0  # 定点数的范围按 ‖r‖ ≤ 2·max‖c‖ 取：再大，精度白白浪费

Bound = Tuple[float, ...]
Found = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # 候选的（路径下标，编号，−误差/2 的下界，上界）


class _Scratch:
    """各块、各层轮流用的大数组：每次重新申请，缺页中断比运算还贵。"""

    def __init__(self) -> None:
        self._parts: Dict[str, torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """一个未初始化的数组；同名的上一个随之作废。"""
        count = math.prod(shape)
        part = self._parts.get(name)
        if part is None or len(part) < count:
            part = self._parts[name] = like.new_empty(count, dtype=dtype)
        return part[:count].view(shape)


class _Beam(NamedTuple):
    """一块行当前的路径，同一行的相邻，行内按编号字典序排列。"""

    row: torch.Tensor  # (m,) 第几行，递增
    codes: torch.Tensor  # (m, l)
    slots: torch.Tensor  # (m, l) 在内积表里的行号：此前各层码字数之和 + 编号
    reach: torch.Tensor  # (m,) float64 Σ‖q‖ 的上界
    residual: torch.Tensor  # (m, H)
    norm: torch.Tensor  # (m,) float64 ‖r‖ 的上界
    error: torch.Tensor  # (m,) float64 ‖r‖² 的近似；最后一层之后是定义里的误差
    greedy: torch.Tensor  # (m,) bool 贪心路径，每行恰好一条


def search(
    z: torch.Tensor,
    books: Sequence[PreparedCodebook],
    tables: Sequence[torch.Tensor | None],
    bound: Bound,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """`z` (B, H) 的路径与误差写进 `codes` (B, M, L) 与 `errors` (B, M)，按块进行。"""
    step, scratch = max(1, _PATHS.get(z.device.type, 1024) // codes.shape[1]), _Scratch()
    quiet = np.errstate(over="ignore", invalid="ignore")  # 大到溢出的行另按定义比较，不必警告
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False), full_precision(z.device), quiet:
        for start in range(0, z.shape[0], step):
            part = z[start : start + step]
            row = torch.arange(part.shape[0], device=z.device)
            none, zero = row.new_zeros(len(row), 0), part.new_zeros(len(row), dtype=torch.float64)
            beam = _Beam(row, none, none, zero, part, _upper_norm(part), zero, row >= 0)
            first = 0
            for level, (book, table) in enumerate(zip(books, tables, strict=True)):
                last = level + 1 == len(books)
                beam = _extend(beam, part, book, table, bound, codes.shape[1], scratch, last)
                beam = beam._replace(slots=torch.cat([beam.slots, beam.codes[:, -1:] + first], 1))
                first += book.size
            _write(beam, codes[start : start + step], errors[start : start + step])


def _write(beam: _Beam, codes: torch.Tensor, errors: torch.Tensor) -> None:
    """按误差排序（稳定，所以并列的保持字典序）后写出；贪心路径是多带的那一条时，它顶替最后一名。"""
    order = _lexsort(beam.row, beam.error)
    row = beam.row[order]
    rank = _rank(row, len(codes)).clamp(max=codes.shape[1] - 1)
    # 多带的贪心路径是它那一行的最后一条；名次压到末位，与原来的末位同格，顺序写就留下它
    last = torch.ones_like(row, dtype=torch.bool)
    last[:-1] = (row[1:] != row[:-1]) | (rank[1:] != rank[:-1])
    row, rank, order = row[last], rank[last], order[last]
    codes[row, rank] = beam.codes[order]
    errors[row, rank] = beam.error[order]


def _extend(
    beam: _Beam,
    z: torch.Tensor,
    book: PreparedCodebook,
    table: torch.Tensor | None,
    bound: Bound,
    beam_size: int,
    scratch: _Scratch,
    last: bool,
) -> _Beam:
    """接上一层：提名，裁决，留下前 `beam_size` 名与贪心路径。"""
    n = len(z)
    norm = beam.norm  # (m,)
    rest = torch.ones(n, dtype=torch.bool, device=z.device)  # (n,) 还没有候选的行
    lost = _any(~(norm <= bound[0]), beam.row, n) if book.top_norm <= bound[0] else rest
    found = []
    if table is not None:
        fixed = _Fixed(beam, z, book, table, bound, scratch)
        rest = fixed.rest
        part, crowded = _nominate(fixed, ~(rest | lost), beam_size)
        found, rest = [part], rest | crowded
    rows = (rest & ~lost).nonzero()[:, 0]
    most = max(1, _SCORES.get(z.device.type, 1 << 23) // len(book.table) * n // len(beam.row))
    for some in rows.split(most) if len(rows) else ():
        mask = torch.zeros_like(rest)
        mask[some] = True
        ids = mask[beam.row].nonzero()[:, 0]
        sub = _Beam(*(field[ids] for field in beam))
        sub = sub._replace(row=(mask.cumsum(0) - 1)[sub.row])
        direct = _Direct(sub, len(some), book, bound, scratch)
        (path, *rest_), full = _nominate(direct, torch.ones_like(mask[some]), beam_size)
        found.append((ids[path], *rest_))
        lost[some] |= full
    empty = beam.error[:0]
    path, code, low, high = (torch.cat(p) for p in zip(*found, strict=True)) if found else (*2 * [rows[:0]], empty, empty)
    error = -low
    every = torch.ones_like(code, dtype=torch.bool) if last else _unsure(beam, n, path, low, high, beam_size)[beam.row[path]]
    some = every.nonzero()[:, 0]
    if len(some):
        pairs = zip(path[some].split(_PAIRS), code[some].split(_PAIRS), strict=True)
        error[some] = torch.cat([_error(beam.residual.index_select(0, p), _words(book, c)) for p, c in pairs])
    for row in lost.nonzero()[:, 0].tolist():
        full = _brute_force(beam, row, book, beam_size)
        path, code, error = (torch.cat(pair) for pair in zip((path, code, error), full, strict=True))
    return _keep(beam, book, path, code, error, beam_size, last)


def _nominate(scorer: _Fixed | _Direct, rows: torch.Tensor, beam_size: int) -> Tuple[Found, torch.Tensor]:
    """`rows` (n,) 标出的行的候选，以及其中候选太多、这种得分分不清的行 (n,)。"""
    n, row = len(rows), scorer.row
    lower = scorer.lower(beam_size)  # (m, J) float64，各是不同候选的得分下界
    first = lower[scorer.place[scorer.first]].view(n, -1)
    if first.shape[1] < beam_size:
        bar = first.new_full((n,), -torch.inf)
    else:
        bar = first.topk(beam_size, dim=1).values[:, -1]  # (n,) 前 each 条路径的候选里第 M 大的下界
    bar = torch.where(rows, bar, torch.inf)[row]  # (m,)
    # 贪心路径还要留住它自己最近的码字
    bar = torch.where(scorer.greedy & rows[row], torch.minimum(bar, lower.amax(1)), bar)
    hit = scorer.hits(bar)  # (m, J)
    crowded = torch.zeros_like(rows)
    if torch.count_nonzero(hit) > 2 * beam_size * n:  # 平均多出许多，才逐行查看是谁挤爆了：候选的总量因此有界
        crowded = row.new_zeros(n).index_add_(0, row, hit.sum(1)) > 8 * beam_size + 64
        hit &= ~crowded[row][:, None]
    flat = hit.view(-1).nonzero()[:, 0]  # (h,)；一维的查找比二维快得多
    path = flat // hit.shape[1]
    path, code, low, high = scorer.members(path, flat - path * hit.shape[1], bar)
    crowded |= torch.bincount(row[path], minlength=n) > 8 * beam_size + 64
    keep = (~crowded[row[path]]).nonzero()[:, 0]
    return (scorer.order[path[keep]], code[keep], low[keep], high[keep]), crowded


def _unsure(
    beam: _Beam, n: int, path: torch.Tensor, low: torch.Tensor, high: torch.Tensor, beam_size: int
) -> torch.Tensor:
    """(n,)：得分的界分不清哪些候选进前 M 名、或哪个是贪心的行。其余的行按得分下界排名，与按误差排名留下同样的路径。"""
    row, own = beam.row[path], beam.greedy[path].nonzero()[:, 0]
    order = _lexsort(row, -low)
    order = order[_rank(row[order], n) == beam_size - 1]
    bar = low.new_full((n,), -torch.inf)
    bar[row[order]] = low[order]
    best = torch.full_like(bar, -torch.inf).scatter_reduce(0, row[own], low[own], "amax")
    own = own[high[own] >= best[row[own]]]
    alive = torch.bincount(row[high >= bar[row]], minlength=n)
    return (alive > beam_size) | (torch.bincount(row[own], minlength=n) > 1)


def _arrange(row: torch.Tensor, n: int, height: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """(n, e) 各行的前 e 条路径，e 是每行都有的条数；(m,) 打分的次序：每 `height` 行一段，段内先是各行的第一条，再是各行
    的第二条……于是一段路径减的是同一段连续的得分。多出来的路径排在最后。"""
    rank = _rank(row, n)
    each = int(torch.bincount(row, minlength=n).min())
    first = (rank < each).nonzero().view(n, each)
    parts = [part.T.reshape(-1) for part in first.split(height)]
    return first, torch.cat([*parts, (rank >= each).nonzero()[:, 0]])


class _Direct:
    """残差直接与码本相乘的得分 r·c − ‖c‖²/2，float32；误差界用各码字自己的范数，W = ‖r‖。"""

    def __init__(
        self, beam: _Beam, n: int, book: PreparedCodebook, bound: Bound, scratch: _Scratch
    ) -> None:
        self.first, self.order = _arrange(beam.row, n, n)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order), device=self.order.device)
        self.row, self.greedy = beam.row[self.order], beam.greedy[self.order]
        norm, error, residual = beam.norm[self.order], beam.error[self.order], beam.residual[self.order]
        self._book, self._slope, self._curve = book, bound[1], bound[2]
        self._norm, self._half = norm, 0.5 * error
        self._rest = _rest(norm, error, book, bound)
        x1 = torch.cat([residual, residual.new_ones(len(norm), 1)], 1)
        self._scores, best = [], []
        whole = scratch.take("scores", x1, x1.dtype, len(x1) * len(book.table))
        for part in book.table.split(TILE):
            scores, whole = whole[: len(x1) * len(part)].view(len(x1), -1), whole[len(x1) * len(part) :]
            self._scores.append(_product(x1, part, book.path, scores))
            best.append(scores.unflatten(1, (_GROUP, -1)).amax(1))
        self._best = torch.cat(best, 1)  # (m, G)
        wide = torch.cat([part.view(_GROUP, -1).amax(0) for part in book.norm.split(TILE)])  # (G,)
        self._slack = torch.outer(norm.float(), self._slope * wide) + (self._curve * wide * wide + self._rest[:, None])

    def lower(self, beam_size: int) -> torch.Tensor:
        return (self._best - self._slack) - self._half[:, None]

    def hits(self, bar: torch.Tensor) -> torch.Tensor:
        return self._best >= (bar + self._half).clamp(min=_LEAST)[:, None] - self._slack

    def members(self, path: torch.Tensor, group: torch.Tensor, bar: torch.Tensor) -> Found:
        """够得着的组 (h,) 里够得着的码字。"""
        code = _members(group, len(self._book.table))  # (h, 16)
        own = self._book.norm[code].double()
        slack = own * (self._slope * self._norm[path, None] + self._curve * own) + self._rest[path, None]
        value = _gather(self._scores, path, code).double()
        pair, member = (value + slack >= (bar + self._half).clamp(min=_LEAST)[path, None]).nonzero(as_tuple=True)
        path, value, slack = path[pair], value[pair, member], slack[pair, member]
        value = value - self._half[path]
        return path, code[pair, member], value - slack, value + slack


class _Fixed:
    """查表的得分 z·c − ‖c‖²/2 − Σ q·c，int16 定点数，单位 `unit_of(book)`；误差界用全层最大的范数。

    Attributes:
        fits: (m,) bool，这条路径的每个得分连同误差都落在定点数的范围里。
    """

    def __init__(
        self,
        beam: _Beam,
        z: torch.Tensor,
        book: PreparedCodebook,
        table: torch.Tensor,
        bound: Bound,
        scratch: _Scratch,
    ) -> None:
        each = len(beam.row) // len(z)
        self._rows = max(1, _CHUNK.get(z.device.type, 128) // each)
        self.first, self.order = _arrange(beam.row, len(z), self._rows)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order), device=self.order.device)
        self.row, self.greedy = beam.row[self.order], beam.greedy[self.order]
        norm, error = beam.norm[self.order], beam.error[self.order]
        self._book, self._table, self._slots = book, table, beam.slots[self.order]
        self._unit, top = unit_of(book), book.top_norm
        reach = (_upper_norm(z)[self.row] + beam.reach[self.order]) * (1 + 2.0**-40)  # (m,) W
        self._half = 0.5 * error
        slack = _rest(reach, error, book, bound) + top * (bound[1] * reach + bound[2] * top)
        self._slack = slack + (0.5 * beam.slots.shape[1] + 1) * self._unit  # 各个 q·c 四舍五入，z·c 截去尾数
        most = torch.maximum(norm * top + 0.5 * top * top, 0.5 * norm * norm) + self._slack
        # 取整之前的 z·c 与 q·c 要放得进 int32，才谈得上取模
        fits = (most <= _LARGEST * self._unit) & ((reach + top) * top <= 2.0**30 * self._unit)
        self.rest = _any(~fits, self.row, len(z))
        self._score(torch.where(self.rest[:, None], 0.0, z), scratch)

    def _score(self, z: torch.Tensor, scratch: _Scratch) -> None:
        """z·c 的定点数、各路径的组内最大与粗组最大。"""
        book, height, n, m = self._book, len(self._book.table), len(z), len(self.row)
        size, width = self._table.numel() // height, min(TILE, height)  # S
        tiles, lanes, short = -(-height // TILE), width // _GROUP, torch.int16
        narrow = float(_upper_norm(z).max() + 0.5 * book.top_norm) * book.top_norm <= _LARGEST * self._unit
        x1 = torch.cat([z, z.new_ones(n, 1)], 1).div_(self._unit)  # 先除：不必再走一遍得分
        plain = scratch.take("product", x1, x1.dtype, n * width)
        whole = scratch.take("whole", x1, torch.int32, _STRIP * width)
        self._scores = scratch.take("fixed", x1, short, n * height)
        self._groups = scratch.take("groups", x1, short, tiles, m, lanes)
        chunk = min(m, self._rows * self.first.shape[1])
        buffers = scratch.take("chunk", x1, short, 2, chunk * width)
        dead = book.twin.nonzero()[:, 0]
        edges = torch.searchsorted(dead, torch.arange(0, height + TILE, TILE, device=z.device)).tolist()
        parts, planned = [], 0
        for number, start in enumerate(range(0, height, TILE)):
            part = book.table[start : start + TILE]
            count = len(part)
            if count != planned:  # 末片可能窄一些，缓冲区要另行切分
                parts, planned = self._plan(n, chunk, buffers[:, : chunk * count].view(2, chunk, count)), count
                self._groups[number].fill_(_LOWEST)
            scores = plain[: n * count].view(n, count)
            _product(x1, part, book.path, scores)
            product = self._scores[n * start :][: n * count].view(n, count)
            if narrow:
                product.copy_(scores)
            else:
                for some, target in zip(scores.split(_STRIP), product.split(_STRIP), strict=True):
                    target.copy_(whole[: some.numel()].view(some.shape).copy_(some))  # int32 → int16 就是取模
            if edges[number] < edges[number + 1]:
                product.index_fill_(1, dead[edges[number] : edges[number + 1]] - start, _LOWEST)
            best = self._groups[number, :, : count // _GROUP]
            piece = self._table[start * size : (start + count) * size].view(size, count)  # (S, T)
            for row, slots, value, words, shaped, grouped, begin, end in parts:
                torch.index_select(piece, 0, slots[0], out=value)
                for slot in slots[1:]:
                    value += torch.index_select(piece, 0, slot, out=words)
                if isinstance(row, slice):
                    torch.sub(product[row], shaped, out=shaped)
                else:
                    torch.sub(torch.index_select(product, 0, row, out=words), value, out=value)
                torch.amax(grouped, 1, out=best[begin:end])
        self._coarse = self._groups.amax(0)  # (m, J)

    def _plan(self, n: int, chunk: int, buffers: torch.Tensor) -> List[Tuple[Any, ...]]:
        """每段路径的（行号，各层槽位，得分缓冲区，表行缓冲区，前者按行、按组的视图，起止）；每片都用，所以只切一次。"""
        out: List[Tuple[Any, ...]] = []
        slots, begin, each = self._slots.T.contiguous(), 0, self.first.shape[1]
        while begin < len(self.row):
            start = begin // each
            end, row = min(begin + chunk, len(self.row)), self.row[begin : begin + chunk]
            if start < n:
                rows = slice(start, min(start + self._rows, n))
                end, row = rows.stop * each, rows
            value, words = buffers[:, : end - begin].unbind(0)
            shaped = value.view(each, -1, value.shape[1]) if start < n else None
            grouped = value.unflatten(1, (_GROUP, -1))
            out.append((row, slots[:, begin:end].unbind(0), value, words, shaped, grouped, begin, end))
            begin = end
        return out

    def lower(self, beam_size: int) -> torch.Tensor:
        m, lanes = self._coarse.shape
        fold = 4 if lanes % 4 == 0 and self.first.shape[1] * lanes >= 128 * beam_size else 1
        few = self._coarse.view(m, fold, -1).amax(1)
        return few.double() * self._unit - (self._half + self._slack)[:, None]

    def _limit(self, bar: torch.Tensor) -> torch.Tensor:
        """(m,) int16 门槛；向下取整，只会偏低。"""
        limit = torch.where(bar < torch.inf, (bar + self._half - self._slack) / self._unit, torch.inf).floor()
        return limit.clamp(_LOWEST + 1, 32767).to(torch.int16)  # 填充的码字永远够不着前者，谁也够不着后者

    def hits(self, bar: torch.Tensor) -> torch.Tensor:
        return self._coarse >= self._limit(bar)[:, None]

    def members(self, path: torch.Tensor, group: torch.Tensor, bar: torch.Tensor) -> Found:
        """够得着的粗组 (h,) → 其中够得着的组 → 够得着的码字。"""
        limit, height, n = self._limit(bar), len(self._book.table), len(self._scores) // len(self._book.table)
        reached = self._groups[:, path, group] >= limit[path]  # (片数, h)
        tile, some = reached.nonzero(as_tuple=True)
        path, group = path[some], group[some]
        start = tile[:, None] * TILE
        width = (height - start).clamp(max=TILE)
        inside = group[:, None] + torch.arange(_GROUP, device=path.device) * (width // _GROUP)  # (h', 16)
        value = _take(self._scores, start * n + self.row[path, None] * width + inside)
        size = self._table.numel() // height
        for slot in self._slots[path].unbind(1):
            value -= _take(self._table, start * size + slot[:, None] * width + inside)
        pair, member = (value >= limit[path, None]).nonzero(as_tuple=True)
        path, score = path[pair], value[pair, member].double() * self._unit
        score, slack = score - self._half[path], self._slack[path]
        return path, (start + inside)[pair, member], score - slack, score + slack


def _take(flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """一维的 `flat[index]`；`index_select` 比下标快一倍。"""
    return flat.index_select(0, index.view(-1)).view(index.shape)


def _gather(tiles: List[torch.Tensor], row: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """各片的得分 (·, T) 里取 (h,) 行 × (h, 16) 编号 → (h, 16)。"""
    out = tiles[0].new_empty(code.shape)
    tile = code[:, 0] // TILE  # 一组的码字在同一片里
    for number in range(len(tiles)):
        own = (tile == number).nonzero()[:, 0]
        out[own] = tiles[number][row[own, None], code[own] - number * TILE]
    return out


def unit_of(book: PreparedCodebook) -> float:
    """一层的定点单位：‖r‖ ≤ 2·max‖c‖ 时得分 |r·c| + ‖c‖²/2 正好放得下；0 表示这一层不宜用定点数。"""
    top = book.top_norm
    return (_REACH + 0.5) * top * top / (_LARGEST - 100) if 1e-12 < top < 1e15 else 0.0


def to_fixed(product: torch.Tensor, book: PreparedCodebook, start: int) -> torch.Tensor:
    """一片内积 (S, T) → 按 2¹⁶ 取模的 int16 定点数；填充与重复的码字是 0。会改写 `product`。"""
    product[:, book.twin[start : start + TILE]] = 0.0
    product = product.mul_(1 / unit_of(book)).round_().clamp_(-(2.0**30), 2.0**30)
    return product.to(torch.int32).to(torch.int16)


def _product(x1: torch.Tensor, part: torch.Tensor, path: str, out: torch.Tensor) -> torch.Tensor:
    """(m, H+1) 与一片码字 (T, H+1) 的乘积写进 `out` (m, T)。"""
    if path == "numpy":
        multiply(np, x1.numpy(), part.numpy().T, out.numpy())
    else:
        torch.mm(x1, part.T, out=out)
    return out


def _upper_norm(x: torch.Tensor) -> torch.Tensor:
    """(…,) float64，‖x‖ 的上界，同 _search_tiles。"""
    return _upper(torch.linalg.vector_norm(x, dim=1), x.shape[1])


def _upper(norm: torch.Tensor, width: int) -> torch.Tensor:
    """算得的 float32 范数 → 真值的上界。"""
    return (norm + width**0.5 * 2.0**-62).double() * (1 + (width + 8) * 2.0**-24)


def _rest(reach: torch.Tensor, error: torch.Tensor, book: PreparedCodebook, bound: Bound) -> torch.Tensor:
    """(m,) 误差界里与码字无关的部分。"""
    _, _, _, eta, tau, drift, _ = bound
    drift += (book.width / 2 + 4) * 2.0**-24
    return eta * reach * reach + drift * error + tau * (1 + reach + book.top_norm)


def _members(group: torch.Tensor, padded: int) -> torch.Tensor:
    """(h,) 组号 → (h, 8) 编号；末片可能不满，组内的间隔随片而变。"""
    start = group * _GROUP // TILE * TILE
    step = (padded - start).clamp(max=TILE) // _GROUP
    member = torch.arange(_GROUP, device=group.device)
    return (group + start - start // _GROUP)[:, None] + member * step[:, None]


def _words(book: PreparedCodebook, code: torch.Tensor) -> torch.Tensor:
    """(m,) 编号 → 码字 (m, H)；整行搬比按列切过的搬快。"""
    return book.table.index_select(0, code)[:, :-1]


def _any(flag: torch.Tensor, row: torch.Tensor, n: int) -> torch.Tensor:
    """(m,) → (n,)：这一行有没有哪条路径如此。"""
    return torch.bincount(row[flag], minlength=n) > 0


def _rank(row: torch.Tensor, n: int) -> torch.Tensor:
    """(m,) 递增的行号 → 各自在行内的名次。"""
    count = torch.bincount(row, minlength=n)
    return torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]


def _brute_force(
    beam: _Beam, row: int, book: PreparedCodebook, beam_size: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """一行的全部路径与全部码字按定义比较，返回各路径的前 M 名：合起来必含前 M 名与贪心的最近码字。"""
    code = (~book.twin).nonzero()[:, 0]  # (K'',)
    out = []
    for path in (beam.row == row).nonzero()[:, 0].tolist():
        x = beam.residual[path]
        far = torch.cat([_error(x, book.table[part, :-1]) for part in code.split(4 * _PAIRS)])
        far, order = torch.sort(far, stable=True)
        best = order[:beam_size]
        out.append((torch.full_like(best, path), code[best], far[: len(best)]))
    path, code, far = (torch.cat(parts) for parts in zip(*out, strict=True))
    return path, code, far


def _keep(
    beam: _Beam,
    book: PreparedCodebook,
    path: torch.Tensor,
    code: torch.Tensor,
    error: torch.Tensor,
    beam_size: int,
    last: bool,
) -> _Beam:
    """候选按（误差，编号字典序）排名，每行留前 `beam_size` 名与贪心，组成下一层的束。"""
    order = torch.argsort(path * len(book.table) + code)  # 互不相同；路径按字典序存放，所以这就是编号字典序
    path, code, error = path[order], code[order], error[order]
    n = int(beam.row[-1]) + 1
    row = beam.row[path]
    order = _lexsort(row, error)  # 稳定：并列的保持字典序
    keep = torch.empty_like(row, dtype=torch.bool)
    keep[order] = _rank(row[order], n) < beam_size
    heir = order[beam.greedy[path[order]]]  # 贪心路径的候选，已按（行，误差，编号）排好
    nearest = heir[_rank(row[heir], n) == 0]  # (n,)
    greedy = torch.zeros_like(keep)
    greedy[nearest] = True
    keep |= greedy
    path, code, error, greedy, row = path[keep], code[keep], error[keep], greedy[keep], row[keep]
    reach, residual, norm = beam.reach[path], beam.residual[:0], error
    if not last:
        reach = reach + book.norm[code].double()
        residual = beam.residual.index_select(0, path)
        for part, word in zip(residual.split(_PAIRS), code.split(_PAIRS), strict=True):
            part -= _words(book, word)
        norm = torch.linalg.vector_norm(residual, dim=1)
        error = norm.double().square()
        norm = _upper(norm, book.width)
    codes = torch.cat([beam.codes[path], code[:, None]], 1)
    return _Beam(row, codes, beam.slots[path], reach, residual, norm, error, greedy)


def _error(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """定义里的距离；残差溢出时的 NaN 当作 inf，排序才有定义。"""
    return torch.nan_to_num(distance(x, c), nan=torch.inf, posinf=torch.inf)


def _lexsort(row: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """按（行，误差）排序的下标，稳定。"""
    order = torch.sort(error, stable=True).indices
    return order[torch.sort(row[order], stable=True).indices]
