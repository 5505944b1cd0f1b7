"""打包的规则：保序、互不相同、63 位的界限、拆得回来；任何列数与大小。"""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id import code_keys
from algorithm.semantic_id.code_keys import Packing, comparable, lexical_keys

TOP = 1 << 63
size = st.one_of(st.integers(1, 9), st.integers(0, 63).map(lambda bits: 1 << bits), st.integers(1, TOP))


@st.composite
def tables(draw):
    """(各列大小, 行)；每列偏爱 0、最大值与靠近的值。"""
    sizes = draw(st.lists(size, min_size=1, max_size=6))
    columns = [st.one_of(st.integers(0, k - 1), st.sampled_from([0, k - 1, max(0, k - 2)])) for k in sizes]
    return sizes, draw(st.lists(st.tuples(*columns), min_size=1, max_size=20))


@settings(max_examples=300, deadline=None)
@given(tables())
def test_keys_order_like_the_rows_and_give_them_back(table):
    sizes, rows = table
    packing, codes = Packing(sizes), np.array(rows, np.int64)
    words = packing.pack(codes)
    assert words.min() >= 0  # 符号位从不被碰到
    assert packing.unpack(words).tolist() == codes.tolist()
    columns = [packing.column(words, i, np.int64) for i in range(len(sizes))]
    assert np.array_equal(np.stack(columns, axis=1), codes)
    for keys in (comparable(words), lexical_keys(codes) if codes.max() < TOP - 1 else comparable(words)):
        order = np.argsort(keys, kind="stable")
        assert order.tolist() == sorted(range(len(rows)), key=rows.__getitem__)
        assert len(np.unique(keys)) == len(set(rows))
    for length in range(len(sizes) + 1):
        low, high = (comparable(bound) for bound in packing.bounds(codes[:1, :length]))
        keys = comparable(words)
        assert ((keys >= low) & (keys <= high)).tolist() == [row[:length] == rows[0][:length] for row in rows]


def test_a_word_holds_exactly_63_bits():
    full = Packing((1 << 31, 1 << 32))
    assert full.pack(np.array([[(1 << 31) - 1, (1 << 32) - 1]])).tolist() == [[TOP - 1]]
    assert Packing((1 << 31, (1 << 32) + 1)).num_words == 2  # 多一个取值就是多一位
    assert Packing((TOP, 1, 2)).words == [[0, 1], [2]]  # 一列不跨两个字
    assert Packing(()).pack(np.zeros((3, 0), np.int64)).tolist() == [[0]] * 3


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (TOP + 1, ValueError, r"sizes=9223372036854775809 is out of range; use an int in \[1, 9223372036854775808\]"),
        (0, ValueError, "sizes=0 is out of range"),
        (-3, ValueError, "sizes=-3 is out of range"),
        (2.0, TypeError, "sizes must be an int, got float"),
        (True, TypeError, "sizes must be an int, got bool"),
    ],
)
def test_a_column_that_fits_no_word_is_refused(bad, kind, words):
    with pytest.raises(kind, match=words):
        Packing((4, bad))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.uint64, ">i8"])
def test_every_integer_type_gives_the_same_keys(dtype):
    codes = np.array([[1, 2, 3], [120, 0, 5]])
    assert np.array_equal(Packing((121, 4, 6)).pack(codes.astype(dtype)), Packing((121, 4, 6)).pack(codes))


def test_pieces_join(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 5, (1000, 40))
    whole = Packing([5] * 40)
    expected = whole.pack(codes)
    monkeypatch.setattr(code_keys, "_CHUNK", 7)
    assert np.array_equal(whole.pack(codes), expected)
    assert np.array_equal(whole.unpack(expected), codes)


def test_examples_in_the_docstrings():
    assert doctest.testmod(code_keys).failed == 0
