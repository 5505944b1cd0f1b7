"""束搜索：每层保留若干条路径，而不是只留最近的一个码字；贪心是宽度为 1 的特例。

定义（一行的答案只由这一行与模型决定）：
    路径是逐层的编号 (q_1, …, q_l)，残差 r_1 = z、r_{j+1} = r_j − c_j 在 float32 里逐层相减；它的误差是 definition.py 的
    float64 距离 D(r_l, c_l)，16 路、次序写死。从空路径开始，每层把每条路径接上该层的每个码字，按（误差，编号字典序）
    留下最小的 beam_size 条；另外**总是**带着贪心路径（每层都取最近码字的那一条），挤不进前 beam_size 名也带着。
    答案是最后一层（误差，编号字典序）最小的一条。因此任何一行的误差都不大于贪心；beam_size = 1 就是贪心。
    重复的码字只有编号最低的参与，与 `nearest.nearest` 相同：它们代表同一个向量，不该占满整个束。

快的算法：路径的得分 s = −D/2 = r·c − ‖c‖²/2 − ‖r‖²/2，而 r = z − Σ q_j，所以 r·c = z·c − Σ_j q_j·c。z·c 每行只算一次，
与路径无关；q_j·c 只取决于两个编号，预先算成内积表。于是多一条路径只多几次查表，而不是多一遍乘积。
表放不下的层退回逐路径直接乘（那一层的代价约为 beam_size 倍）。float32 的得分 ŝ 只提名，界内的候选全部按定义裁决。

误差界：u = 2⁻²⁴，m = H + 8 + 4L，γ = m·u/(1 − m·u)，W = ‖z‖ + Σ_j‖q_j‖（直接乘时 W = ‖r‖），E 是路径当前的误差，
    |ŝ − s| ≤ γW‖c‖ + 0.6γ‖c‖² + ηW² + 8uE + τ(1 + W + max‖c‖)
- z·c 与各个 q_j·c 各自不超过 γ_{H+1}·‖·‖‖c‖（任何求和次序），合起来是 W；减表至多 L − 1 次，每次舍入 u(W‖c‖ + ‖c‖²/2)；
- r 是逐层舍入的减法，‖r − (z − Σ q_j)‖ ≤ u·Σ‖r_j‖ ≤ (L − 1)·u·W(1 + …)，又给 W‖c‖ 添 (L − 1)u：这些都在 4L 项里；
- 0.6γ‖c‖² 同 definition.py；‖r‖² 用 E 代替，二者相差每个元素一次舍入，即 2uE，8uE 里其余留给后备路径的 float32 比较；
  后备路径的 E 由残差的 float32 范数平方而来（下溢在 τ 里），再添 (H/2 + 4)uE；
- 编译路径的表是定点数，单位 ‖q‖·max‖c‖/32766（在同一面板里取 max）：添 (1.05·2⁻¹⁶ + 2Lu)·Σ‖q‖·max‖c‖，含换算的舍入；
- 后备路径的表与 z·c 都是定点数，全层一个单位 v = 2.5·max‖c‖²/32600：z·c 截去尾数、至多 L − 1 个 q·c 四舍五入，添
  (L + 1)·v/2；换算的乘除各舍入一两次，占减表那一项（定点数相减没有舍入）；W 与码字的范数都取上界。只用于 |s| 与误差合
  起来放得进 ±32700·v 的路径，即大致 ‖r‖ ≤ 2·max‖c‖，否则那一行直接乘；
- 低精度的提名再添各自的舍入误差，见 `kernel/int16.h` 与 `kernel/amx.h`；
- η = (H + 16)·2⁻⁵³ 覆盖 float64 定义的舍入，τ = (L + 1)·m·2⁻¹²⁴ 覆盖下溢，同 definition.py。

内存：编译路径一块行几 MB，后备路径六七十 MB。默认规模（1024/4096/16384）的内积表是 8 + 160 MiB。`max_bytes` 是上限，
从低层往高层、放得下的层才建。束宽 4、256 维：编译路径全部建好约为贪心的 1.5 倍时间（float32）到
1.9 倍（int16），一张也不建约为 3.9 倍；AMX 从不建表。后备路径建好约为它自己的贪心的 1.6–2.3 倍。

形状字母：B 行数，H 宽度，L 层数，K 码字数，M 束宽，P = K'/32 面板数，S 本层之前各层码字数之和。
"""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

