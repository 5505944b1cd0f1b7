"""束搜索：每条路径都与测试里独立写的 float64 穷举逐条核对，答案只由（行，模型）决定，从不比贪心差。"""

from __future__ import annotations

import math
from typing import Dict, List, Tuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.search import beam, isa
from algorithm.semantic_id.search import prepared as prepared_module
from algorithm.semantic_id.search.nearest import nearest, prepare

PATHS = ("numpy", "torch", *(row.name for row in isa.available()))


def rewrite_isas(monkeypatch, **changes) -> None:
    """之后整理的码本，指令集的行按 `changes` 改写。"""
    rows = tuple(row._replace(**changes) for row in prepared_module.available())
    monkeypatch.setattr(prepared_module, "available", lambda: rows)


def choose_path(monkeypatch, name: str) -> None:
    """之后整理的码本走这条路径；行少时 int16 不查表，这里的行都不多，而要测的正是查表，所以总让它查。"""
    monkeypatch.setenv("SEMID_SEARCH", name)
    for row in isa.available():
        if row.name == name and not math.isinf(row.packing.table_rows):
            rewrite_isas(monkeypatch, packing=row.packing._replace(table_rows=0))


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    choose_path(monkeypatch, request.param)
    return request.param


def gaussian(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def make_books(sizes: Tuple[int, ...], width: int, seed: int = 0, scale: float = 1.0) -> List[torch.Tensor]:
    """逐层缩小的码本，像真的残差码本。"""
    return [gaussian(size, width, seed=seed + i, scale=scale * 0.6**i) for i, size in enumerate(sizes)]


def distances(row: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """search.py 的定义：float64，16 路，每路按 d 递增累加，再 8、4、2、1 折半。"""
    lanes = np.zeros((len(codes), 16))
    for d in range(codes.shape[1]):
        gap = np.float64(row[d]) - codes[:, d].astype(np.float64)
        lanes[:, d % 16] += gap * gap
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def reference(z: torch.Tensor, books: List[torch.Tensor], width: int) -> List[List[Tuple[float, Tuple[int, ...]]]]:
    """beam.py 定义的直译：每行的（误差，路径），已排序；贪心不在前 width 名时顶替最后一名。"""
    weights = [book.numpy() for book in books]
    alive = []
    for weight in weights:
        seen: Dict[bytes, int] = {}
        alive.append([i for i, row in enumerate(weight) if seen.setdefault((row + 0.0).tobytes(), i) == i])
    out = []
    for row in z.numpy():
        paths = [(0.0, (), row)]
        greedy: Tuple[int, ...] = ()
        for weight, codes in zip(weights, alive, strict=True):
            every = []
            for _, prefix, residual in paths:
                far = distances(residual, weight[codes])
                every += [(float(e), (*prefix, c), residual - weight[c]) for e, c in zip(far, codes, strict=True)]
            every.sort(key=lambda item: item[:2])
            heir = next(item for item in every if item[1][:-1] == greedy)
            greedy = heir[1]
            paths = every[:width] + [heir] * all(item[1] != greedy for item in every[:width])
        if len(paths) > width:
            paths = paths[: width - 1] + paths[width:]
        out.append([item[:2] for item in paths])
    return out


def run(z: torch.Tensor, books: List[torch.Tensor], width: int, tables: bool = True, threads: int | None = None):
    prepared = [prepare(book) for book in books]
    products = beam.InnerProducts(prepared)
    products.grow_(books, 10**9, width + 1, 1 << 30 if tables else 0)
    return beam.search(z, books, prepared, width, products, num_threads=threads)


def listed(codes: torch.Tensor, errors: torch.Tensor) -> List[List[Tuple[float, Tuple[int, ...]]]]:
    """张量 → 与 `reference` 同样的形式，去掉填充。"""
    out = []
    for row, error in zip(codes.tolist(), errors.tolist(), strict=True):
        out.append([(e, tuple(c)) for e, c in zip(error, row, strict=True) if c[0] >= 0])
    return out


def near_ties(books: List[torch.Tensor], count: int, seed: int = 1) -> torch.Tensor:
    """两条路径的中点：float32 的得分分不出谁近。"""
    generator = torch.Generator().manual_seed(seed)
    ends = [sum(b[torch.randint(len(b), (count,), generator=generator)] for b in books) for _ in range(2)]
    return (ends[0] + ends[1]) / 2


# ---- 与定义一致 ----

SHAPES = [((5,), 3), ((40, 9), 17), ((33, 64, 20), 31), ((7, 1, 70, 5), 16), ((1, 1), 1), ((130, 260, 70), 48)]


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4, 16])
@pytest.mark.parametrize(("sizes", "dim"), SHAPES)
def test_agrees_with_brute_force(path, sizes, dim, width, tables):
    books = make_books(sizes, dim)
    z = torch.cat([gaussian(25, dim, seed=9), near_ties(books, 12)])
    assert listed(*run(z, books, width, tables)) == reference(z, books, width)


