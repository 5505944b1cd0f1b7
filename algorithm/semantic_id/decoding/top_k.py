"""精确的前 k 名，并列取最小下标：分块取最大值，只在有希望的块里细看。

`torch.topk` 有两处不合用：并列时取谁没有定义（结果随设备与版本变），而且它逐个搬运每个元素；取最大值（amax）
是向量化的，快一个数量级。前 k 名一定落在块最大值（并列取靠前的块）的前 k 个块里：
若某个前 k 名不在其中，就有 k 个块各有一个排在它前面的元素，矛盾。
"""

from __future__ import annotations

import math
from typing import Tuple

import torch
import torch.nn.functional as F

__all__ = ["CHUNK_ELEMENTS", "top_k"]

# CPU 上一次处理多少个元素：中间结果反复写同一块缓冲，留在二级缓存里；每次另外分配，缺页比计算还贵
CHUNK_ELEMENTS = 1 << 17
# 小于这么多元素就直接排，分块省不下什么
_SMALL = 4096
_BLOCKS = (64, 32)
# CPU 上 torch.topk 在 n ≥ 64k 时用堆（一遍扫过），否则用快速选择（慢一倍）；差一点的补齐到 64k 反而快
_SELECT_RATIO = 64
# 遮住一个元素就减去它；比它的一半还低的分数不会有人当真，真有也走精确的老路
_HIDDEN = 2e38


def top_k(
    values: torch.Tensor, offset: torch.Tensor, k: int, keep: Tuple[torch.Tensor, torch.Tensor] | None = None
) -> Tuple[torch.Tensor, torch.Tensor]:
    """每批里 `values + offset` 最大的 k 个。

    Args:
        values: (B, W, n) 连续的 float32，可以有 −inf，不许有 NaN。
        offset: (B, W) float32，加在整行上（束的累计分数）；分开传，就不必写出一份 (B, W, n)。
        k: 取几个，不超过 W·n。
        keep: (表 (M, n) bool, 行号 (B, W))：第 (b, w) 行只看表里那一行为 True 的；其余当作 −inf。

    Returns:
        (分数 (B, k) 从大到小, 下标 (B, k) int64，在 W·n 里)；分数相同的，下标小的在前。
    """
    num_batch, num_rows, width = values.shape
    total = num_rows * width
    size = 0
    if total > _SMALL:
        size = next((block for block in _BLOCKS if block * block * k <= total and width % block == 0), 0)
    if size > 0:
        scores, positions = _by_blocks(values, offset, k, keep, size)
        # 遮住的值是个很低的有限数；只有连它们都入选时，才分不清它们与极低的真值
        if keep is None or bool((scores > -_HIDDEN / 2).all()):
            return scores, positions
    if keep is not None:
        values = torch.where(keep[0][keep[1]], values, -math.inf)
    if num_rows == 1:  # 整批加同一个数，不影响先后
        scores, positions = _ordered(values[:, 0], None, k)
        return scores + offset, positions
    return _ordered((values + offset[..., None]).reshape(num_batch, total), None, k)


def _by_blocks(
    values: torch.Tensor, offset: torch.Tensor, k: int, keep: Tuple[torch.Tensor, torch.Tensor] | None, size: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """先在块里取最大值，再只看前 k 块。"""
    num_batch, _, width = values.shape
    # 舍入是单调的：先取最大值再加 offset，与先加再取得到同样的数
    peaks = (_peaks(values, size, keep) + offset[..., None]).reshape(num_batch, -1)  # (B, W·n / size)
    _, chosen = _ordered(peaks, None, k)  # (B, k)
    row, block = chosen * size // width, chosen % (width // size)
    start = torch.arange(num_batch, device=values.device)[:, None] * peaks.shape[1]
    # 按块取行：take_along_dim 会把下标展开 size 倍
    inside = values.view(-1, size)[(start + chosen).flatten()].view(num_batch, k, size)
    if keep is not None:
        place = keep[1].gather(1, row) * (width // size) + block
        inside = torch.where(keep[0].view(-1, size)[place.flatten()].view_as(inside), inside, -math.inf)
    scores = (inside + offset.gather(1, row)[..., None]).flatten(1)  # (B, k · size)
    positions = chosen[..., None] * size + torch.arange(size, device=values.device)
    return _ordered(scores, positions.flatten(1), k)


def _peaks(values: torch.Tensor, size: int, keep: Tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """(B, W, n) → (B, W, n / size) 各块的最大值；遮住的元素减去 `_HIDDEN`。"""
    num_batch, num_rows, width = values.shape
    if keep is None:
        return values.view(num_batch, num_rows, -1, size).amax(dim=-1)
    rows, nodes = values.view(-1, width), keep[1].flatten()  # (B·W, n), (B·W,)
    step = len(rows) if values.device.type != "cpu" else max(1, CHUNK_ELEMENTS // width)
    seen = torch.empty(step, width, dtype=torch.bool, device=values.device)
    hidden = torch.empty(step, width, device=values.device)
    parts = []
    for row, node in zip(rows.split(step), nodes.split(step), strict=True):
        mask, out = seen[: len(row)], hidden[: len(row)]
        torch.index_select(keep[0], 0, node, out=mask)
        # CPU 上 where 与 masked_fill 逐个判断，乘加是向量化的，快六倍
        out.copy_(mask.logical_not_().view(torch.uint8))
        torch.add(row, out, alpha=-_HIDDEN, out=out)
        parts.append(out.view(-1, width // size, size).amax(dim=-1))
    return torch.cat(parts).view(num_batch, num_rows, -1)


def _ordered(scores: torch.Tensor, positions: torch.Tensor | None, k: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """按 (分数降序, 下标升序) 取 k 个；−inf 的取哪一个都行。positions 为 None 就是 0…n−1。

    多取一个：前 k + 1 名里没有并列，取到的就没有含糊之处。有并列时把分数与下标拼成一个 int64 再取。
    """
    num_columns = scores.shape[1]
    wanted = min(k + 1, num_columns)
    if scores.device.type == "cpu" and 0.7 * _SELECT_RATIO * wanted < num_columns < _SELECT_RATIO * wanted:
        scores = F.pad(scores, (0, _SELECT_RATIO * wanted - num_columns), value=-math.inf)
    best = scores.topk(wanted, dim=1)
    same = best.values[:, 1:] == best.values[:, :-1]
    if not bool(same.any()) or not bool((same & (best.values[:, 1:] > -math.inf)).any()):
        chosen = best.indices[:, :k]
        return best.values[:, :k], chosen if positions is None else positions.gather(1, chosen)
    scores = scores[:, :num_columns].contiguous()
    if positions is None:
        positions = torch.arange(num_columns, device=scores.device).expand_as(scores)
    # IEEE 754 的位在正数里与值同序，在负数里反序；加 0.0 是因为 −0.0 与 0.0 相等，位却不同
    bits = (scores + 0.0).view(torch.int32)
    rank = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    place = ((rank << 32) - positions).topk(k, dim=1).indices  # 下标小于 2³²，碰不到相邻的分数
    return scores.gather(1, place), positions.gather(1, place)
