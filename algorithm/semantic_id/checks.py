"""门口的检查：公共函数先在这里验收输入，里面的计算只管计算。

每个错误都说清：哪个字段、什么值、界限在哪、怎么改。NaN 与 Inf 必须在这里拦下：
`argmin` 对一行 NaN 会悄悄返回 0，于是坏数据全部变成同一个「物品」。
"""

from __future__ import annotations

import math
from typing import Any, Sequence

import torch

from .errors import InputError, InputTypeError
from .limits import MAX_ABS_FEATURE, MAX_ABS_WEIGHT, check_int

__all__ = ["MultiProcessTrainingError", "check_codebook", "check_codes", "check_features", "check_finite_rows"]
__all__ += ["check_level", "check_one_process", "check_shape"]


class MultiProcessTrainingError(RuntimeError):
    """在不止一个进程的进程组里训练。"""


def check_features(features: Any, width: int, name: str = "features") -> torch.Tensor:
    """验收一批特征向量并转成 float32。

    Args:
        features: 期望 (B, width) 的实浮点张量，B ≥ 1，全部有限。
        width: 模型要求的维度 D。
        name: 错误信息里的字段名。

    Returns:
        同一批数据，float32。

    Raises:
        TypeError: 不是张量，或 dtype 不是实浮点。
        ValueError: 秩、宽度、行数不对，或含 NaN/Inf/过大的值（指出第一个坏行）。
    """
    check_shape(features, width, name)
    # 先转换再检查：float64 的 1e300 转成 float32 才变成 inf
    features = features.float()
    check_finite_rows(features, name)
    return features


def check_shape(features: Any, width: int, name: str = "features") -> None:
    """只验收类型与形状，不看数值；大批数据分块处理时，数值由各块自己检查。

    Raises:
        TypeError: 不是张量，或 dtype 不是实浮点。
        ValueError: 秩、宽度、行数不对。
    """
    if not isinstance(features, torch.Tensor):
        raise InputTypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}; use torch.from_numpy(...)")
    if not features.dtype.is_floating_point:
        raise InputTypeError(f"{name} must have a real floating dtype, got {features.dtype}; convert with .float()")
    if features.ndim != 2:
        raise InputError(f"{name} must have shape (B, {width}), got {tuple(features.shape)}; one vector is x[None]")
    if features.shape[1] != width:
        raise InputError(f"{name} has width {features.shape[1]}, but the model was built with embedding_dim={width}")
    if features.shape[0] == 0:
        raise InputError(f"{name} is empty: shape {tuple(features.shape)}; at least one row is needed")


def check_finite_rows(x: torch.Tensor, name: str, row_offset: int = 0) -> None:
    """检查每个值都有限且不过大；`row_offset` 让分块处理时也能报出真正的行号。

    Raises:
        ValueError: 指出第一个坏行。
    """
    low, high = torch.aminmax(x.detach())  # 一次归约、不占额外内存；NaN 会传到结果里，过不了下面的比较
    if bool(low >= -MAX_ABS_FEATURE) and bool(high <= MAX_ABS_FEATURE):
        return
    bad = ~(x.detach().abs() <= MAX_ABS_FEATURE)  # (B, D)
    row = int(bad.any(dim=1).nonzero()[0])
    column = int(bad[row].nonzero()[0])
    value = float(x[row, column])
    bound = f"absolute values must be <= {MAX_ABS_FEATURE:g}" if math.isfinite(value) else "values must be finite"
    raise InputError(f"{name} row {row_offset + row} has {value} at column {column}; {bound}: clean or drop that row")


def check_codebook(weight: torch.Tensor) -> None:
    """检查码本 (K, H) 每个值都有限且不过大：坏码字不会报错，只会让编号悄悄变成 0。

    Raises:
        ValueError: 指出第一个坏码字。
    """
    low, high = torch.aminmax(weight.detach())
    if bool(low >= -MAX_ABS_WEIGHT) and bool(high <= MAX_ABS_WEIGHT):
        return
    row, column = (~(weight.detach().abs() <= MAX_ABS_WEIGHT)).nonzero()[0].tolist()
    raise InputError(
        f"codebook of {weight.shape[0]} has {float(weight[row, column])} in codeword {row} at column {column}; values "
        f"must be finite and within ±{MAX_ABS_WEIGHT:g}: the training diverged or the weights were damaged; "
        "load or train the model again"
    )


def check_one_process() -> None:
    """训练的门：各进程各学各的码本，ID 就不同，而且谁也不会报错。

    Raises:
        MultiProcessTrainingError: torch.distributed 的进程组里不止一个进程。
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    count = torch.distributed.get_world_size()
    if count > 1:
        raise MultiProcessTrainingError(
            f"training in a process group of {count} ranks is not supported: each rank would learn its own codebooks "
            "and give items different IDs; train in one process (encoding may use many)"
        )


def check_level(level: Any, num_levels: int) -> int:
    """验收层号，返回从 0 开始的下标。

    Raises:
        TypeError: 不是整数。
        ValueError: 不在 1…L。
    """
    return check_int("level", level, 1, num_levels) - 1


def check_codes(level_ids: Sequence[Any], codebook_sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """验收逐层编号。

    Args:
        level_ids: L 个 (B,) 整数张量。
        codebook_sizes: (K_1, …, K_L)。

    Returns:
        L 个 (B,) int64 张量。

    Raises:
        TypeError: 不是整数张量。
        ValueError: 层数、形状不对，或编号越界（指出第一个）。
    """
    if len(level_ids) != len(codebook_sizes):
        raise InputError(
            f"got ids of {len(level_ids)} levels, but the model has {len(codebook_sizes)}: pass one per level"
        )
    out = []
    for i, (ids, size) in enumerate(zip(level_ids, codebook_sizes, strict=True)):
        name = f"l{i + 1}_ids"
        if not isinstance(ids, torch.Tensor):
            raise InputTypeError(f"{name} must be a torch.Tensor, got {type(ids).__name__}; use torch.as_tensor(...)")
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise InputTypeError(f"{name} must have an integer dtype, got {ids.dtype}")
        if ids.ndim != 1 or ids.shape != level_ids[0].shape:
            raise InputError(f"{name} has shape {tuple(ids.shape)}; every level needs the same shape (B,)")
        ids = ids.long()
        bad = (ids < 0) | (ids >= size)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise InputError(f"{name} row {row} is {int(ids[row])}; codes of L{i + 1} are in [0, {size})")
        out.append(ids)
    return tuple(out)
