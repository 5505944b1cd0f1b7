"""束搜索的后备路径（NumPy 片与 torch 片），与编译路径同一定义、逐位相同的结果。

一层三步：`beam_scores.py` 的得分提名，得分分不清的按 float64 的定义裁决，留下前 M 名与贪心路径。有表的层用定点数的
得分；没有表的层、定点数装不下或分不清的行，残差直接与码本相乘；那样还分不清的行才与全部码字比。最后一层的误差要交出
去，候选全部裁决；此前各层只裁决得分的界分不清去留的行，大多数行因此不必裁决。定义与误差界见 `beam.py`。

形状字母：n 一块行数，m 一块行的路径数（平铺，同一行的相邻），e 每行都有的路径数，M 束宽，k 候选数，J 组数，h 够得着
界的（路径，组）数。
"""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np
import torch

from .beam_scores import Beam, Bound, Direct, Fixed, Found, Scratch, any_path, rank_in_row, upper
from .definition import distance
from .prepared import PreparedCodebook
from .products import full_precision

__all__ = ["search"]

_PAIRS = 512  # 一次裁决多少对：float64 的中间量不出 L2
_PATHS = {"cpu": 8192, "cuda": 16384}  # 一块约多少条路径
_FIXED = {"cpu": 4096, "cuda": 16384}  # 其中一次查表打分的：z·c 的定点数一行就有 2K 字节
_SCORES = {"cpu": 1 << 23, "cuda": 1 << 27}  # 没有表时一次留多少个 float32 得分


