"""最近码字搜索各测试共用的夹具：逐条路径走一遍，一大群互相作伴的行。"""

from __future__ import annotations

import pytest
import torch

from algorithm.semantic_id.search import prepared, products
from algorithm.semantic_id.tests.search.search_cases import PATHS, brute_force, gaussian, near_ties


@pytest.fixture(params=(*PATHS, "torch bfloat16"))
def path(request, monkeypatch):
    """`torch bfloat16` 是 CUDA 走的路：CPU 没有 float32 累加的 bfloat16 乘积，用舍入之后的 float32 乘积代替。"""
    name, *mixed = request.param.split()
    monkeypatch.setenv("SEMID_SEARCH", name)
    if mixed:

        def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
            torch.mm(a.float(), b.float(), out=out)

        for module in (prepared, products):
            monkeypatch.setattr(module, "mixed_product", lambda device: product)
    return name


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """torch 自己的线程在繁忙的机器上空转等待，与被测的东西无关；多线程由用例显式要求。"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def crowd() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8192 行里有 400 个近乎并列；码本里每 5 个码字有一个重复。返回 x、码本、按定义的答案（只算前 600 行）。"""
    weight = gaussian(700, 50)
    weight[::5] = weight[torch.arange(140) * 3 + 1]
    x = torch.cat([near_ties(weight, 400), gaussian(7792, 50, seed=2)])
    return x, weight, torch.tensor(brute_force(x[:600], weight))