def test_an_empty_group_of_a_near_path_is_no_candidate_of_a_far_one(path):
    """码本小到有整组的填充：它的「得分」加上近的路径的误差，比远的路径的真候选还高，不许把后者挤掉。"""
    level1 = torch.tensor([[-0.6147335171699524], [-1.607185959815979], [-1.5554362535476685], [-0.7447212934494019]])
    books = [level1, torch.tensor([[-0.8331847786903381]]), torch.tensor([[0.3599998354911804]])]
    z = torch.tensor([[0.82089763879776]])
    want = reference(z, books, 2)
    assert [codes for _, codes in want[0]] == [(0, 0, 0), (3, 0, 0)]
    assert listed(*run(z, books, 2)) == want


@pytest.mark.parametrize("width", [64, 300])
def test_beam_wider_than_the_codebook(path, width):
    books = make_books((6, 5, 4), 8)
    z = gaussian(9, 8, seed=9)
    got = listed(*run(z, books, width))
    assert got == reference(z, books, width)
    assert len(got[0]) == min(width, 120)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-9, 1e6, 1e14])
def test_every_scale(path, scale, tables):
    books = make_books((40, 50, 20), 20, scale=scale)
    z = torch.cat([gaussian(15, 20, seed=9, scale=scale), near_ties(books, 10)])
    assert listed(*run(z, books, 4, tables)) == reference(z, books, 4)


@pytest.mark.parametrize("width", [1, 4])
def test_many_slices_and_rows_of_every_size(path, width):
    """码本跨几片、末片不满；后备路径的定点数只装得下其中一些行。"""
    books = make_books((30, 2100, 1030), 12)
    books[1][2050] = books[1][3]
    z = torch.cat([gaussian(4, 12, seed=9, scale=scale) for scale in (1e-3, 0.1, 1.0, 4.0, 1e3, 1e9)])
    assert listed(*run(z, books, width)) == reference(z, books, width)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("odd", [1e6, 1e15, 1e20])
def test_a_giant_codeword_beside_ordinary_ones(path, odd, level):
    books = make_books((40, 50, 20), 20)
    books[level][7] = odd
    z = torch.cat([gaussian(15, 20, seed=9), torch.full((1, 20), 1e15)])
    assert listed(*run(z, books, 3)) == reference(z, books, 3)


@pytest.mark.parametrize("tables", [True, False])
def test_twins_take_part_once(path, tables):
    books = make_books((60, 70, 40), 12)
    books[0][10:40] = books[0][9]
    books[1][5:60] = 0.0
    books[1][30:60] *= -1.0  # −0.0 与 0.0 是同一个码字
    books[2][:] = 0.0
    z = torch.cat([gaussian(15, 12, seed=9), near_ties(books, 10), books[0][8:12], torch.zeros(1, 12)])
    got = listed(*run(z, books, 4, tables))
    assert got == reference(z, books, 4)
    assert all(codes[2] == 0 for row in got for _, codes in row)


@pytest.mark.parametrize("tables", [True, False])
def test_collapsed_codebook(path, tables):
    """码字之间只差 float32 的最后几位：全部是候选，只有定义分得清。"""
    books = [1 + 1e-6 * gaussian(200, 24), 1e-6 * gaussian(150, 24, seed=1), gaussian(30, 24, seed=2, scale=1e-7)]
    z = gaussian(6, 24, seed=9)
    assert listed(*run(z, books, 4, tables)) == reference(z, books, 4)


@pytest.mark.parametrize("tables", [True, False])
def test_codewords_that_bfloat16_cannot_tell_apart(path, tables):
    """第一层只差 bfloat16 存不下的位，数据还离原点很远：提名分不清，答案仍按定义。"""
    books = [20 + gaussian(1, 24) + 2e-3 * gaussian(200, 24, seed=1), *make_books((150, 30), 24, scale=1e-3)]
    z = torch.cat([books[0][:8] + 1e-3 * gaussian(8, 24, seed=9), near_ties(books, 8)])
    assert listed(*run(z, books, 4, tables)) == reference(z, books, 4)