import torch

from . import beam_scores, beam_tiles, native
from .definition import distance
from .prepared import PreparedCodebook, untraced
from .products import full_precision

__all__ = ["InnerProducts", "all_nearest", "distance", "search"]

_PANEL = 32
_LIMIT = 1e18
_LARGEST, _TINY = 32766.0, 1e-37  # 定点数的最大值、单位的下限，与 kernel/beam_block.h 一致


class InnerProducts:
    """各层码字与此前各层码字的内积。

    Attributes:
        tables: L 个一维 int16 张量（S·K' 个定点数）或 None，按片存放：编译路径一片 32 个码字（一个面板），即
            (P, S, 32)；后备路径一片 2048 个。片在最外：算一片码字时只碰表里连续的一段，整块行轮流用它。
    """

    def __init__(self, books: Sequence[PreparedCodebook]) -> None:
        self._books = [(book, book.revision) for book in books]
        self._rows = 0
        self.tables: List[torch.Tensor | None] = [None] * len(books)

    @untraced
    def is_current(self, books: Sequence[PreparedCodebook]) -> bool:
        """这些码本是否还是建表时的那些，没有重新整理过。"""
        return len(books) == len(self._books) and all(
            book is known and book.revision == revision
            for book, (known, revision) in zip(books, self._books, strict=True)
        )

    @untraced
    @torch.no_grad()
    def grow_(self, weights: Sequence[torch.Tensor], rows: int, beam_size: int, max_bytes: int) -> None:
        """又要编码 `rows` 行：值得的层建表，超出上限的层丢表。

        建一层的表要 S·K·H 次乘加，直接乘每行多做 (beam_size − 1)·K·H 次，所以码本不变的这段时间里编码满
        S/(beam_size − 1) 行才回本。训练时码本步步都在变，小批自然就不建。

        Args:
            weights: L 个 (K, H) float32。
            rows: 接下来要编码的行数。
            beam_size: 束宽。
            max_bytes: 全部表的字节数上限。
        """
        self._rows += rows
        before, isa = 0, self._books[0][0].isa  # S
        for level, (book, _) in enumerate(self._books):
            size = 2 * before * book.twin.shape[0]
            useless = isa is not None and math.isinf(isa.packing.table_rows)
            if level == 0 or useless or size > max_bytes or not (isa or beam_scores.unit_of(book)):
                self.tables[level] = None
            else:
                max_bytes -= size
                if self.tables[level] is None and self._rows * (beam_size - 1) >= before:
                    self.tables[level] = _table(weights, [known for known, _ in self._books], level)
            before += book.size


