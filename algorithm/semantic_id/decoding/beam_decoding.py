"""束搜索：给自己掌握解码网络的人，逐层的 logits 进来，存在的物品出去。

形状字母：B 批，M 束宽，R = B·M，K_l 第 l 层大小，L 层数。

一步的代价几乎全在「看 logits」上：
- 孩子少的层（深层）：取出每个结点的孩子，只看它们的 logits；
- 孩子多的层（浅层）：整行一起看，不存在的由一张 (结点, K_l) 的表遮住，分块取最大值，从不写出遮住之后的整行。

分数是各层 log_softmax 之和，归一化在整层上，不在允许的编号上：约束不改变物品之间的先后，只去掉不存在的。
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F

from ..errors import InputError, InputTypeError
from .top_k import CHUNK_ELEMENTS, top_k
from .trie import PrefixTrie

__all__ = ["TABLE_FRACTION", "Beams", "Selection", "advance", "beam_search", "normalized"]

StepFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# 孩子数超过 K_l 的这么多分之一时，整行一起看比逐个取孩子快；测得，见 benchmarks/results/
TABLE_FRACTION = 8
# 一层最多这么多孩子时，直接补齐到它，省下一次归约与等待
_FEW_CHILDREN = 8


@dataclass(frozen=True)
class Beams:
    """束搜索的结果，按分数从高到低；不够 num_results 个时右侧补 −1 与 −inf。

    Attributes:
        codes: (B, n, L) int64。
        scores: (B, n) float32，log 概率之和。
        items: (B, n) int64，物品行号；共用一个 ID 的取行号最小的。
    """

    codes: torch.Tensor
    scores: torch.Tensor
    items: torch.Tensor

    def to_list(self) -> List[List[Tuple[Tuple[int, ...], float]]]:
        """每批一串 `((l1, l2, l3), score)`，不含补齐的。"""
        pairs = zip(self.codes.tolist(), self.scores.tolist(), strict=True)
        return [[(tuple(c), s) for c, s in zip(*pair, strict=True) if s > -math.inf] for pair in pairs]


class Selection(NamedTuple):
    """一步之后留下的束。

    Attributes:
        scores: (B, k) 累计分数；−inf 的是死束：候选不够束宽时补在右边的，不通向任何物品。
        parents: (B, k) 来自上一步的第几束。
        codes: (B, k) 选中的编号；死束的没有意义，但在 [0, K_l) 之内，可以放心查词表。
        nodes: (B, k) 下一层的结点；死束的没有意义，但不越界：它的分数是 −inf，往下怎么走都是 −inf。
    """

    scores: torch.Tensor
    parents: torch.Tensor
    codes: torch.Tensor
    nodes: torch.Tensor


@torch.no_grad()
def beam_search(
    step_fn: StepFunction, trie: PrefixTrie, *, batch_size: int, num_beams: int, num_results: int | None = None
) -> Beams:
    """逐层解码，只走存在的前缀。

    束宽不小于每一层的前缀数时，结果就是全部物品的精确排名；否则是束搜索的近似，但每一个都存在。
    分数并列时，先前名次靠前的束优先，再取编号小的，所以结果与设备、批大小无关。

    Args:
        step_fn: `step_fn(codes, parents) -> logits`。codes 是 (R, l) int64，各束已经选定的编号；parents 是 (R,) int64，
            每束来自上一步的第几行，用来重排 KV 缓存（l = 0 时是 0…B−1）；返回 (R, K_{l+1}) logits。
        trie: 前缀树；过滤过的也行。设备要与 logits 相同。
        batch_size: B，第一步 R = B，此后 R = B·M。
        num_beams: 束宽 M。
        num_results: 每批返回几个，默认 M，不超过 M。

    Returns:
        `Beams`。

    Raises:
        TypeError: 参数或 logits 不是该有的类型。
        ValueError: 参数越界，logits 形状不对、设备不对，或一行里有 NaN、+inf、全是 −inf。

    >>> trie = PrefixTrie.build(torch.tensor([[0, 1], [1, 0], [1, 1]]), (2, 2))
    >>> flat = lambda codes, parents: torch.zeros(len(codes), 2)
    >>> [codes for codes, _ in beam_search(flat, trie, batch_size=1, num_beams=4).to_list()[0]]
    [(0, 1), (1, 0), (1, 1)]
    """
    num_results = num_beams if num_results is None else num_results
    for name, value in (("batch_size", batch_size), ("num_beams", num_beams), ("num_results", num_results)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise InputTypeError(f"{name} must be an int, got {type(value).__name__} ({value!r})")
        if value < 1:
            raise InputError(f"{name}={value} is out of range; use an int >= 1")
    if num_results > num_beams:
        raise InputError(f"num_results={num_results} exceeds num_beams={num_beams}; raise num_beams")
    device = trie.device
    codes = torch.zeros(batch_size, 1, 0, dtype=torch.int64, device=device)  # (B, M, l)
    rows = torch.arange(batch_size, device=device)  # (B,) 每批的起始行
    parents = rows[:, None]
    beams = Selection(torch.zeros(batch_size, 1, device=device), parents, parents, torch.zeros_like(parents))
    for level, size in enumerate(trie.sizes):
        width = codes.shape[1]
        logits = _checked(step_fn(codes.flatten(0, 1), parents.flatten()), batch_size * width, size, level, device)
        logits, normalizer = normalized(logits, level)
        offset = beams.scores if normalizer is None else beams.scores - normalizer.view(batch_size, width)
        beams = advance(trie, level, beams.nodes, offset, logits, num_beams)
        chosen = codes.gather(1, beams.parents[..., None].expand(-1, -1, level))
        codes = torch.cat([chosen, beams.codes[..., None]], dim=2)
        parents = rows[:, None] * width + beams.parents
    found = beams.scores > -math.inf  # (B, M)
    codes = torch.where(found[..., None], codes, -1)
    items = trie.find(codes.flatten(0, 1)).view_as(found)
    pad = (0, num_results - found.shape[1])  # 负数就是截掉
    return Beams(
        F.pad(codes, (0, 0, *pad), value=-1),
        F.pad(beams.scores, pad, value=-math.inf),
        F.pad(items, pad, value=-1),
    )


def advance(
    trie: PrefixTrie, level: int, nodes: torch.Tensor, offset: torch.Tensor, logits: torch.Tensor, num_beams: int
) -> Selection:
    """一步：每批从全部存在的延长里取分数最高的。

    Args:
        trie: 前缀树。
        level: 已经走了几层。
        nodes: (B, M) 当前结点；level = 0 时每批一束，都是根。
        offset: (B, M) float32，加在整行 logits 上的数：累计分数减去归一化常数。
        logits: (B·M, K_l) 连续的 float32，不许有 NaN 与 +inf。
        num_beams: 最多留几束。

    Returns:
        `Selection`，k = min(num_beams, 候选数)。
    """
    if level == 0:
        return _from_root(trie, offset, logits, num_beams)
    num_batch, width = nodes.shape
    size, most = trie.sizes[level], trie.max_children[level]
    spans = trie.spans(level, nodes)  # (B, M, 2)
    if most > _FEW_CHILDREN:
        most = int((spans[..., 1] - spans[..., 0]).max())  # 眼下这些结点里最多的
    table = trie.table(level) if most * TABLE_FRACTION > size else None
    if table is not None:
        return _over_codes(trie, level, nodes, offset, logits, num_beams, table)
    # 一组若干批：各组只补齐到自己的孩子数，一个热门结点不会让所有的束跟着变宽
    group = num_batch if logits.device.type != "cpu" else max(1, CHUNK_ELEMENTS // (width * most))
    if group >= num_batch:
        return _over_children(trie, level, spans, offset, logits, num_beams, most)
    parts = []
    for i in range(0, num_batch, group):
        part = spans[i : i + group]
        most = int((part[..., 1] - part[..., 0]).max())
        rows = logits[i * width : (i + group) * width]
        parts.append(_over_children(trie, level, part, offset[i : i + group], rows, num_beams, most))
    return _joined(parts)


def _from_root(trie: PrefixTrie, offset: torch.Tensor, logits: torch.Tensor, num_beams: int) -> Selection:
    """第一步：每批只有根这一束，孩子对谁都一样。"""
    present = trie.first_level()  # (2, E_1) 结点与编号
    values = logits if present is None else logits.index_select(1, present[1])  # (B, E_1)
    scores, position = top_k(values[:, None], offset, min(num_beams, values.shape[1]))
    parents = torch.zeros_like(position)
    if present is None:
        return Selection(scores, parents, position, position)
    return Selection(scores, parents, present[1][position], present[0][position])


def _over_codes(
    trie: PrefixTrie,
    level: int,
    nodes: torch.Tensor,
    offset: torch.Tensor,
    logits: torch.Tensor,
    num_beams: int,
    table: torch.Tensor,
) -> Selection:
    """孩子多的层：整行 (K_l,) 一起看，不存在的由表遮住。"""
    num_batch, width = nodes.shape
    size = trie.sizes[level]
    keep = None if trie.densities[level] == 1.0 else (table, nodes)
    scores, position = top_k(logits.view(num_batch, width, size), offset, min(num_beams, width * size), keep)
    parents, codes = position // size, position % size
    children = trie.step(level, nodes.gather(1, parents).flatten(), codes.flatten()).view_as(codes)
    return Selection(scores, parents, codes, children.clamp(min=0))


def _over_children(
    trie: PrefixTrie,
    level: int,
    spans: torch.Tensor,
    offset: torch.Tensor,
    logits: torch.Tensor,
    num_beams: int,
    most: int,
) -> Selection:
    """孩子少的层：只看各结点的孩子，补齐到 most 个。"""
    num_batch, width = offset.shape
    codes, nodes, valid = trie.gather_children(level, spans.view(-1, 2), most)  # (B·M, W)
    values = logits.gather(1, codes).masked_fill_(~valid, -math.inf)  # 就地：gather 的结果是自己的
    scores, position = top_k(values.view(num_batch, width, most), offset, min(num_beams, width * most))
    codes, nodes = (x.view(num_batch, -1).gather(1, position) for x in (codes, nodes))
    return Selection(scores, position // most, codes, nodes)


def _joined(parts: List[Selection]) -> Selection:
    """各组接起来；孩子少的组不够 k 束，右侧补死束。"""
    keep = max(part.scores.shape[1] for part in parts)
    fills = (-math.inf, 0, 0, 0)
    columns = zip(*parts, strict=True)
    return Selection(
        *(
            torch.cat([F.pad(x, (0, keep - x.shape[1]), value=fill) for x in column])
            for column, fill in zip(columns, fills, strict=True)
        )
    )


def _checked(logits: Any, num_rows: int, size: int, level: int, device: torch.device) -> torch.Tensor:
    """step_fn 的返回值的门；转成 float32，累加才不丢位数。"""
    if not isinstance(logits, torch.Tensor) or not logits.dtype.is_floating_point:
        kind = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputTypeError(f"step_fn must return a floating torch.Tensor for L{level + 1}, got {kind}")
    if logits.shape != (num_rows, size):
        raise InputError(
            f"step_fn returned logits of shape {tuple(logits.shape)} for L{level + 1}; need ({num_rows}, {size})"
        )
    if logits.device != device:
        raise InputError(f"logits are on {logits.device}, but the trie is on {device}; use trie.to(logits.device)")
    return logits.float().contiguous()


def normalized(logits: torch.Tensor, level: int) -> Tuple[torch.Tensor, torch.Tensor | None]:
    """归一化：(R, K) logits → (分数, 要减去的 (R,) 常数)；常数为 None 就是已经减过。

    Raises:
        ValueError: 一行里有 NaN、+inf，或全是 −inf；不拦下来，前 k 名里就会混进没有意义的束。
    """
    if logits.device.type != "cpu" or logits.numel() <= CHUNK_ELEMENTS:
        scores = logits.log_softmax(dim=1)
        _check_rows(scores[:, :1].isnan()[:, 0], level)  # 这三种行的 log_softmax 整行是 NaN
        return scores, None
    step = max(1, CHUNK_ELEMENTS // logits.shape[1])
    buffer = torch.empty(step, logits.shape[1])
    out = torch.empty(len(logits))
    for rows, total in zip(logits.split(step), out.split(step), strict=True):
        peak, shifted = rows.amax(dim=1, keepdim=True), buffer[: len(rows)]
        torch.sub(rows, peak, out=shifted)
        torch.add(shifted.exp_().sum(dim=1).log_(), peak[:, 0], out=total)
    _check_rows(~out.isfinite(), level)
    return logits, out


def _check_rows(bad: torch.Tensor, level: int) -> None:
    """指出第一个坏行。"""
    if bool(bad.any()):
        raise InputError(
            f"logits for L{level + 1} row {int(bad.nonzero()[0])} hold NaN, +inf or nothing but -inf; "
            "check the model before decoding"
        )