def test_many_exact_ties_go_to_the_lowest_codes(path):
    """±e_i 到原点全部等距：并列按编号字典序。"""
    cross = torch.cat([torch.eye(50), -torch.eye(50)])
    z = torch.cat([torch.zeros(3, 50), gaussian(5, 50, seed=9)])
    got = listed(*run(z, [cross, cross.clone()], 5))
    assert got == reference(z, [cross, cross], 5)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), route=st.sampled_from(PATHS), tables=st.booleans())
def test_small_integers_tie_often(data, route, tables):
    dim, width = data.draw(st.integers(1, 18)), data.draw(st.sampled_from([1, 2, 3, 8]))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    books = [torch.randint(-1, 2, (size, dim), generator=generator).float() for size in sizes]
    z = torch.randint(-2, 3, (5, dim), generator=generator) * 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMID_SEARCH", route)
        assert listed(*run(z, books, width, tables)) == reference(z, books, width)


# ---- 与贪心的关系 ----


def greedy_codes(z: torch.Tensor, books: List[torch.Tensor]) -> torch.Tensor:
    codes = []
    for book in books:
        codes.append(nearest(z, prepare(book)))
        z = z - book[codes[-1]]
    return torch.stack(codes, 1)


def test_width_one_is_greedy(path, crowd):
    z, books = crowd
    codes, _ = run(z, books, 1)
    assert torch.equal(codes[:, 0], greedy_codes(z, books))


@pytest.mark.parametrize("width", [2, 4, 16])
def test_never_worse_than_greedy_and_greedy_is_a_candidate(path, crowd, width):
    z, books = crowd
    codes, errors = run(z, books, width)
    _, greedy_errors = run(z, books, 1)
    assert (errors[:, 0] <= greedy_errors[:, 0]).all()
    assert (errors[:, 0] < greedy_errors[:, 0]).sum() > len(z) // 5  # 束确实有用
    assert (codes == greedy_codes(z, books)[:, None]).all(2).any(1).all()
    assert (errors[:, 1:] >= errors[:, :-1]).all()


def test_the_pin_is_what_keeps_greedy(path):
    """贪心路径中途掉出前两名，最后却是最好的：没有钉住它，这一行会比贪心差。"""
    far = 1000.0
    books = [
        torch.tensor([[1.0, 0.0], [-1.1, 0.0], [1.2, 0.0], [0.0, far]]),
        torch.tensor([[9.0, 9.0], [0.9, 0.0], [-1.0, 0.05], [-1.1, 0.0]]),
        torch.tensor([[0.0, 0.0], [-0.8, 0.0]]),
    ]
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=generator)
    with_pin = run(z, books, 2)[1][:, 0]
    greedy = run(z, books, 1)[1][:, 0]
    assert (with_pin <= greedy).all()
    unpinned = []
    for row in z[:400].numpy():
        paths = [(0.0, row)]
        for book in books:
            codes = book.numpy()
            every = [(float(e), r - c) for _, r in paths for e, c in zip(distances(r, codes), codes, strict=True)]
            paths = sorted(every, key=lambda item: item[0])[:2]
        unpinned.append(paths[0][0])
    assert (torch.tensor(unpinned) > greedy[:400]).any()  # 这份数据有牙齿


# ---- 一个向量只有一个答案 ----


@pytest.fixture(scope="module")
def crowd() -> Tuple[torch.Tensor, List[torch.Tensor]]:
    books = make_books((90, 200, 130), 40)
    books[1][::5] = books[1][torch.arange(40) * 3 + 1]
    return torch.cat([near_ties(books, 300), gaussian(900, 40, seed=9)]), books


