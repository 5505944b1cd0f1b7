"""为搜索整理好的码本：选一条路径，按它的排法打包，码本变了只重新打包变了的行。

环境变量 `SEMID_SEARCH` 在 `prepare` 时读取：auto，或由快到慢 amx、avx512-int16、avx512、avx2-int16、avx2、generic，
没有编译过用 numpy、torch。定义、误差界与形状字母见 `definition.py`。
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import Any, Callable, TypeVar, cast

import numpy as np
import torch

from ..errors import InputError
from .isa import ISAS, Isa, available, pack
from .products import bfloat16_losses, mixed_product, pack_halves

__all__ = ["PreparedCodebook", "prepare", "untraced"]

_FALLBACKS = ("numpy", "torch")
_PATHS = ("auto", *(isa.name for isa in reversed(ISAS)), *_FALLBACKS)
_PANEL = 32  # 码字按它补齐；填充与重复的码字偏置是 −inf，永远不会被提名
_WORTH_CHECKING = 4096  # 一次至少找这么多行，才逐元素核对码本有没有变过
_SAMPLES = 64  # 平时抽几个元素核对
_LIMIT = 1e18  # 范数超过它时 float32 的乘积可能溢出，这样的行直接按定义裁决


_Function = TypeVar("_Function", bound=Callable[..., Any])


def untraced(function: _Function) -> _Function:
    """让 torch.compile 不去追踪这个函数，效果同 `torch.compiler.disable`。

    后者在装饰时就导入 torch._dynamo，每条命令都要白等一秒多；这里推迟到别人导入它之后的第一次调用。
    """
    hidden: list[Any] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # 没有导入它，就不可能正在编译
            return function(*args, **kwargs)
        if not hidden:
            hidden.append(torch.compiler.disable(function))
            with contextlib.suppress(ImportError):  # 没有它只是多几次断图
                from torch._dynamo.decorators import skip

                skip(call)  # `call` 自己这一帧也不必追踪
        return hidden[0](*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # Dynamo 认这个标记，在调用处断图
    return cast(_Function, call)


class PreparedCodebook:
    """为搜索整理好的码本，自带所需数据的副本；由 `prepare` 创建，只有 `refresh_` 会改它。

    Attributes:
        size: 码字数 K。
        width: 宽度 H。
        path: 用哪条路径搜索，见 `SEMID_SEARCH`。
        isa: 编译路径的指令集；不走编译内核为 None。
        table: 码字。编译路径是面板 (P, H, 32)，又有 halves 的是 (K', H)；其余是 (K', H+1)，每行 [c | 偏置]，
            偏置随乘积一起加。
        halves: 提名用的低精度码字，没有为 None。编译路径的形状见 `isa.Packing`；CUDA 是 bfloat16 的 (K', W)，见
            `products.pack_halves`。
        bias: (K',) −‖c‖²/2，重复的码字与填充是 −inf。
        norm: (K',) ‖c‖ 的上界；`panel_norm` (P,) 与 `top_norm` 是它的最大值。
        top_loss: 有 halves 时，‖c − c̃‖ / ‖c‖ 的最大值，c̃ 是低精度的码字。
        twin: (K',) bool，重复的码字（不含编号最低的那个）与填充。
        revision: 整理过几次；由它派生的东西（束搜索的内积表）据此知道自己过期了。
        bound: 误差界的系数 (范数上限, γ, 0.6γ, η, τ)，见文件开头。
    """

    def __init__(self, weight: torch.Tensor, path: str, isa: Isa | None) -> None:
        size, width = weight.shape
        padded = -(-size // _PANEL) * _PANEL
        self.size, self.width, self.path, self.isa = size, width, path, isa
        self.halves: torch.Tensor | None = None
        if isa is None:
            self.table = weight.new_zeros(padded, width + 1)
            if path == "torch" and mixed_product(weight.device):
                self.halves = pack_halves(weight.new_zeros(padded, width), weight.new_zeros(padded))
        else:
            packing = isa.packing
            packed = torch.zeros(packing.shape(padded // _PANEL, width), dtype=packing.dtype)
            self.table = weight.new_zeros(padded, width) if packing.rows else packed
            self.halves = packed if packing.rows else None
        self.bias = weight.new_zeros(padded)  # (K',)
        self.norm = weight.new_zeros(padded)  # (K',)
        self.panel_norm = weight.new_zeros(padded // _PANEL)  # (P,)
        self.top_norm = self.top_loss = 0.0
        self.twin = torch.ones(padded, dtype=torch.bool, device=weight.device)  # (K',)
        self.revision = 0
        m = width + 8
        gamma = 1.001 * m * 2.0**-24 / (1 - m * 2.0**-24)
        self.bound = (_LIMIT, gamma, 0.6 * gamma, (width + 16) * 2.0**-53, m * 2.0**-124)
        self._loss = weight.new_zeros(size)  # (K,) ‖c − c̃‖ / ‖c‖ 的上界
        self._half = weight.new_full((padded,), float("inf"))  # (K',) ‖c‖²/2
        self._keys = torch.zeros(size, dtype=torch.int64, device=weight.device)  # (K,) 行内容的散列
        self._same_as = torch.full_like(self._keys, -1)  # (K,) 内容相同的前一行
        self._sample = _sample_of(weight).clone()
        self._source = (0, 0)

    @untraced
    def refresh_(self, weight: torch.Tensor, rows: torch.Tensor) -> None:
        """码本的 `rows` 行变了：只重新整理这些行，其余向量级的量整体重算（O(K)，很便宜）。

        Args:
            weight: (K, H) 当前码本。
            rows: (R,) 变了的行号，可以重复。
        """
        weight = _as_weight(weight)
        if weight.shape != (self.size, self.width) or weight.device != self.table.device:
            raise InputError(
                f"weight is {tuple(weight.shape)} on {weight.device}, but the prepared codebook is "
                f"{(self.size, self.width)} on {self.table.device}; call prepare again"
            )
        # 推理模式里生成的张量，出来之后不许就地改，训练的一步就刷新不了它
        with torch.inference_mode(False), torch.no_grad():
            rows = rows.to(weight.device)
            for part in rows.split(2048):  # 分块：float64 与 int64 的中间量有界
                self._pack(weight, part)
            self._finish(weight, rows)

    @untraced
    def is_current(self, weight: torch.Tensor, rows: int = 0) -> bool:
        """整理之后 `weight` 是否没变过：看地址、版本号，抽几十个元素；要找的行够多时逐元素核对。

        torch 的运算都涨版本号，换掉整个张量会换地址；`.data` 与 NumPy 的改写两样都不动，整个数组的改写瞒不过抽样，
        只改一部分的要等到逐元素核对：它比找 `_WORTH_CHECKING` 行便宜几十倍，却比找一行贵得多。

        Args:
            weight: (K, H) 当前码本。
            rows: 接下来要找几行。
        """
        if weight.shape != (self.size, self.width) or weight.device != self.table.device:
            return False
        weight = weight.detach()
        if _source_of(weight) != self._source or not torch.equal(_sample_of(weight), self._sample):
            return False
        return rows < _WORTH_CHECKING or torch.equal(weight, self._codewords())

    def _codewords(self) -> torch.Tensor:
        """(K, H) 整理时的码字；−0.0 已变成 0.0，与原来的相等。"""
        if self.isa is None:
            return self.table[: self.size, :-1]
        return (self.table if self.halves is not None else self.table.transpose(1, 2).flatten(0, 1))[: self.size]

    def _pack(self, weight: torch.Tensor, rows: torch.Tensor) -> None:
        """写入这些行的码字、范数、散列与抽样。"""
        codes = weight[rows] + 0.0  # (R, H)；−0.0 变成 0.0，散列才认得出它们相同
        square = codes.double().square().sum(1)  # (R,)
        if self.isa is None:
            self.table[rows, :-1] = codes
            losses = codes.new_zeros(()) if self.halves is None else bfloat16_losses(codes)
        else:
            if self.halves is not None:
                self.table[rows] = codes
            losses = pack(self.isa, codes, rows, self.table if self.halves is None else self.halves)
        self._loss[rows] = losses.float() * (1 + 1e-6)
        self._half[rows] = (square * 0.5).float()
        self.norm[rows] = (square.sqrt() * (1 + 1e-6)).float()
        self._keys[rows] = (codes.view(torch.int32).long() * _multipliers(self.width, weight.device)).sum(1)

    def _finish(self, weight: torch.Tensor, rows: torch.Tensor) -> None:
        """由逐行的量得出偏置：重复的码字只留编号最低的一个，其余偏置 −inf。"""
        self.revision += 1
        fresh = torch.zeros(self.size, dtype=torch.bool, device=weight.device)
        fresh[rows] = True
        self._same_as = _predecessors(self._keys, weight, self._same_as, fresh)
        torch.ge(self._same_as, 0, out=self.twin[: self.size])
        torch.neg(self._half, out=self.bias)
        self.bias.masked_fill_(self.twin, float("-inf"))
        if self.isa is None:
            self.table[:, -1] = self.bias
            if self.halves is not None:  # 重复的码字变了，偏置就变了：整个重写，一遍内存
                self.halves = pack_halves(self.table[:, :-1], -self.bias)
        torch.amax(self.norm.view(-1, _PANEL), 1, out=self.panel_norm)
        self.top_norm, self.top_loss = float(self.panel_norm.amax()), float(self._loss.amax())
        self._source, self._sample = _source_of(weight), _sample_of(weight).clone()


@untraced
def prepare(weight: torch.Tensor) -> PreparedCodebook:
    """整理码本供 `nearest` 反复使用。

    Args:
        weight: (K, H) float32，K ≥ 1，H ≥ 1，全部有限。

    Returns:
        整理好的码本；之后 `weight` 变了用 `refresh_` 或重新 `prepare`。

    Raises:
        ValueError: 形状或 dtype 不对，或环境变量 `SEMID_SEARCH` 不认识。
        RuntimeError: `SEMID_SEARCH` 点名的路径在本机没有。
    """
    weight = _as_weight(weight)
    with torch.inference_mode(False), torch.no_grad():
        book = PreparedCodebook(weight, *_choose_path(weight.device))
        book.refresh_(weight, torch.arange(weight.shape[0]))
    return book


def _choose_path(device: torch.device) -> tuple[str, Isa | None]:
    """环境变量 `SEMID_SEARCH` 选路径；不在 CPU 上的码本总走 torch。"""
    wish = os.environ.get("SEMID_SEARCH", "auto")
    if wish not in _PATHS:
        raise InputError(f"SEMID_SEARCH={wish!r} is not supported; use one of {', '.join(_PATHS)}")
    if device.type != "cpu":
        return "torch", None
    compiled = {isa.name: isa for isa in available()}
    if wish == "auto":
        wish = list(compiled)[-1] if compiled else "numpy"
    if wish not in (*_FALLBACKS, *compiled):
        raise RuntimeError(
            f"SEMID_SEARCH={wish!r} needs the compiled kernel and a processor that supports it; available here: "
            f"{', '.join((*_FALLBACKS, *compiled))}; use auto, or build with: python setup.py build_ext --inplace"
        )
    return wish, compiled.get(wish)


def _as_weight(weight: torch.Tensor) -> torch.Tensor:
    """码本的形状与 dtype。"""
    if weight.ndim != 2 or weight.shape[0] < 1 or weight.shape[1] < 1 or weight.dtype != torch.float32:
        raise InputError(f"weight must be float32 of shape (K, H), got {weight.dtype} {tuple(weight.shape)}")
    return weight.detach()


def _source_of(weight: torch.Tensor) -> tuple[int, int]:
    """地址与版本号；推理模式下生成的张量没有版本号，记 −1。"""
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


def _sample_of(weight: torch.Tensor) -> torch.Tensor:
    """(约 64,) 等距抽的元素；等距而不与行宽对齐，每列都抽得到。"""
    return weight.reshape(-1)[:: max(1, weight.numel() // _SAMPLES) | 1]


def _multipliers(width: int, device: torch.device) -> torch.Tensor:
    """(H,) 散列用的奇数乘子；相同散列还会逐元素核对，所以它不必难以碰撞，只要求固定。"""
    return (torch.arange(1, width + 1, dtype=torch.int64, device=device) * 0x9E3779B97F4A7C1 ^ 0x5DEECE66D) | 1


def _predecessors(keys: torch.Tensor, weight: torch.Tensor, known: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """(K,) int64：散列相同的前一行，且内容逐元素相同；没有则 −1。

    上次核对过（`known`）而两行都没变（不在 `fresh` 里）的对不再核对：训练从数据行出发时，上层的码字减掉自己剩下全零，
    一个码本里可以有一千多个相同的码字，每一步都逐元素比一遍要占一步的一成。
    """
    out = torch.full_like(known, -1)
    rows = _repeated(keys) if keys.device.type == "cpu" else torch.arange(keys.shape[0], device=keys.device)
    ordered, order = torch.sort(keys[rows], stable=True)
    order = rows[order]
    same = (ordered[1:] == ordered[:-1]).nonzero()[:, 0]
    later, earlier = order[same + 1], order[same]
    sure = (known[later] == earlier) & ~fresh[later] & ~fresh[earlier]
    out[later[sure]] = earlier[sure]
    unsure = (~sure).nonzero()[:, 0]
    for part in unsure.split(4096):
        second, first = later[part], earlier[part]
        equal = (weight[second] == weight[first]).all(1)
        out[second[equal]] = first[equal]
    return out


def _repeated(keys: torch.Tensor) -> torch.Tensor:
    """散列与别的行相同的行号，升序。

    `np.sort` 比带下标的稳定排序快十几倍；每一步训练都要查一遍而重复总是少数：先排序找出重复的散列，只让它们带下标再排。
    """
    values = keys.numpy()
    ordered = np.sort(values)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated) == 0:
        return torch.empty(0, dtype=torch.int64)
    place = np.searchsorted(repeated, values)
    place[place == len(repeated)] = 0
    return torch.from_numpy((repeated[place] == values).nonzero()[0])
