"""去重：最优与穷举一致、与行序和分片无关、重复向量按 item_id、没有空码就点名。"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.catalog import Catalog, encode_catalog
from algorithm.semantic_id.catalog.unique.assign import NoFreeCodeError, check_policy, suffixes_of_sorted
from algorithm.semantic_id.catalog.unique.matching import Candidates, place, solve
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.fake_model import FakeModel

NAMES = ("l1", "l2", "l3")


def candidates(lists):
    """[[(费用, 码), …], …] → Candidates。"""
    ordered = [sorted(edges) for edges in lists]
    start = np.concatenate([[0], np.cumsum([len(edges) for edges in ordered])])
    flat = [edge for edges in ordered for edge in edges]
    return Candidates(start, np.array([c for _, c in flat], np.int64), np.array([f for f, _ in flat], np.float64))


def total(found, chosen):
    assert len(set(found.code[chosen].tolist())) == len(chosen), "two items on one code"
    return math.fsum(found.cost[chosen].tolist())


def brute_force(lists):
    """穷举：安置得下时的最小总费用，安置不下时 None。"""
    best = None
    for choice in itertools.product(*lists):
        if len({code for _, code in choice}) == len(choice):
            cost = math.fsum(cost for cost, _ in choice)
            best = cost if best is None else min(best, cost)
    return best


@st.composite
def problems(draw):
    count = draw(st.integers(1, 6))
    costs = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0, -0.5])
    edges = st.dictionaries(st.integers(0, 7), costs, min_size=1, max_size=5)
    return [[(cost, code) for code, cost in draw(edges).items()] for _ in range(count)]


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_optimum_agrees_with_brute_force(lists):
    found, best = candidates(lists), brute_force(lists)
    chosen, num_greedy = place(found)
    assert num_greedy == 0
    if best is None:
        assert (chosen < 0).any()
    else:
        assert total(found, chosen) == pytest.approx(best, abs=1e-9)
        greedy, _ = place(found, max_exact=1)
        if (greedy >= 0).all():
            assert total(found, greedy) >= best - 1e-9


def test_one_cluster_is_solved_to_the_optimum_even_along_long_chains():
    # 稠密的小问题：增广路要经过已经安置的物品好几次，少了势（price）的更新就会出错
    rng = np.random.default_rng(0)
    for _ in range(200):
        count, codes = 5, 6
        cost = rng.integers(0, 30, (count, codes)).astype(float)
        found = candidates([[(cost[i, j], j) for j in range(codes)] for i in range(count)])
        rows = np.arange(count)
        best = min(cost[rows, list(p)].sum() for p in itertools.permutations(range(codes), count))
        assert total(found, np.array(solve(found, range(count)))) == best


def test_greedy_is_worse_where_it_must_be_and_is_reported():
    # 0 号与 1 号抢码 0；贪心让 0 号以 0 拿下，1 号只剩 10；最优是 0 号让到 1
    lists = [[(0.0, 0), (1.0, 1)], [(0.5, 0), (10.0, 2)]]
    found = candidates(lists)
    best, greedy = place(found), place(found, max_exact=1)
    assert (total(found, best[0]), best[1]) == (1.5, 0)
    assert (total(found, greedy[0]), greedy[1]) == (10.0, 2)


def test_identical_items_take_codes_in_their_order():
    lists = [[(0.0, 5), (1.0, 3), (1.0, 4), (2.0, 9)]] * 3 + [[(0.25, 3), (9.0, 8)]]
    found = candidates(lists)
    chosen, _ = place(found)
    assert found.code[chosen].tolist() == [5, 4, 9, 3]


def test_suffix_ranks_by_item_inside_a_group_by_hand():
    assert suffixes_of_sorted(np.array([[1, 0], [1, 2], [1, 2], [2, 0]])).tolist() == [0, 0, 1, 0]
    assert suffixes_of_sorted(np.zeros((0, 1), np.int64)).tolist() == []


def test_policy_doors():
    with pytest.raises(ValueError, match=r"unique='sufix' is not supported; use one of none, suffix, nearest-free"):
        check_policy("sufix", 1.0)
    for price in (-1.0, math.nan):
        with pytest.raises(ValueError, match="prefix_price=.* is out of range"):
            check_policy("suffix", price)
    with pytest.raises(TypeError, match="prefix_price must be a number"):
        check_policy("suffix", "1")


# ---- 整张物品表 ----


def encode(tmp_path, name, x, ids, *, sizes=(3, 4, 16), **kwargs):
    """写成 Parquet 再编码，返回 {item_id: ID}。"""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x, np.float32).ravel()), x.shape[1])
    pq.write_table(pa.table({"item_id": ids, "embedding": rows}), tmp_path / f"{name}.parquet")
    model = FakeModel(sizes, x.shape[1])
    summary = encode_catalog(model, open_vectors(tmp_path / f"{name}.parquet"), tmp_path / name, **kwargs)
    catalog = Catalog.open(tmp_path / name)
    table = catalog.read()
    columns = [table.column(column).to_pylist() for column in catalog.id_columns]
    return dict(zip(table.column("item_id").to_pylist(), zip(*columns, strict=True), strict=True)), summary


def crowded(seed=0, count=40):
    """挤在几个码上的物品，含完全重复的向量。"""
    rng = np.random.default_rng(seed)
    x = (rng.random((count, 3)) * [2, 3, 4]).astype(np.float32)
    x[count // 2 :] = x[: count - count // 2][rng.permutation(count - count // 2) // 3]
    return x, [f"sku-{i:03d}" for i in rng.permutation(count)]


@pytest.mark.parametrize(
    "policy", [{"unique": "suffix"}, {"unique": "nearest-free"}, {"unique": "nearest-free", "prefix_price": math.inf}]
)
def test_ids_do_not_depend_on_row_order_shards_or_memory(policy, tmp_path):
    x, ids = crowded()
    known, summary = encode(tmp_path, "a", x, ids, **policy)
    assert len(set(known.values())) == len(ids)
    assert summary["num_contenders"] > 10
    order = np.random.default_rng(1).permutation(len(ids))
    shuffled, again = encode(
        tmp_path, "b", x[order], [ids[i] for i in order], rows_per_part=7, block_rows=3, rows_in_memory=4, **policy
    )
    assert shuffled == known
    assert {k: v for k, v in again.items() if k.startswith("num_") and k != "num_parts"} == {
        k: v for k, v in summary.items() if k.startswith("num_") and k != "num_parts"
    }


def test_unique_items_stay_and_no_item_loses_its_l1(tmp_path):
    x, ids = crowded()
    raw, _ = encode(tmp_path, "raw", x, ids)
    free, summary = encode(tmp_path, "free", x, ids, unique="nearest-free")
    only, fixed = encode(tmp_path, "only", x, ids, unique="nearest-free", prefix_price=math.inf)
    cheap, loose = encode(tmp_path, "cheap", x, ids, unique="nearest-free", prefix_price=0.0)
    times = {code: list(raw.values()).count(code) for code in raw.values()}
    for item, code in raw.items():
        assert free[item][0] == only[item][0] == cheap[item][0] == code[0]
        assert only[item][:2] == code[:2]
        if times[code] == 1:
            assert free[item] == only[item] == cheap[item] == code
    assert fixed["num_prefix_changed"] == 0 < loose["num_prefix_changed"]
    assert loose["added_mse"] <= summary["added_mse"] <= fixed["added_mse"]
    assert summary["num_moved"] == sum(free[item] != raw[item] for item in raw)


def test_exact_duplicates_keep_the_code_for_the_smallest_item_id(tmp_path):
    x = np.tile(np.float32([[1, 2, 3]]), (4, 1))
    free, _ = encode(tmp_path, "free", x, ["d", "b", "c", "a"], unique="nearest-free", prefix_price=math.inf)
    # 距离相同的 l3 = 2、4 之间取小的；再远一步是 1
    assert free == {"a": (1, 2, 3), "b": (1, 2, 2), "c": (1, 2, 4), "d": (1, 2, 1)}
    suffix, summary = encode(tmp_path, "suffix", x, ["d", "b", "c", "a"], unique="suffix")
    assert suffix == {name: (1, 2, 3, i) for i, name in enumerate("abcd")}
    assert summary["max_suffix"] == 3


def test_a_full_prefix_grows_its_candidates_and_then_names_the_group(tmp_path):
    sizes = (2, 2, 40)
    x = np.tile(np.float32([[1, 1, 3]]), (40, 1))
    ids = [f"{i:02d}" for i in range(40)]
    full, summary = encode(tmp_path, "full", x, ids, sizes=sizes, unique="nearest-free", prefix_price=math.inf)
    assert sorted(full.values()) == [(1, 1, i) for i in range(40)]
    assert (summary["num_contenders"], summary["num_moved"]) == (40, 39)
    x, ids = np.tile(np.float32([[1, 1, 3]]), (41, 1)), [f"{i:02d}" for i in range(41)]
    text = r"41 items share codes within the prefix \(1, 1\) \(first item_id '00'\), which has 40 codes"
    with pytest.raises(NoFreeCodeError, match=text):
        encode(tmp_path, "over", x, ids, sizes=sizes, unique="nearest-free", prefix_price=math.inf)
    assert not (tmp_path / "over").exists()
    # 鸽笼之内、但码被独占的物品占着：候选要到底才知道
    crowd = np.concatenate([x[:40], np.float32([[1, 1, 7]])])
    with pytest.raises(
        NoFreeCodeError, match=r"no free code is left for item_id '39': 40 items share .*\(1, 1, 3\).*'00'"
    ):
        encode(tmp_path, "over", crowd, ids, sizes=sizes, unique="nearest-free", prefix_price=math.inf)
    # 允许换前缀就放得下，但 L1 不换
    spread, _ = encode(tmp_path, "spread", x, ids, sizes=sizes, unique="nearest-free", prefix_price=1.0)
    assert {code[0] for code in spread.values()} == {1}
    assert len(set(spread.values())) == 41


@pytest.mark.parametrize("price", [1.0, math.inf])
@pytest.mark.parametrize("sizes", [(8,), (3, 8)])
def test_one_and_two_levels_work_too(sizes, price, tmp_path):
    x = np.tile(np.float32([[1.0] * len(sizes)]), (4, 1))
    free, _ = encode(tmp_path, "a", x, list("abcd"), sizes=sizes, unique="nearest-free", prefix_price=price)
    assert [code[-1] for code in free.values()] == [1, 0, 2, 3]
    assert all(code[:-1] == (1,) * (len(sizes) - 1) for code in free.values())
    x = np.tile(x, (3, 1))
    with pytest.raises(NoFreeCodeError, match="no free code is left"):
        encode(tmp_path, "b", x, list("abcdefghijkl"), sizes=sizes, unique="nearest-free", prefix_price=price)


def test_the_catalog_is_optimal_against_brute_force(tmp_path):
    # 六个物品抢三个码，穷举全部安置：总新增误差（价格为 0）须相等
    x = np.float32([[0, 0, 0.1], [0, 0, 0.2], [0, 0, -0.3], [0, 0, 1.1], [0, 0, 0.9], [0, 1, 1]])
    ids = list("abcdef")
    sizes = (1, 2, 4)
    free, _ = encode(tmp_path, "free", x, ids, sizes=sizes, unique="nearest-free", prefix_price=0.0)
    paths = list(itertools.product(*(range(k) for k in sizes)))
    far = {item: {path: float(np.square(x[i] - path).sum()) for path in paths} for i, item in enumerate(ids)}
    rest = [path for path in paths if path != (0, 1, 1)]  # f 独占自己的码，不动
    best = min(sum(far[i][p] for i, p in zip(ids, perm, strict=False)) for perm in itertools.permutations(rest, 5))
    assert free["f"] == (0, 1, 1)
    assert sum(far[item][free[item]] for item in "abcde") == pytest.approx(best, abs=1e-6)