@pytest.fixture(scope="module")
def truth(crowd) -> Tuple[torch.Tensor, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMID_SEARCH", "numpy")
        codes, errors = run(*crowd, 4)
    assert listed(codes[280:330], errors[280:330]) == reference(crowd[0][280:330], crowd[1], 4)
    return codes, errors


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 7, 256, 1200])
def test_company_does_not_matter(path, crowd, truth, batch, tables):
    z, books = crowd
    prepared = [prepare(book) for book in books]
    products = beam.InnerProducts(prepared)
    products.grow_(books, 10**9, 4, 1 << 30 if tables else 0)
    rows = 150 if batch < 256 else len(z)
    parts = [beam.search(part, books, prepared, 4, products) for part in z[:rows].split(batch)]
    assert torch.equal(torch.cat([codes for codes, _ in parts]), truth[0][:rows])
    assert torch.equal(torch.cat([errors for _, errors in parts]), truth[1][:rows])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_order_and_threads_do_not_matter(path, crowd, truth, threads, monkeypatch):
    rewrite_isas(monkeypatch, worth_threads=0)
    z, books = crowd
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(3))
    codes, errors = run(z[order], books, 4, threads=threads)
    assert torch.equal(codes, truth[0][order])
    assert torch.equal(errors, truth[1][order])


def test_strides_do_not_matter(path, crowd, truth):
    z, books = crowd
    wide = torch.zeros(400, 121)
    wide[::2, 1::3] = z[:200]
    assert torch.equal(run(wide[::2, 1::3], books, 4)[0], truth[0][:200])
    assert torch.equal(run(z[:200].T.contiguous().T, books, 4)[0], truth[0][:200])
    assert run(z[:0], books, 4)[0].shape == (0, 4, 3)


@pytest.mark.parametrize("budget", [0, 2 * 90 * 224, 4 * 90 * 224, 4 * 290 * 160, 1 << 30])
def test_the_table_budget_does_not_matter(path, crowd, truth, budget):
    z, books = crowd
    prepared = [prepare(book) for book in books]
    products = beam.InnerProducts(prepared)
    products.grow_(books, 10**9, 4, budget)
    assert sum(t.numel() * t.element_size() for t in products.tables if t is not None) <= budget
    codes, errors = beam.search(z, books, prepared, 4, products)
    assert torch.equal(codes, truth[0])
    assert torch.equal(errors, truth[1])


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_identical_codebook(path, value):
    """最后一层几千个相同的码字，只有编号最低的参与；快慢见 `bench_encode.py --twins`。"""
    z, books = gaussian(200, 32), [gaussian(64, 32, seed=1), torch.full((4096, 32), value)]
    codes, _ = beam.search(z, books, [prepare(book) for book in books], 4, num_threads=1)
    assert codes[:, :, 1].eq(0).all()


# ---- 内积表的寿命 ----


@pytest.mark.parametrize("path", [row.name for row in isa.available() if "int16" in row.name])
def test_few_rows_do_not_touch_the_tables(path, monkeypatch):
    """表里填了错的数：行少时看不出来，行多时看得出来；答案本身与有没有表无关。"""
    monkeypatch.setenv("SEMID_SEARCH", path)
    books = make_books((30, 40, 50), 8)
    prepared = [prepare(book) for book in books]
    z = gaussian(400, 8, seed=9)
    want = beam.search(z, books, prepared, 4)[0]
    products = beam.InnerProducts(prepared)
    products.grow_(books, 1 << 30, 4, 1 << 20)
    assert torch.equal(beam.search(z, books, prepared, 4, products)[0], want)
    for table in products.tables[1:]:
        assert table is not None
        table.fill_(3000)
    assert torch.equal(beam.search(z[:191], books, prepared, 4, products)[0], want[:191])
    assert not torch.equal(beam.search(z, books, prepared, 4, products)[0], want)


def test_tables_follow_the_budget_and_the_number_of_rows(path):
    books = make_books((30, 40, 50), 8)
    prepared = [prepare(book) for book in books]
    products = beam.InnerProducts(prepared)
    products.grow_(books, 9, 4, 1 << 20)
    assert [t is not None for t in products.tables] == [False, False, False]
    if path == "amx":  # 乘积比查表便宜，从不建表
        products.grow_(books, 1 << 30, 4, 1 << 20)
        assert [t is not None for t in products.tables] == [False, False, False]
        return
    products.grow_(books, 1, 4, 1 << 20)  # 10 行 × (4 − 1) ≥ 30
    assert [t is not None for t in products.tables] == [False, True, False]
    products.grow_(books, 1000, 4, 1 << 20)
    assert [t is not None for t in products.tables] == [False, True, True]
    products.grow_(books, 1, 4, 4 * 30 * 64)  # 放得下 L2 的表，放不下 L3 的 70 × 64 个数
    assert [t is not None for t in products.tables] == [False, True, False]
    books[1][3] += 1
    assert products.is_current(prepared)
    prepared[1].refresh_(books[1], torch.tensor([3]))
    assert not products.is_current(prepared)
