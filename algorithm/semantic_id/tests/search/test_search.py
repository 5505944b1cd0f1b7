"""最近码字搜索：每条路径都与测试里独立写的 float64 穷举逐个核对，答案只由（行，码本）决定。"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from algorithm.semantic_id.search import isa, prepared, products, tiles
from algorithm.semantic_id.search.nearest import nearest, prepare
from algorithm.semantic_id.tests.search.search_cases import PATHS, brute_force, gaussian, near_ties

# ---- 与定义一致 ----

SHAPES = [(1, 1), (1, 40), (2, 3), (33, 1), (31, 17), (32, 16), (257, 100), (1000, 31), (1100, 260)]


@pytest.mark.parametrize(("size", "width"), SHAPES)
def test_agrees_with_brute_force(path, size, width):
    weight = gaussian(size, width)
    x = torch.cat([gaussian(60, width, seed=2), near_ties(weight, 60), weight[:20]])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-9, 1.0, 1e6, 1e12, 1e14])
def test_every_scale(path, scale):
    weight = gaussian(150, 40, scale=scale)
    x = torch.cat([gaussian(40, 40, seed=2, scale=scale), near_ties(weight, 40)])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("swap", [False, True])
def test_rounding_as_bad_as_the_bound_allows(path, width, swap):
    """逐项累加的舍入全朝一边：一个码字的每一项都差一点进位，全丢了；另一个的每一项都刚好进位，多算一倍。

    两个 float32 得分之差因此约等于两倍误差界，而真正近的是得分低的那个：界少算一半，答案就错。
    """
    x, weight = torch.empty(5, width), gaussian(70, width, seed=3) * 2.0**-12
    far, near = (5, 40) if swap else (40, 5)
    weight[far], weight[near] = 1.01 * 2.0**-12, 0.99 * 2.0**-12
    weight[far, 0], weight[near, 0] = 1.0, 1.0 + width * 2.0**-28 + 2.0**-22
    for row in range(5):  # 首项略大于 2 的幂，它的半个 ulp 约是自己的 2⁻²⁴
        x[row] = 2.0 ** (2 + row)
        x[row, 0] = 2.0 ** (14 + row) * (1 + 2.0**-12)
    plain = torch.full((5, 2), 0.0)  # 逐项累加的 float32 得分
    for d in range(width):
        plain += x[:, d : d + 1] * weight[[near, far], d]
    want = brute_force(x, weight)
    assert (plain[:, 1] - plain[:, 0] > 1.6 * width * 2.0**-24 * x[:, 0]).all()
    assert want == [near] * 5
    assert nearest(x, prepare(weight)).tolist() == want


@pytest.mark.parametrize("odd", [1e6, 1e15, 1e20, 3e38])
def test_a_giant_codeword_beside_ordinary_ones(path, odd):
    """float32 的 ‖c‖² 会溢出成 inf；也不该让其余码字的候选泛滥成错。"""
    weight = gaussian(200, 24)
    weight[77] = odd
    x = torch.cat([gaussian(30, 24, seed=2), near_ties(weight[:70], 30), torch.full((1, 24), 1e15)])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


def test_many_exact_ties_go_to_the_lowest_index(path):
    """±e_i 到原点全部等距：候选多到放不下，仍然答 0。"""
    weight = torch.cat([torch.eye(100), -torch.eye(100)])
    x = torch.cat([torch.zeros(50, 100), gaussian(50, 100, seed=2)])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


@pytest.mark.parametrize("size", [3, 20, 200])
def test_rounding_of_the_definition_decides(path, size):
    """坐标互为排列的码字到常向量在数学上等距，谁近只看 float64 求和的次序：换一种次序就换一个答案。"""
    base, generator = gaussian(48, seed=6), torch.Generator().manual_seed(7)
    weight = torch.stack([base[torch.randperm(48, generator=generator)] for _ in range(size)])
    x = torch.linspace(-1, 1, 60)[:, None].expand(60, 48)
    want = brute_force(x, weight)
    assert len(set(want)) > 1
    assert nearest(x, prepare(weight)).tolist() == want


def test_all_codewords_are_giants(path):
    """‖c‖² 在 float32 里全是 inf：没有提名，只有定义。"""
    weight = gaussian(70, 24, scale=1e20)
    x = torch.cat([gaussian(20, 24, seed=2), torch.full((1, 24), 1e15)])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


def test_collapsed_codebook(path):
    """码字之间只差 float32 的最后几位：全部是候选，只有定义分得清。"""
    weight = 1 + 1e-6 * gaussian(500, 48)
    x = torch.cat([gaussian(20, 48, seed=2), near_ties(weight, 20)])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


@pytest.mark.parametrize("size", [40, 600])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_codewords_that_bfloat16_cannot_tell_apart(path, size, offset):
    """码字之间只差 bfloat16 存不下的位，连同离原点很远的数据：提名分不清，答案仍按定义。"""
    weight = gaussian(1, 64) + offset + 2e-3 * gaussian(size, 64, seed=3)
    x = torch.cat(
        [weight + 1e-3 * gaussian(size, 64, seed=4), near_ties(weight, 40), offset + gaussian(30, 64, seed=5)]
    )
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


@pytest.mark.parametrize("path", [row.name for row in isa.available() if "int16" in row.name])
@pytest.mark.parametrize("width", [1, 7, 256, 1031])
def test_int16_keeps_its_promises(path, width, monkeypatch):
    """每个元素与每个部分和都放得进去，误差不超过报告的：尖的、平的、极大极小的码字都一样。"""
    monkeypatch.setenv("SEMID_SEARCH", path)
    spike, flat = torch.zeros(width), torch.ones(width)
    spike[width // 2] = -1.0
    parts = [*gaussian(40, width), *(gaussian(5, width) ** 9), spike, flat, spike * 3e-20, flat * 1e15, flat * 0]
    weight = torch.stack(parts)
    book = prepare(weight)
    assert book.halves is not None
    words = book.halves.movedim(1, 2).reshape(-1, book.halves.shape[1])[: len(weight)].contiguous()  # (K, ⌈H/2⌉ + 1)
    whole = words[:, :-1].contiguous().view(torch.int16)[:, :width].double()  # (K, H)
    scale = words[:, -1:].contiguous().view(torch.float32).double()  # (K, 1)
    assert whole.norm(dim=1).square().max() < 2**31
    lost = (weight.double() - whole * scale).norm(dim=1)  # (K,)
    assert (lost <= book.top_loss * weight.double().norm(dim=1)).all()
    assert 0 < book.top_loss < 2e-3


def test_rows_that_bfloat16_cannot_settle_are_scored_again_in_float32(monkeypatch):
    """逐一比较一行要几千次小运算：只该留给 float32 也分不清的行。"""
    monkeypatch.setenv("SEMID_SEARCH", "torch")

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(a.float(), b.float(), out=out)

    def refuse(x: torch.Tensor, codes: object) -> torch.Tensor:
        raise AssertionError(f"{len(x)} rows were compared with every codeword")

    for module in (prepared, products):
        monkeypatch.setattr(module, "mixed_product", lambda device: product)
    monkeypatch.setattr(tiles, "brute_force", refuse)
    weight = 30 + gaussian(600, 64)
    x = torch.cat([30 + gaussian(90, 64, seed=2), gaussian(20, 64, seed=3)])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 70), width=st.integers(1, 35), route=st.sampled_from(PATHS))
def test_small_integers_tie_often(data, size, width, route):
    """小整数网格上并列极多，也有 −0.0。"""
    grid = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1e-30, 3e7])
    weight = torch.from_numpy(data.draw(hnp.arrays(np.float32, (size, width), elements=grid, fill=st.just(0.0))))
    x = torch.from_numpy(data.draw(hnp.arrays(np.float32, (9, width), elements=grid, fill=st.just(1.0))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMID_SEARCH", route)
        assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


# ---- 一个向量只有一个 ID ----


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 256, 8192])
def test_company_does_not_matter(path, crowd, batch):
    x, weight, truth = crowd
    book = prepare(weight)
    rows = x[: 600 if batch < 256 else 8192]
    got = torch.cat([nearest(part, book) for part in rows.split(batch)])
    assert torch.equal(got[:600], truth)
    assert torch.equal(got, nearest(x, book)[: len(rows)])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_order_and_threads_do_not_matter(path, crowd, threads):
    x, weight, truth = crowd
    book = prepare(weight)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    got = torch.empty(len(x), dtype=torch.int64)
    got[order] = nearest(x[order], book, num_threads=threads)
    assert torch.equal(got[:600], truth)
    assert torch.equal(got, nearest(x, book, num_threads=1))


def test_strides_do_not_matter(path, crowd):
    x, weight, truth = crowd
    x, book = x[:600], prepare(weight)
    wide = torch.zeros(1200, 151)
    wide[::2, 1::3] = x
    backwards = x.T.contiguous().T
    for view in (wide[::2, 1::3], backwards, x[:1].expand(600, -1)):
        want = truth if view.shape[0] == 600 and view.stride(0) else truth[:1].expand(600)
        assert torch.equal(nearest(view, book), want)


def test_paths_agree_on_many_rows(crowd, monkeypatch):
    x, weight, _ = crowd
    answers = {}
    for name in PATHS:
        monkeypatch.setenv("SEMID_SEARCH", name)
        answers[name] = nearest(x, prepare(weight)).tolist()
    assert all(answer == answers["numpy"] for answer in answers.values())


@pytest.mark.parametrize("product", [products._with_numpy, products._with_torch])
def test_the_product_does_not_matter(crowd, monkeypatch, product):
    """NumPy 后备路径用哪一家的 BLAS，编号都一样。"""
    x, weight, truth = crowd
    monkeypatch.setenv("SEMID_SEARCH", "numpy")
    monkeypatch.setattr(products, "_WORTH_CHOOSING", 0)
    monkeypatch.setattr(products, "_faster_product", lambda: product)
    assert torch.equal(nearest(x, prepare(weight))[:600], truth)


def test_the_faster_product_is_one_of_the_two():
    assert products._faster_product() in (products._with_numpy, products._with_torch)


def test_float32_alone_would_be_wrong(crowd):
    """这份数据有牙齿：只凭 float32 得分，近乎并列的行会答错，所以上面的测试看得见裁决丢了没有。"""
    x, weight, truth = crowd
    plain = torch.addmm(weight.square().sum(1), x[:400], weight.T, alpha=-2).argmin(1)
    assert (plain != truth[:400]).sum() > 20


# ---- 重复的码字 ----


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_identical_codebook(path, value):
    """16384 个相同的码字，答案是 0；快慢见 `bench_encode.py --twins`。"""
    book = prepare(torch.full((16384, 32), value))
    assert nearest(gaussian(600, 32), book).eq(0).all()


def test_hundreds_of_twins(path):
    weight = gaussian(900, 30)
    weight[100:500] = weight[99]
    weight[500:600] = 0.0
    weight[550:] *= -1.0  # −0.0 与 0.0 是同一个码字
    x = torch.cat([near_ties(weight, 40), weight[90:110], torch.zeros(3, 30), gaussian(40, 30, seed=4)])
    got = nearest(x, prepare(weight)).tolist()
    assert got == brute_force(x, weight)
    assert got[60:63] == [500] * 3


def test_equal_hashes_are_not_taken_for_equal_codewords(path, monkeypatch):
    monkeypatch.setattr(
        "algorithm.semantic_id.search.prepared._multipliers", lambda width, device: torch.zeros(1).long()
    )
    weight = gaussian(50, 10)
    weight[30:40] = weight[3]
    x = torch.cat([gaussian(30, 10, seed=2), weight])
    assert nearest(x, prepare(weight)).tolist() == brute_force(x, weight)