@untraced
def search(
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    books: Sequence[PreparedCodebook],
    beam_size: int,
    products: InnerProducts | None = None,
    *,
    num_threads: int | None = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """每行最好的 `beam_size` 条路径，定义见文件开头；最后一层若贪心路径不在其中，它顶替最后一名。

    Args:
        z: (B, H) float32，B ≥ 0；假定有限且 |z| ≤ 1e15。
        weights: L 个 (K_l, H) float32 码本，与 `books` 一致。
        books: L 个 `prepared.prepare` 的结果。
        beam_size: M ≥ 1。
        products: 内积表；None 或缺表的层逐路径直接乘，答案相同。
        num_threads: 编译路径用几个线程，默认 `torch.get_num_threads()`；结果与它无关。

    Returns:
        (B, M, L) int64 与 (B, M) float64：路径与误差 ‖z − Σ q‖²，按（误差，编号字典序）递增，互不相同；
        可走的路径不足 M 条时，余下的编号是 −1、误差是 inf。
    """
    z = z.detach().float().contiguous()
    count, levels = z.shape[0], len(books)
    codes = torch.full((count, beam_size, levels), -1, dtype=torch.int64, device=z.device)
    errors = torch.full((count, beam_size), torch.inf, dtype=torch.float64, device=z.device)
    if len({book.path for book in books}) != 1:
        raise RuntimeError("codebooks were prepared for different search paths; prepare them again")
    bound = _bound(z.shape[1], levels)
    few = books[0].isa is not None and count < books[0].isa.packing.table_rows
    tables = [None] * levels if products is None or few else products.tables
    if books[0].isa is None:
        beam_tiles.search(z, books, tables, bound, codes, errors)
        return codes, errors
    threads = torch.get_num_threads() if num_threads is None else num_threads
    plain = [weight.detach() for weight in weights]
    native.beam_search(z, plain, books, tables, _gain(books), bound, codes, errors, threads)
    return codes, errors


def all_nearest(
    z: torch.Tensor, weight: torch.Tensor, book: PreparedCodebook, count: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """一层码本里最近的 `count` 个码字，逐个按定义算：束宽之外的少数行才用它，慢。

    Returns:
        (B, count) int64 与 (B, count) float64，按（误差，编号）递增；不同的码字不足 `count` 个时填 −1 与 inf。
    """
    codes = torch.full((len(z), count), -1, dtype=torch.int64, device=z.device)
    errors = torch.full((len(z), count), torch.inf, dtype=torch.float64, device=z.device)
    kept = (~book.twin[: book.size]).nonzero()[:, 0]  # (K'',)
    for row in range(len(z)):
        far = torch.cat([distance(z[row], weight[part]) for part in kept.split(2048)])  # (K'',)
        far, order = (part[:count] for part in torch.sort(far, stable=True))
        codes[row, : len(far)], errors[row, : len(far)] = kept[order], far
    return codes, errors


def _bound(width: int, levels: int) -> Tuple[float, ...]:
    """误差界的系数 (范数上限, γ, 0.6γ, η, τ, 8u, 定点数)，见文件开头。"""
    m = width + 8 + 4 * levels
    gamma = 1.001 * m * 2.0**-24 / (1 - m * 2.0**-24)
    return (
        _LIMIT,
        gamma,
        0.6 * gamma,
        (width + 16) * 2.0**-53,
        (levels + 1) * m * 2.0**-124,
        2.0**-21,
        1.05 * 2.0**-16 + levels * 2.0**-23,
    )


def _gain(books: Sequence[PreparedCodebook]) -> torch.Tensor:
    """(各层码字总数,) 每个码字的 ‖q‖ 上界，不为零；它与面板的 max‖c‖ 一起定出内积的定点单位。"""
    return torch.cat([book.norm[: book.size] for book in books]).clamp_(min=_TINY)


def _table(weights: Sequence[torch.Tensor], books: Sequence[PreparedCodebook], level: int) -> torch.Tensor:
    """第 `level` 层的每个码字与此前各层的每个码字的内积，按片存放；填充处是 0。"""
    weight, book = weights[level].detach(), books[level]
    padded = book.twin.shape[0]
    prefix = torch.cat([w.detach() for w in weights[:level]])  # (S, H)
    size, gain = prefix.shape[0], _gain(books[:level])  # (S,)
    table = beam_scores.new_table(weight, size * padded)
    with torch.autocast(weight.device.type, enabled=False), full_precision(weight.device):
        for start in range(0, padded, beam_scores.TILE):
            part = weight[start : start + beam_scores.TILE]
            stop = min(start + beam_scores.TILE, padded)
            product = torch.nn.functional.pad(prefix @ part.T, (0, stop - start - part.shape[0]))  # (S, T)
            if book.isa is not None:
                step = (book.panel_norm[start // _PANEL : stop // _PANEL] / _LARGEST).clamp_(min=_TINY)  # (T/32,)
                product /= gain[:, None]  # 分两次除：两个小数的积会下溢
                product = product.unflatten(1, (-1, _PANEL)).div_(step[:, None])  # (S, T/32, 32)
                product = product.round_().clamp_(-_LARGEST, _LARGEST).transpose(0, 1)  # (T/32, S, 32)
            else:
                product = beam_scores.to_fixed(product, book, start)
            table[start * size : stop * size].view(product.shape).copy_(product)
    return table
