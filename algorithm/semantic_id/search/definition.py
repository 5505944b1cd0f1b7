"""最近码字搜索：全项目唯一的热点，查找、训练、k-means 都走这里。

「最近」的定义（一个向量只有一个 ID，与同批的别的行无关）：
    使 float64 的 Σ_d (x_d − c_d)² 最小的**最低**编号；差与平方都在 float64 里算，16 路各自按 d 递增累加
    （第 j 路管 d = j, j+16, …），再按 8、4、2、1 折半相加，不用 FMA。顺序写死，所以任何设备都能逐位重现。

快速的 float32 得分 h = x·c − ‖c‖²/2（越大越近）只负责**提名**：凡得分落在严格舍入误差界以内的码字都是候选，
唯一候选即答案，其余按定义裁决。因此结果是（行，码本）的纯函数，与批大小、行序、线程数、步长、指令集都无关。

误差界：u = 2⁻²⁴，m = H + 8，γ = m·u/(1 − m·u)，任何求和次序下
    |ĥ − h| ≤ γ‖x‖‖c‖ + 0.6γ‖c‖² + η‖x‖² + τ(1 + ‖x‖ + max‖c‖)
低精度的提名另添各自的舍入误差，见 `kernel/int16.h` 与 `kernel/amx.h`。
0.6γ‖c‖² 含偏置参与求和（γ/2）、偏置自身舍入（u/2 ≤ 0.06γ）；η = (H+16)·2⁻⁵³ 覆盖 float64 定义自身的舍入；
τ = m·2⁻¹²⁴ 覆盖下溢，哪怕处理器把次正规数清零。m 里多出的 8 项留给得分比较时的 float32 舍入。

三条提名路径同一答案：编译内核（`kernel/native.cpp`，运行时选最快的指令集）、NumPy 片、torch 片（CUDA 走它）。

本文件**假定**输入有限且 |x| ≤ 1e15，由门口（`checks.py`）负责；违反时结果无意义，但编号仍在 [0, K)。

形状字母：B 行数，H 宽度，K 码字数，K' 是 K 向上取到 32 的倍数，P = K'/32 面板数，R 变动的行数。
"""

from __future__ import annotations

import torch

__all__ = ["PAIRS", "brute_force", "distance"]

PAIRS = 2048  # 一次裁决多少（行，码字）对：float64 的中间量占几 MB


def distance(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """定义里的距离，(…, H) 可广播；逐元素运算不会被融合成 FMA，求和次序写死，所以逐位可重现。"""
    gap = x.double() - c.double()
    square = gap.mul_(gap)
    if gap.shape[-1] % 16:
        square = torch.nn.functional.pad(square, (0, -gap.shape[-1] % 16))
    square = square.unflatten(-1, (-1, 16))  # (…, ⌈H/16⌉, 16)
    lanes = square[..., 0, :]
    for i in range(1, square.shape[-2]):
        lanes += square[..., i, :]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def brute_force(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(r, H) 与全部码字 (K, H) 按定义比较 → (r,)；并列取最低编号。"""
    least = x.new_full((x.shape[0],), torch.inf, dtype=torch.float64)  # (r,)
    out = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    for start in range(0, len(codes), PAIRS):
        stop = min(start + PAIRS, len(codes))
        far = distance(x[:, None], codes[None, start:stop])  # (r, T)
        near = far.amin(1)
        index = torch.arange(start, stop, device=x.device)
        first = torch.where(far == near[:, None], index, stop - 1).amin(1)  # 并列取最低编号
        out = torch.where(near < least, first, out)
        least = torch.minimum(near, least)
    return out
