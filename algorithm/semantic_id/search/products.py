"""后备路径的矩阵乘积：真正的 float32（NumPy 与 torch 里快的那一家）与 CUDA 的 bfloat16。

乘积只给得分，得分只提名：各家的求和次序不同，编号却相同，见 `definition.py` 的误差界。
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any, Callable, Iterator

import numpy as np
import torch

__all__ = ["bfloat16_losses", "full_precision", "half_rows", "mixed_product", "multiply", "pack_halves"]

_WORTH_CHOOSING = 1 << 17  # 得分少于它的乘积不值得挑哪一家算
_HALF = 2.0**-8  # bfloat16 舍入的相对误差；全是次正规数的码字也记这么多，其余由 τ 覆盖


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """搜索期间一律用真正的 float32：TF32 与 bfloat16 的乘积不满足误差界。只在用户改过设置时才动它。"""
    owner: Any = getattr(torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn, "matmul", None)
    if hasattr(owner, "fp32_precision"):  # torch ≥ 2.9；旧接口在用户混用新接口时会报错
        before = owner.fp32_precision
        changed = before not in ("none", "ieee")
        if changed:
            owner.fp32_precision = "ieee"
        try:
            yield
        finally:
            if changed:
                owner.fp32_precision = before
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@functools.cache
def mixed_product(device: torch.device) -> Callable[..., Any] | None:
    """(T, W) @ (W, n) 的 bfloat16 乘积，float32 累加并写进 `out`；这台设备或这一版 torch 没有则为 None。"""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        return None

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(a, b, out_dtype=torch.float32, out=out)

    try:
        one = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
        product(one, one, torch.empty(16, 16, device=device))
    except (TypeError, RuntimeError):  # torch < 2.8 没有 out_dtype
        return None
    return product


def bfloat16_losses(codes: torch.Tensor) -> torch.Tensor:
    """码字 (R, H) 舍入成 bfloat16 的 ‖c − c̃‖ / ‖c‖ (R,)，float64。"""
    square, lost = codes.double().square().sum(1), (codes.double() - codes.bfloat16()).square_().sum(1)
    return lost.div_(square).sqrt_().nan_to_num_(_HALF, _HALF).clamp_(max=_HALF)


def pack_halves(codes: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """码字 (R, H) 与 ‖c‖²/2 (R,) → bfloat16 的 (R, W)：[c | 偏置 | 0]，W = H + 3 补到 8 的倍数。

    偏置拆成三个 bfloat16 之和：8 位尾数的三段正好装下 float32 的 24 位，所以它没有舍入误差。
    """
    out = codes.new_zeros(len(codes), -(-(codes.shape[1] + 3) // 8) * 8, dtype=torch.bfloat16)
    out[:, : codes.shape[1]] = codes
    rest = -half
    for column in range(codes.shape[1], codes.shape[1] + 3):
        out[:, column] = rest
        rest = (rest - out[:, column].float()).nan_to_num_(0.0, 0.0, 0.0)  # −inf 减去自己
    return out


def half_rows(x: torch.Tensor, width: int) -> torch.Tensor:
    """(n, H) → bfloat16 的 (W, n)，与 `pack_halves` 的列对应。"""
    out = x.new_zeros(x.shape[0], width, dtype=torch.bfloat16)
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] : x.shape[1] + 3] = 1.0
    return out.T


def multiply(xp: Any, a: Any, b: Any, out: Any) -> None:
    """把 a @ b 写进 `out`，float32；`xp` 是数组所属的 numpy 或 torch，NumPy 数组由两家里快的那一家算。

    各家的求和次序不同，得分的末位也就不同；误差界对任何次序成立，所以编号与选了哪一家无关。
    """
    if xp is torch and a.dtype == torch.bfloat16:
        product = mixed_product(a.device)
        assert product is not None
        product(a, b, out)
    elif xp is np and a.shape[0] * b.shape[1] >= _WORTH_CHOOSING:
        _faster_product()(a, b, out)
    else:
        xp.matmul(a, b, out=out)


def _with_torch(a: Any, b: Any, out: Any) -> None:
    """与 np.matmul 相同，由 torch 的 BLAS 算。"""
    torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))


def _with_numpy(a: Any, b: Any, out: Any) -> None:
    np.matmul(a, b, out=out)


@functools.cache
def _faster_product() -> Callable[[Any, Any, Any], None]:
    """在本机现测：Intel 上 torch 自带的 MKL 快一成多，AMD 上 NumPy 的 OpenBLAS 快两三成。每个进程一次，约 20 毫秒。"""
    a, b, out = np.ones((1024, 257), np.float32), np.ones((257, 1024), np.float32), np.empty((1024, 1024), np.float32)
    seconds: dict[Callable[[Any, Any, Any], None], float] = {_with_numpy: np.inf, _with_torch: np.inf}
    for _ in range(5):  # 交替着测，取各自最快的一次；只数本线程的时间，别的进程占着处理器也不算
        for product in seconds:
            start = time.thread_time()
            product(a, b, out)
            seconds[product] = min(seconds[product], time.thread_time() - start)
    return min(seconds, key=seconds.__getitem__)