def search(
    z: torch.Tensor,
    books: Sequence[PreparedCodebook],
    tables: Sequence[torch.Tensor | None],
    bound: Bound,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """`z` (B, H) 的路径与误差写进 `codes` (B, M, L) 与 `errors` (B, M)，按块进行。"""
    step, scratch = max(1, _PATHS.get(z.device.type, 1024) // codes.shape[1]), Scratch()
    quiet = np.errstate(over="ignore", invalid="ignore")  # 大到溢出的行另按定义比较，不必警告
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False), full_precision(z.device), quiet:
        for start in range(0, z.shape[0], step):
            part = z[start : start + step]
            row = torch.arange(part.shape[0], device=z.device)
            none, zero = row.new_zeros(len(row), 0), part.new_zeros(len(row), dtype=torch.float64)
            norm = upper(torch.linalg.vector_norm(part, dim=1), z.shape[1])
            beam = Beam(row, none, none, zero, part, norm, zero, row >= 0)
            first = 0
            for level, (book, table) in enumerate(zip(books, tables, strict=True)):
                last = level + 1 == len(books)
                beam = _extend(beam, part, book, table, bound, codes.shape[1], scratch, last)
                beam = beam._replace(slots=torch.cat([beam.slots, beam.codes[:, -1:] + first], 1))
                first += book.size
            _write(beam, codes[start : start + step], errors[start : start + step])


def _write(beam: Beam, codes: torch.Tensor, errors: torch.Tensor) -> None:
    """按误差排序（稳定，所以并列的保持字典序）后写出；贪心路径是多带的那一条时，它顶替最后一名。"""
    order = _lexsort(beam.row, beam.error)
    row = beam.row[order]
    rank = rank_in_row(row, len(codes)).clamp(max=codes.shape[1] - 1)
    # 多带的贪心路径是它那一行的最后一条；名次压到末位，与原来的末位同格，顺序写就留下它
    last = torch.ones_like(row, dtype=torch.bool)
    last[:-1] = (row[1:] != row[:-1]) | (rank[1:] != rank[:-1])
    row, rank, order = row[last], rank[last], order[last]
    codes[row, rank] = beam.codes[order]
    errors[row, rank] = beam.error[order]


def _extend(
    beam: Beam,
    z: torch.Tensor,
    book: PreparedCodebook,
    table: torch.Tensor | None,
    bound: Bound,
    beam_size: int,
    scratch: Scratch,
    last: bool,
) -> Beam:
    """接上一层：提名，裁决，留下前 `beam_size` 名与贪心路径。"""
    n = len(z)
    rest = torch.ones(n, dtype=torch.bool, device=z.device)  # (n,) 还没有候选的行
    # (n,) 得分会溢出的行
    lost = any_path(~(beam.norm <= bound[0]), beam.row, n) if book.top_norm <= bound[0] else rest.clone()
    found = [(beam.row[:0], beam.row[:0], beam.error[:0], beam.error[:0])]
    if table is not None:
        step = max(1, _FIXED.get(z.device.type, 4096) // beam_size)
        for some in (slice(start, min(start + step, n)) for start in range(0, n, step)):
            begin, sub = _rows(beam, some)
            fixed = Fixed(sub, z[some], book, table, bound, scratch)
            (path, code, low, high), crowded = _nominate(fixed, ~(fixed.rest | lost[some]), beam_size)
            found.append((path + begin, code, low, high))
            rest[some] = fixed.rest | crowded
    rows = (rest & ~lost).nonzero()[:, 0]
    most = max(1, _SCORES.get(z.device.type, 1 << 23) // len(book.table) * n // len(beam.row))
    for part in rows.split(most) if len(rows) else ():
        mask = torch.zeros_like(rest)
        mask[part] = True
        ids = mask[beam.row].nonzero()[:, 0]
        sub = Beam(*(field[ids] for field in beam))
        sub = sub._replace(row=(mask.cumsum(0) - 1)[sub.row])
        direct = Direct(sub, len(part), book, bound, scratch)
        (path, code, low, high), crowded = _nominate(direct, mask[part], beam_size)
        found.append((ids[path], code, low, high))
        lost[part] |= crowded
    path, code, low, high = (torch.cat(parts) for parts in zip(*found, strict=True))
    error = _settle(beam, n, book, (path, code, low, high), beam_size, last)
    for row in lost.nonzero()[:, 0].tolist():
        full = _brute_force(beam, row, book, beam_size)
        path, code, error = (torch.cat(pair) for pair in zip((path, code, error), full, strict=True))
    return _keep(beam, book, path, code, error, beam_size, last)


def _rows(beam: Beam, rows: slice) -> Tuple[int, Beam]:
    """几行连续的束，行号从 0 起，与它的第一条路径在原来的束里的下标。"""
    edges = torch.tensor([rows.start, rows.stop], device=beam.row.device)
    begin, end = torch.searchsorted(beam.row, edges).tolist()
    part = Beam(*(field[begin:end] for field in beam))
    return begin, part._replace(row=part.row - rows.start)


def _settle(beam: Beam, n: int, book: PreparedCodebook, found: Found, beam_size: int, last: bool) -> torch.Tensor:
    """(k,) 排名的依据：最后一层、以及得分的界分不清去留的行，是定义里的误差；其余的行是 −得分下界。"""
    path, code, low, high = found
    if last:
        error, some = torch.empty_like(low), torch.arange(len(path), device=path.device)
    else:
        error, some = -low, _unsure(beam, n, path, low, high, beam_size)[beam.row[path]].nonzero()[:, 0]
    for part in some.split(_PAIRS):
        x = beam.residual.index_select(0, path[part])
        error[part] = _error(x, _words(book, code[part]))
    return error


def _nominate(scorer: Fixed | Direct, rows: torch.Tensor, beam_size: int) -> Tuple[Found, torch.Tensor]:
    """`rows` (n,) 标出的行的候选，以及其中候选太多、这种得分分不清的行 (n,)。"""
    n, row = len(rows), scorer.row
    lower = scorer.lower(beam_size)  # (m, J) float64，各是不同候选的得分下界
    first = lower[scorer.first].view(n, -1)
    if first.shape[1] < beam_size:
        bar = first.new_full((n,), -torch.inf)
    else:
        bar = first.topk(beam_size, dim=1).values[:, -1]  # (n,) 各行前 e 条路径的候选里第 M 大的下界
    bar = torch.where(rows, bar, torch.inf)[row]  # (m,)
    # 贪心路径还要留住它自己最近的码字
    bar = torch.where(scorer.greedy & rows[row], torch.minimum(bar, lower.amax(1)), bar)
    hit = scorer.hits(bar)  # (m, J)
    crowded = torch.zeros_like(rows)
    if torch.count_nonzero(hit) > 2 * beam_size * n:  # 平均多出许多，才逐行查看是谁的候选过多：候选的总量因此有界
        crowded = row.new_zeros(n).index_add_(0, row, hit.sum(1)) > 8 * beam_size + 64
        hit &= ~crowded[row][:, None]
    flat = hit.view(-1).nonzero()[:, 0]  # (h,)；一维的查找比二维快得多
    path = flat // hit.shape[1]
    path, code, low, high = scorer.members(path, flat - path * hit.shape[1], bar)
    crowded |= torch.bincount(row[path], minlength=n) > 8 * beam_size + 64
    keep = (~crowded[row[path]]).nonzero()[:, 0]
    return (scorer.order[path[keep]], code[keep], low[keep], high[keep]), crowded


def _unsure(
    beam: Beam, n: int, path: torch.Tensor, low: torch.Tensor, high: torch.Tensor, beam_size: int
) -> torch.Tensor:
    """(n,)：得分的界分不清哪些候选进前 M 名、或哪个是贪心的行。其余的行按得分下界排名，与按误差排名留下同样的路径。"""
    row, own = beam.row[path], beam.greedy[path].nonzero()[:, 0]
    order = _lexsort(row, -low)
    order = order[rank_in_row(row[order], n) == beam_size - 1]
    bar = low.new_full((n,), -torch.inf)
    bar[row[order]] = low[order]
    best = torch.full_like(bar, -torch.inf).scatter_reduce(0, row[own], low[own], "amax")
    own = own[high[own] >= best[row[own]]]
    alive = torch.bincount(row[high >= bar[row]], minlength=n)
    return (alive > beam_size) | (torch.bincount(row[own], minlength=n) > 1)


def _words(book: PreparedCodebook, code: torch.Tensor) -> torch.Tensor:
    """(m,) 编号 → 码字 (m, H)；整行搬比按列切过的搬快。"""
    return book.table.index_select(0, code)[:, :-1]


def _brute_force(
    beam: Beam, row: int, book: PreparedCodebook, beam_size: int
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
    beam: Beam,
    book: PreparedCodebook,
    path: torch.Tensor,
    code: torch.Tensor,
    error: torch.Tensor,
    beam_size: int,
    last: bool,
) -> Beam:
    """候选按（误差，编号字典序）排名，每行留前 `beam_size` 名与贪心，组成下一层的束。"""
    order = torch.argsort(path * len(book.table) + code)  # 互不相同；路径按字典序存放，所以这就是编号字典序
    path, code, error = path[order], code[order], error[order]
    n = int(beam.row[-1]) + 1
    row = beam.row[path]
    order = _lexsort(row, error)  # 稳定：并列的保持字典序
    keep = torch.empty_like(row, dtype=torch.bool)
    keep[order] = rank_in_row(row[order], n) < beam_size
    heir = order[beam.greedy[path[order]]]  # 贪心路径的候选，已按（行，误差，编号）排好
    nearest = heir[rank_in_row(row[heir], n) == 0]  # (n,)
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
        norm = upper(norm, book.width)
    codes = torch.cat([beam.codes[path], code[:, None]], 1)
    return Beam(row, codes, beam.slots[path], reach, residual, norm, error, greedy)


def _error(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """定义里的距离；残差溢出时的 NaN 当作 inf，排序才有定义。"""
    return torch.nan_to_num(distance(x, c), nan=torch.inf, posinf=torch.inf)


def _lexsort(row: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """按（行，误差）排序的下标，稳定。"""
    order = torch.sort(error, stable=True).indices
    return order[torch.sort(row[order], stable=True).indices]
