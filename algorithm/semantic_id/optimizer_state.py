"""优化器状态 ↔ 扁平的张量字典：断点因此也能用 safetensors 存，不用 pickle。"""

from __future__ import annotations

from typing import Dict, Mapping

import torch

__all__ = ["load_optimizer_", "optimizer_tensors"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Dict[str, torch.Tensor]:
    """取出每个参数的状态张量，键为 `<参数序号>.<状态名>`，例如 `0.exp_avg`。"""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{slot}": tensor for index, slots in state.items() for slot, tensor in slots.items()}


def load_optimizer_(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """把 `optimizer_tensors` 的结果装回同样构造的优化器；超参数保持优化器自己的。"""
    state: Dict[int, Dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
