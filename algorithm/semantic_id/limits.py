"""数值的门：整数与浮点参数的范围检查，全包只有这一处；不导入 torch 与 NumPy，所以人人都能用。

每个错误都说清：哪个字段、什么值、界限在哪。拒绝 bool 与 3.0：它们多半是笔误。
"""

from __future__ import annotations

import math
from typing import Any

from .errors import InputError, InputTypeError

__all__ = ["MAX_ABS_FEATURE", "MAX_ABS_WEIGHT", "check_float", "check_int"]

# 超过它时 float32 的平方和可能溢出（1e18² × 维度 ≈ 1e36 × D），距离会变成 inf
MAX_ABS_FEATURE = 1e15
# 残差至多是特征的两倍，k-means 的过松弛再多走 0.9 倍；更大的权重不是训练出来的
MAX_ABS_WEIGHT = 8 * MAX_ABS_FEATURE


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """验收一个整数，接受 int 与 NumPy 整数。

    Args:
        name: 错误信息里的字段名。
        value: 待验收的值。
        low: 最小值（含）。
        high: 最大值（含）；None 为不限。

    Returns:
        Python int。

    Raises:
        TypeError: 不是整数。
        ValueError: 越界。
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputTypeError(f"{name} must be an int, got {type(value).__name__} ({value!r})")
    number = int(value)
    if number < low or (high is not None and number > high):
        bound = f"an int >= {low}" if high is None else f"an int in [{low}, {high}]"
        raise InputError(f"{name}={number} is out of range; use {bound}")
    return number


def check_float(
    name: str, value: Any, low: float, high: float, *, open_bottom: bool = False, open_top: bool = False
) -> float:
    """验收一个浮点数，NaN、Inf 与越界都拒绝；默认闭区间，`open_*` 去掉端点。

    Raises:
        TypeError: 不是数。
        ValueError: 越界。
    """
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise InputTypeError(f"{name} must be a float, got {type(value).__name__} ({value!r})")
    try:
        number = float(value)
    except OverflowError:  # 比 1.8e308 还大的整数
        number = math.inf
    inside = (low < number if open_bottom else low <= number) and (number < high if open_top else number <= high)
    if not inside or math.isinf(number):
        left, right = "(" if open_bottom else "[", ")" if open_top or math.isinf(high) else "]"
        raise InputError(f"{name}={number} is out of range; use a float in {left}{low}, {high}{right}")
    return number
