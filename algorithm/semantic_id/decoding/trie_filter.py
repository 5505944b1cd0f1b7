"""前缀树的过滤：物品掩码的门，与「这条前缀之下还有没有物品」自下而上的一步。"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError, InputTypeError

__all__ = ["EmptyFilterError", "any_child", "item_mask"]


class EmptyFilterError(InputError):
    """过滤之后一个物品也不剩：没有东西可以生成，而不是生成 NaN。"""


def any_child(flags: torch.Tensor, pointer: torch.Tensor) -> torch.Tensor:
    """(E,) 各边 → (M,) 各结点：孩子里有没有 True。"""
    total = torch.nn.functional.pad(flags.cumsum(0, dtype=torch.int32), (1, 0))  # (E + 1,)
    at = total[pointer.long()]
    return at[1:] > at[:-1]


def item_mask(mask: Any, num_items: int, name: str) -> torch.Tensor:
    """物品掩码的门；整数数组看起来像行号，按 0/1 读会悄悄留错物品，所以拒绝。"""
    tensor = torch.as_tensor(mask)
    if tensor.dtype != torch.bool:
        raise InputTypeError(f"{name} must be a bool mask of shape ({num_items},), got dtype {tensor.dtype}")
    if tensor.shape != (num_items,):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; the trie was built from {num_items} items: one each")
    return tensor
