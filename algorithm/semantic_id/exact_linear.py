"""与批无关的线性层，与由它组成的特征网络：同一行输入，无论和谁同批、哪种 BLAS、哪种设备，输出逐位相同。

浮点乘积的结果依赖求和顺序，而求和顺序由 BLAS 按矩阵形状挑选，于是同一个物品换一批就可能换一个 ID。
这里不去规定顺序，而是让顺序不再重要：把 x 与 W 各自取整到一个 2 的幂的网格上，使 float64 里的每个乘积与
每个部分和都是不超过 2⁵³ 的整数倍，加法因此没有舍入，任何顺序都得到同一个数。

    x ≈ X · s_x，|X| ≤ 2²⁴（s_x 为该行最大绝对值所在的 2 的幂，只由这一行决定）
    W ≈ V · s_w，|V| ≤ 2^b，b = 53 − 24 − ⌈log₂ D⌉（D = 256 时 21 位，与 float32 的 24 位相近）

代价是 float64 矩阵乘，约为 float32 的两倍；特征网络只占一次编码运算量的几个百分点。
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

__all__ = ["FeatureNetwork", "exact_linear"]

_X_BITS = 24
_SUM_BITS = 53


def exact_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """矩阵乘积 `x @ weight`：前向与批无关且可复现，反向是普通的 float32 梯度。

    Args:
        x: (B, D) float32，有限。
        weight: (D, H) float32，有限。

    Returns:
        (B, H) float32。
    """
    return _ExactLinear.apply(x, weight)


def _power_of_two_above(magnitude: torch.Tensor) -> torch.Tensor:
    """不小于输入的 2 的幂（float64）；0 对应 1。"""
    _, exponent = torch.frexp(magnitude.double())  # magnitude = m · 2^exponent，m ∈ [0.5, 1)
    # 直接拼出 float64 的指数位：pow(2, e) 在向量化实现里不保证逐位精确
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """网格上的精确乘积，最后一步才舍入到 float32。"""
    w_bits = _SUM_BITS - _X_BITS - math.ceil(math.log2(max(x.shape[1], 2)))
    x_unit = _power_of_two_above(x.abs().amax(dim=1, keepdim=True)) * 2.0**-_X_BITS  # (B, 1)
    w_unit = _power_of_two_above(weight.abs().amax()) * 2.0**-w_bits
    x_grid = x.to(torch.float64, copy=True).div_(x_unit).round_()  # (B, D)，除以 2 的幂没有误差
    w_grid = weight.to(torch.float64, copy=True).div_(w_unit).round_()  # (D, H)
    return (x_grid @ w_grid).mul_(x_unit * w_unit).float()  # (B, H)


class _ExactLinear(torch.autograd.Function):
    """前向取整，反向按没有取整算：取整误差在 float32 的量级，其梯度没有意义。"""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """见 `exact_linear`。"""
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # type: ignore[override]
        """∂/∂x = g Wᵀ，∂/∂W = xᵀ g；第一层的 x 是数据，不要梯度就不算。"""
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        return grad @ weight.T if wants_x else None, x.T @ grad if wants_weight else None


class FeatureNetwork(nn.Module):
    """P(x) + s · W₂ᵀ relu(W₁ᵀ x/s + b₁)：线性投影加残差两层网络，起点严格等于投影；宽度不变时投影就是恒等。

    W₂ 从零开始，所以未训练时输出就是 P(x)，解码就是码字之和；梯度先流进 W₂，再流进 W₁。
    激活用 relu：它没有舍入，与 `exact_linear` 一起保证同一行在任何批里、任何设备上逐位相同。
    没有输出偏置：整体平移由 L1 码本吸收。投影由训练器按主成分设定、不参与求导，宽度不变时根本没有它。

    Attributes:
        unit: 标量 buffer，2 的幂，特征的典型大小。网络只看 x / unit，因此特征整体乘 2 的幂，
            训练轨迹与 ID 逐位不变；训练器在初始化时设定。
    """

    unit: torch.Tensor
    projection: torch.Tensor
    shift: torch.Tensor

    def __init__(self, dim_in: int, dim_out: int, hidden_dim: int):
        super().__init__()
        self.weight_in = nn.Parameter(torch.empty(dim_in, hidden_dim))  # (D, M)
        self.bias_in = nn.Parameter(torch.zeros(hidden_dim))  # (M,)
        self.weight_out = nn.Parameter(torch.zeros(hidden_dim, dim_out))  # (M, H)
        self.register_buffer("unit", torch.ones(()))
        self.projects = dim_in != dim_out
        if self.projects:  # 未训练时取单位阵的一角：截断或补零
            self.register_buffer("projection", torch.eye(dim_in, dim_out))  # (D, H)
            self.register_buffer("shift", torch.zeros(dim_out))  # (H,)
        self.reset_()

    @torch.no_grad()
    def reset_(self, generator: torch.Generator | None = None) -> None:
        """残差部分回到零；W₁ 按 1/√D 重新抽取。"""
        bound = 1 / math.sqrt(self.weight_in.shape[0])
        self.weight_in.copy_(torch.empty(self.weight_in.shape).uniform_(-bound, bound, generator=generator))
        self.bias_in.zero_()
        self.weight_out.zero_()

    def is_identity(self) -> bool:
        """残差部分为零时为真（输出层全零）。"""
        return not bool(self.weight_out.detach().any())

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """残差之外的部分：投影，或 x 自己。"""
        return exact_linear(x, self.projection) + self.shift if self.projects else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """过网络：(B, D) float32 → (B, H) float32；恒等且不求梯度时原样返回。"""
        out = self.base(x)
        if not torch.is_grad_enabled() and self.is_identity():
            return out
        hidden = torch.relu(exact_linear(x / self.unit, self.weight_in) + self.bias_in)  # (B, M)
        return out + exact_linear(hidden, self.weight_out) * self.unit
