"""束搜索后备路径的得分：查表的定点数（`Fixed`）与直接乘的 float32（`Direct`）；只提名，从不裁决。

两种得分同一副门面：`order` 是打分的次序，`lower` 给门槛，`hits` 与 `members` 给够得着门槛的候选。有表的层，z 与码本只乘
一次，得分与内积表都是 int16：每条路径减去自己的表行，一个得分只搬两三个字节。定点数按 2¹⁶ 取模，z·c 与 q·c 各自绕回几
圈都无妨，只要最后的得分落在范围里；落不进范围的行归 `Direct`。误差界见 `beam.py`。

时间几乎全是内存：一条路径的每个得分要读两行表、写两遍缓冲区、再读三遍，所以一段路径的缓冲区要留在 L2 里，
而算子的次数也要少（每个都从冷的指令缓存开始）。

形状字母：n 一块行数，m 一块行的路径数（平铺），e 每行都有的路径数，M 束宽，T 一片码字数，S 此前各层码字数之和，
G = K'/16 组数，J 粗组数，h 够得着界的（路径，组）数。
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
import torch

from .prepared import PreparedCodebook
from .products import multiply

__all__ = ["TILE", "Beam", "Bound", "Direct", "Fixed", "Found", "Scratch"]
__all__ += ["any_path", "new_table", "rank_in_row", "to_fixed", "unit_of", "upper"]

_GROUP = 16  # K' 是它的倍数；一片里相隔 T/16 的十六个码字一组，组内取最大因此是长条的逐元素比较
TILE = 2048  # T；内积表也按它分片，一片连续存放
_CHUNK = {"cpu": 64, "cuda": 1 << 30}  # 一次减多少条路径的表：两个缓冲区共 512 KB，留在 L2 里
_STRIP = {"cpu": 128, "cuda": 1 << 30}  # 一次换算多少行的得分
_FEW = 32  # 门槛在多少倍 M 个下界里挑
_LARGEST, _LOWEST = 32700, -32768  # 定点得分的范围；填充与重复的码字恒为后者
_LEAST = torch.finfo(torch.float32).min  # 有限：填充的得分 −inf 永远够不着
_REACH = 2.0  # 定点数的范围按 ‖r‖ ≤ 2·max‖c‖ 取：再大，精度白白浪费

Bound = Tuple[float, ...]
Found = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # 候选的（路径，编号，−D/2 的下界，上界）


class Scratch:
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


class Beam(NamedTuple):
    """一块行当前的路径，同一行的相邻，行内按编号字典序排列。"""

    row: torch.Tensor  # (m,) 第几行，递增
    codes: torch.Tensor  # (m, l)
    slots: torch.Tensor  # (m, l) 在内积表里的行号：此前各层码字数之和 + 编号
    reach: torch.Tensor  # (m,) float64 Σ‖q‖ 的上界
    residual: torch.Tensor  # (m, H)
    norm: torch.Tensor  # (m,) float64 ‖r‖ 的上界
    error: torch.Tensor  # (m,) float64 ‖r‖² 的近似；最后一层之后是定义里的误差
    greedy: torch.Tensor  # (m,) bool 贪心路径，每行恰好一条


class _Scores:
    """两种得分共有的部分。

    Attributes:
        order: (m,) 打分的次序，即第几条路径；以下凡 (m,) 都按它排。
        first: (n, e) 各行的前 e 条路径在这个次序里的位置。
        row: (m,) 第几行；`greedy` (m,) bool 是不是贪心路径。
    """

    def __init__(self, beam: Beam, n: int, book: PreparedCodebook, height: int) -> None:
        self.first, self.order = _arrange(beam.row, n, height)
        self.row, self.greedy = beam.row[self.order], beam.greedy[self.order]
        self._book, self._norm, self._error = book, beam.norm[self.order], beam.error[self.order]
        self._half = 0.5 * self._error


class Direct(_Scores):
    """残差直接与码本相乘的得分 r·c − ‖c‖²/2，float32；误差界用各码字自己的范数，W = ‖r‖。"""

    def __init__(self, beam: Beam, n: int, book: PreparedCodebook, bound: Bound, scratch: Scratch) -> None:
        super().__init__(beam, n, book, n)
        self._slope, self._curve = bound[1], bound[2]
        self._rest = _rest(self._norm, self._error, book, bound)
        residual, height = beam.residual[self.order], len(book.table)
        x1 = torch.cat([residual, residual.new_ones(len(residual), 1)], 1)
        self._scores, best = scratch.take("product", x1, x1.dtype, len(x1) * height), []
        for start in range(0, height, TILE):
            part = book.table[start : start + TILE]
            scores = self._scores[len(x1) * start :][: len(x1) * len(part)].view(len(x1), -1)
            best.append(_product(x1, part, book.path, scores).unflatten(1, (_GROUP, -1)).amax(1))
        self._best = torch.cat(best, 1)  # (m, G)
        wide = torch.cat([part.view(_GROUP, -1).amax(0) for part in book.norm.split(TILE)])  # (G,)
        terms = self._curve * wide * wide + self._rest[:, None]
        self._slack = torch.outer(self._norm.float(), self._slope * wide) + terms

    def lower(self, beam_size: int) -> torch.Tensor:
        """(m, G) float64，各是不同候选的 −D/2 的下界。"""
        return (self._best - self._slack) - self._half[:, None]

    def hits(self, bar: torch.Tensor) -> torch.Tensor:
        """(m, G) bool：哪些组可能够得着门槛 `bar` (m,)。"""
        return self._best >= (bar + self._half).clamp(min=_LEAST)[:, None] - self._slack

    def members(self, path: torch.Tensor, group: torch.Tensor, bar: torch.Tensor) -> Found:
        """够得着的组 (h,) 里够得着的码字。"""
        lanes = TILE // _GROUP
        start, width, inside = _inside(group // lanes, group % lanes, len(self._book.table))
        code = start + inside  # (h, 16)
        own = self._book.norm[code].double()
        slack = own * (self._slope * self._norm[path, None] + self._curve * own) + self._rest[path, None]
        value = _take(self._scores, start * len(self.row) + path[:, None] * width + inside).double()
        reached = value + slack >= (bar + self._half).clamp(min=_LEAST)[path, None]
        pair, member = reached.nonzero(as_tuple=True)
        path, slack = path[pair], slack[pair, member]
        value = value[pair, member] - self._half[path]
        return path, code[pair, member], value - slack, value + slack


class Fixed(_Scores):
    """查表的得分 z·c − ‖c‖²/2 − Σ q·c，int16 定点数，单位 `unit_of(book)`；误差界用全层最大的范数。

    Attributes:
        rest: (n,) bool，有路径的得分连同误差落不进定点数范围的行。
    """

    def __init__(
        self, beam: Beam, z: torch.Tensor, book: PreparedCodebook, table: torch.Tensor, bound: Bound, scratch: Scratch
    ) -> None:
        # 一段路径有这么多行：先是各行的第一条，再是各行的第二条……减的是同一段连续的得分
        self._height = min(len(z), max(1, _CHUNK.get(z.device.type, 64) * len(z) // len(beam.row)))
        super().__init__(beam, len(z), book, self._height)
        self._table, self._slots = table, beam.slots[self.order]
        self._unit, top, norm = unit_of(book), book.top_norm, self._norm
        z_norm = upper(torch.linalg.vector_norm(z, dim=1), book.width)  # (n,)
        reach = (z_norm[self.row] + beam.reach[self.order]) * (1 + 2.0**-40)  # (m,) W
        slack = _rest(reach, self._error, book, bound) + top * (bound[1] * reach + bound[2] * top)
        self._slack = slack + (0.5 * beam.slots.shape[1] + 1) * self._unit  # 各个 q·c 四舍五入，z·c 截去尾数
        most = torch.maximum(norm * top + 0.5 * top * top, 0.5 * norm * norm) + self._slack
        # 取整之前的 z·c 与 q·c 要放得进 int32，才谈得上取模
        fits = (most <= _LARGEST * self._unit) & ((reach + top) * top <= 2.0**30 * self._unit)
        self.rest = any_path(~fits, self.row, len(z))
        z = torch.where(self.rest[:, None], 0.0, z)
        narrow = (1 + 2 * bound[1]) * (z_norm + 0.5 * top) * top <= _LARGEST * self._unit
        self._multiply(z, bool((narrow | self.rest).all()), scratch)
        self._subtract(scratch)

    def _multiply(self, z: torch.Tensor, narrow: bool, scratch: Scratch) -> None:
        """z·c − ‖c‖²/2 的定点数，一片一片存放；`narrow`：都放得进 int16，不必取模。"""
        n, table = len(z), self._book.table
        x1 = torch.cat([z, z.new_ones(n, 1)], 1).div_(self._unit)  # 先除：不必再走一遍得分
        width, strip = min(TILE, len(table)), min(n, _STRIP.get(z.device.type, 128))
        plain = scratch.take("product", x1, x1.dtype, n * width)
        whole = scratch.take("whole", x1, torch.int32, strip * width)
        self._scores = scratch.take("fixed", x1, torch.int16, n * len(table))
        dead = self._book.twin.nonzero()[:, 0]
        self._has_dead = len(dead) > 0
        edges = torch.searchsorted(dead, torch.arange(0, len(table) + TILE, TILE, device=z.device)).tolist()
        for number, start in enumerate(range(0, len(table), TILE)):
            part = table[start : start + TILE]
            scores = _product(x1, part, self._book.path, plain[: n * len(part)].view(n, -1))
            product = self._scores[n * start :][: n * len(part)].view(n, -1)
            own = dead[edges[number] : edges[number + 1]] - start
            for some, target in zip(scores.split(strip), product.split(strip), strict=True):
                # int32 → int16 就是取模；float32 → int16 只在放得下时有定义
                target.copy_(some if narrow else whole[: some.numel()].view(some.shape).copy_(some))
                if len(own):
                    target.index_fill_(1, own, _LOWEST)

    def _subtract(self, scratch: Scratch) -> None:
        """各路径减去自己的表行，取组内最大与粗组最大。"""
        m, (n, each), height, like = len(self.row), self.first.shape, len(self._book.table), self._scores
        size, width = self._table.numel() // height, min(TILE, height)  # S
        self._groups = scratch.take("groups", like, torch.int16, -(-height // TILE), m, width // _GROUP)
        chunk = max(self._height * each, min(m - n * each, _CHUNK.get(like.device.type, 64)))
        buffers = scratch.take("chunk", like, torch.int16, 2, chunk * width)
        parts: List[Tuple[Any, ...]] = []
        for number, start in enumerate(range(0, height, TILE)):
            count = min(TILE, height - start)
            best, product = self._groups[number], like[n * start :][: n * count].view(n, count)
            if not parts or count < width:  # 末片可能窄一些，缓冲区要另行切分
                parts = self._plan(chunk, buffers[:, : chunk * count].view(2, chunk, count))
                best[:, count // _GROUP :] = _LOWEST
            piece = self._table[start * size : (start + count) * size].view(size, count)  # (S, T)
            for place, row, slots, value, words, shaped in parts:
                torch.index_select(piece, 0, slots[0], out=value)
                for slot in slots[1:]:
                    value += torch.index_select(piece, 0, slot, out=words)
                if isinstance(row, slice):
                    torch.sub(product[row], shaped, out=shaped)
                else:
                    torch.sub(torch.index_select(product, 0, row, out=words), value, out=value)
                torch.amax(value.unflatten(1, (_GROUP, -1)), 1, out=best[place, : count // _GROUP])
        self._coarse = self._groups.amax(0)  # (m, J)

    def _plan(self, chunk: int, buffers: torch.Tensor) -> List[Tuple[Any, ...]]:
        """每段路径的（位置，行号，各层槽位，得分缓冲区，表行缓冲区，前者按行的视图）；每片都用，所以只切一次。"""
        (n, each), slots = self.first.shape, self._slots.T.contiguous()
        rows = [slice(start, min(start + self._height, n)) for start in range(0, n, self._height)]
        out: List[Tuple[Any, ...]] = []
        for row in rows:
            place = slice(row.start * each, row.stop * each)
            value, words = buffers[:, : place.stop - place.start].unbind(0)
            out.append((place, row, slots[:, place].unbind(0), value, words, value.view(each, -1, value.shape[1])))
        for begin in range(n * each, len(self.row), chunk):
            place = slice(begin, min(begin + chunk, len(self.row)))
            value, words = buffers[:, : place.stop - begin].unbind(0)
            out.append((place, self.row[place], slots[:, place].unbind(0), value, words, value))
        return out

    def lower(self, beam_size: int) -> torch.Tensor:
        """(m, ·) float64，各是不同候选的 −D/2 的下界。"""
        lanes = self._coarse.shape[1]
        fold = 4 if lanes % 4 == 0 and self.first.shape[1] * lanes >= 4 * _FEW * beam_size else 1
        few = self._coarse.unflatten(1, (fold, -1)).amax(1)
        lower = few.double() * self._unit - (self._half + self._slack)[:, None]
        # 全是填充或重复码字的组里没有候选；不去掉的话，近的路径的空组会比远的路径的真候选还高，把它挤掉
        return lower.masked_fill_(few == _LOWEST, -torch.inf) if self._has_dead else lower

    def hits(self, bar: torch.Tensor) -> torch.Tensor:
        """(m, J) bool：哪些粗组可能够得着门槛 `bar` (m,)。"""
        return self._coarse >= self._limit(bar)[:, None]

    def _limit(self, bar: torch.Tensor) -> torch.Tensor:
        """(m,) int16 门槛；向下取整，只会偏低。"""
        limit = torch.where(bar < torch.inf, (bar + self._half - self._slack) / self._unit, torch.inf).floor()
        return limit.clamp(_LOWEST + 1, 32767).to(torch.int16)  # 填充的码字永远够不着前者，谁也够不着后者

    def members(self, path: torch.Tensor, group: torch.Tensor, bar: torch.Tensor) -> Found:
        """够得着的粗组 (h,) → 其中够得着的组 → 够得着的码字。"""
        limit, height, n = self._limit(bar), len(self._book.table), len(self.first)
        tiles, m, lanes = self._groups.shape
        at = path * lanes + group + torch.arange(tiles, device=path.device)[:, None] * (m * lanes)  # (片数, h)
        tile, some = (_take(self._groups.view(-1), at) >= limit[path]).nonzero(as_tuple=True)
        path = path[some]
        start, width, inside = _inside(tile, group[some], height)
        value = _take(self._scores, start * n + self.row[path, None] * width + inside)  # (h', 16)
        size = self._table.numel() // height
        for slot in self._slots[path].unbind(1):
            value -= _take(self._table, start * size + slot[:, None] * width + inside)
        pair, member = (value >= limit[path, None]).nonzero(as_tuple=True)
        path, score = path[pair], value[pair, member].double() * self._unit
        score, slack = score - self._half[path], self._slack[path]
        return path, (start + inside)[pair, member], score - slack, score + slack


def unit_of(book: PreparedCodebook) -> float:
    """一层的定点单位：‖r‖ ≤ 2·max‖c‖ 时得分 |r·c| + ‖c‖²/2 正好放得下；0 表示这一层不宜用定点数。"""
    top = book.top_norm
    return (_REACH + 0.5) * top * top / (_LARGEST - 100) if 1e-12 < top < 1e15 else 0.0


def new_table(like: torch.Tensor, count: int) -> torch.Tensor:
    """内积表的 (count,) int16；在 CPU 上由 NumPy 申请，它向内核要 2 MB 的页：随机取行少查页表。"""
    if like.device.type == "cpu":
        return torch.from_numpy(np.empty(count, dtype=np.int16))
    return like.new_empty(count, dtype=torch.int16)


def to_fixed(product: torch.Tensor, book: PreparedCodebook, start: int) -> torch.Tensor:
    """一片内积 (S, T) → 按 2¹⁶ 取模的 int16 定点数；填充与重复的码字是 0。会改写 `product`。"""
    product[:, book.twin[start : start + TILE]] = 0.0
    product = product.mul_(1 / unit_of(book)).round_().clamp_(-(2.0**30), 2.0**30)
    return product.to(torch.int32).to(torch.int16)


def upper(norm: torch.Tensor, width: int) -> torch.Tensor:
    """float32 算得的范数 → (·,) float64，真值的上界，同 tiles.py。"""
    return (norm + width**0.5 * 2.0**-62).double() * (1 + (width + 8) * 2.0**-24)


def any_path(flag: torch.Tensor, row: torch.Tensor, n: int) -> torch.Tensor:
    """(m,) → (n,)：这一行有没有哪条路径如此。"""
    return torch.bincount(row[flag], minlength=n) > 0


def rank_in_row(row: torch.Tensor, n: int) -> torch.Tensor:
    """(m,) 递增的行号 → 各自在行内的名次。"""
    count = torch.bincount(row, minlength=n)
    return torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]


def _arrange(row: torch.Tensor, n: int, height: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """打分的次序 (m,)，与各行的前 e 条路径在其中的位置 (n, e)。

    每 `height` 行一段，段内先是各行的第一条，再是各行的第二条；一行多出来的（束之外的贪心路径）排在最后。
    """
    rank = rank_in_row(row, n)
    each = int(torch.bincount(row, minlength=n).min())
    first = (rank < each).nonzero().view(n, each)
    order = torch.cat([*(part.T.reshape(-1) for part in first.split(height)), (rank >= each).nonzero()[:, 0]])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place[first], order


def _rest(reach: torch.Tensor, error: torch.Tensor, book: PreparedCodebook, bound: Bound) -> torch.Tensor:
    """(m,) 误差界里与码字无关的部分；E 由 float32 的范数平方而来，差 (H/2 + 4)u。"""
    _, _, _, eta, tau, drift, _ = bound
    drift += (book.width / 2 + 4) * 2.0**-24
    return eta * reach * reach + drift * error + tau * (1 + reach + book.top_norm)


def _product(x1: torch.Tensor, part: torch.Tensor, path: str, out: torch.Tensor) -> torch.Tensor:
    """(m, H+1) 与一片码字 (T, H+1) 的乘积写进 `out` (m, T)。"""
    if path == "numpy":
        multiply(np, x1.numpy(), part.numpy().T, out.numpy())
    else:
        torch.mm(x1, part.T, out=out)
    return out


def _inside(tile: torch.Tensor, group: torch.Tensor, padded: int) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(h,) 第几片、片内第几组 → (h, 1) 片的起点与宽度，(h, 16) 片内编号；末片可能不满，组内的间隔随片而变。"""
    start = tile[:, None] * TILE
    width = (padded - start).clamp(max=TILE)
    return start, width, group[:, None] + torch.arange(_GROUP, device=group.device) * (width // _GROUP)


def _take(flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """一维的 `flat[index]`；`index_select` 比下标快一倍。"""
    return flat.index_select(0, index.view(-1)).view(index.shape)
