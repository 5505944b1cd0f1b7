"""前缀树：与逐个比对的参照一致，任何层数与大小；过滤、存取、坏输入。"""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from algorithm.semantic_id.decoding import EmptyFilterError, PrefixTrie, TrieFileError
from algorithm.semantic_id.decoding.trie_build import build_arrays

# 三层；层不等、中间一层只有一个；九层 256（Σ log₂K > 63，走 lexsort）；带去重位（挤不下行号，走 argsort）
SHAPES = [(3, 4, 5), (2,), (5, 1, 7, 3), (256,) * 9, (1 << 20, 1 << 20, 1 << 18, 4)]


def make_codes(sizes, num_items=150, seed=0):
    """少数几个编号，冲突与共享前缀都多；最大的编号也出现。"""
    rng = np.random.default_rng(seed)
    pools = [np.unique(np.append(rng.integers(0, size, 4), size - 1)) for size in sizes]
    return np.stack([rng.choice(pool, num_items) for pool in pools], axis=1)


def queries(codes, sizes, seed=1):
    """在树里的、只差一位的、越界的。"""
    rng = np.random.default_rng(seed)
    wrong = codes.copy()
    level = rng.integers(0, len(sizes), len(codes))
    wrong[np.arange(len(codes)), level] = rng.integers(0, np.asarray(sizes)[level])
    outside = codes[:6].copy()
    outside[:3, -1], outside[3:, 0] = -1, sizes[0] + 7
    return torch.from_numpy(np.concatenate([codes, wrong, outside]).astype(np.int64))


def first_rows(codes, keep=None):
    """ID → 留下的里面最小的行号。"""
    table = {}
    for row, code in enumerate(map(tuple, codes.tolist())):
        if keep is None or keep[row]:
            table.setdefault(code, row)
    return table


def agrees(trie, codes, sizes, keep=None):
    """find、allowed、allowed_codes 与参照字典一致。"""
    table, asked = first_rows(codes, keep), queries(codes, sizes)
    assert trie.find(asked).tolist() == [table.get(tuple(row), -1) for row in asked.tolist()]
    for level, size in enumerate(sizes):
        if size > 1 << 16:
            continue
        prefixes = asked[::7, :level]
        mask = trie.allowed(prefixes)
        assert mask.shape == (len(prefixes), size)
        children = trie.allowed_codes(prefixes)
        for row, prefix in enumerate(map(tuple, prefixes.tolist())):
            expected = sorted({code[level] for code in table if code[:level] == prefix})
            assert mask[row].nonzero()[:, 0].tolist() == expected
            assert children.codes[row][children.valid[row]].tolist() == expected


@pytest.mark.parametrize("sizes", SHAPES)
def test_trie_holds_exactly_the_catalog(sizes):
    codes = make_codes(sizes)
    trie = PrefixTrie.build(codes, sizes)
    assert (trie.sizes, trie.num_items, trie.num_ids) == (sizes, len(codes), len(np.unique(codes, axis=0)))
    agrees(trie, codes, sizes)


@pytest.mark.parametrize("sizes", SHAPES)
def test_filter_is_a_view_that_agrees_with_building_from_the_kept_items(sizes):
    codes = make_codes(sizes)
    deny = np.random.default_rng(5).random(len(codes)) < 0.7
    allow = np.random.default_rng(6).random(len(codes)) < 0.8
    trie = PrefixTrie.build(codes, sizes)
    both = trie.filter(allow=allow, deny=torch.from_numpy(deny))
    agrees(both, codes, sizes, allow & ~deny)
    agrees(trie.filter(deny=deny).filter(allow=allow), codes, sizes, allow & ~deny)  # 可以叠加
    agrees(trie, codes, sizes)  # 原来的没有变
    assert both.num_items == (allow & ~deny).sum()
    assert both.num_ids == len(first_rows(codes, allow & ~deny))
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(both.edges, trie.edges, strict=True))


def test_sold_out_twin_gives_way_to_the_item_that_shares_its_id():
    trie = PrefixTrie.build(np.array([[0, 1], [0, 1], [1, 0], [0, 1]]), (2, 2))
    assert trie.find(torch.tensor([[0, 1]])).tolist() == [0]
    assert trie.filter(deny=[True, False, False, False]).find(torch.tensor([[0, 1]])).tolist() == [1]
    assert trie.filter(allow=[False, False, True, True]).find(torch.tensor([[0, 1]])).tolist() == [3]
    assert trie.filter(allow=[False, False, True, False]).find(torch.tensor([[0, 1], [1, 0]])).tolist() == [-1, 2]


def test_filter_that_leaves_nothing_is_a_typed_error():
    trie = PrefixTrie.build(np.array([[0, 1], [1, 0]]), (2, 2))
    with pytest.raises(EmptyFilterError, match="leaves none of 2 items.*loosen allow or deny"):
        trie.filter(deny=[True, True])
    half = trie.filter(allow=[True, False])
    with pytest.raises(EmptyFilterError, match="leaves none of 1 items"):
        half.filter(deny=[True, False])


@pytest.mark.parametrize(
    ("masks", "kind", "words"),
    [
        ({}, ValueError, "needs allow or deny"),
        ({"deny": [0, 1]}, TypeError, "deny must be a bool mask of shape \\(2,\\), got dtype torch.int64"),
        ({"allow": [True]}, ValueError, "allow has shape \\(1,\\); the trie was built from 2 items"),
    ],
)
def test_bad_filters(masks, kind, words):
    with pytest.raises(kind, match=words):
        PrefixTrie.build(np.array([[0, 1], [1, 0]]), (2, 2)).filter(**masks)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4).flatmap(
        lambda levels: st.lists(st.tuples(*[st.integers(0, 5)] * levels), min_size=1, max_size=30)
    )
)
def test_any_catalog_row_order_does_not_matter(rows):
    codes = np.array(rows, dtype=np.int64)
    trie = PrefixTrie.build(codes)
    assert trie.sizes == tuple((codes.max(axis=0) + 1).tolist())
    agrees(trie, codes, trie.sizes)
    shuffled = build_arrays(codes[::-1], trie.sizes)
    for ours, other in zip(build_arrays(codes, trie.sizes)[:2], shuffled[:2], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))


def test_the_three_ways_to_sort_give_the_same_arrays():
    # 把同样的编码说成更大的码本，先后挤掉行号、挤掉整个 int64
    codes = make_codes((3, 4, 5))
    expected = build_arrays(codes, (3, 4, 5))
    for sizes in [(1 << 30, 1 << 29, 8), (1 << 30, 1 << 30, 1 << 30)]:
        found = build_arrays(codes, sizes)
        assert np.array_equal(found.order, expected.order)
        assert np.array_equal(found.repeats, expected.repeats)
        for group, wanted in zip(found[:2], expected[:2], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(group, wanted, strict=True))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint64])
def test_any_integer_dtype_and_torch(dtype):
    codes = make_codes((3, 4, 5))
    wanted = build_arrays(codes, (3, 4, 5))
    assert np.array_equal(build_arrays(codes.astype(dtype), (3, 4, 5)).order, wanted.order)
    assert torch.equal(PrefixTrie.build(torch.from_numpy(codes)).order, torch.from_numpy(wanted.order))


@pytest.mark.parametrize(
    ("codes", "sizes", "kind", "words"),
    [
        ([[0.5, 1.0]], None, TypeError, "integer dtype, got float64"),
        ([0, 1], None, ValueError, "shape \\(N, L\\), got \\(2,\\)"),
        (np.zeros((0, 3), int), None, ValueError, "empty: a trie needs at least one item"),
        ([[0, 1]], (2, 2, 2), ValueError, "2 levels, but sizes=\\(2, 2, 2\\) has 3"),
        ([[0, 1], [1, 4]], (2, 4), ValueError, "codes row 1 has L2 code 4; codes must be in \\[0, 4\\)"),
        ([[0, 1], [-1, 0]], None, ValueError, "codes row 1 has L1 code -1"),
        ([[0, 1]], (2, 0), ValueError, "sizes=\\(2, 0\\) is out of range"),
        ([[0, 1]], (2, 2.5), TypeError, "must be ints"),
    ],
)
def test_bad_codes(codes, sizes, kind, words):
    with pytest.raises(kind, match=words):
        PrefixTrie.build(codes, sizes)


def test_bad_queries():
    trie = PrefixTrie.build(make_codes((3, 4, 5)), (3, 4, 5))
    with pytest.raises(ValueError, match="l < 3: a whole ID has no continuation"):
        trie.allowed(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="integer torch.Tensor"):
        trie.allowed(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="whole IDs have shape \\(R, 3\\)"):
        trie.find(torch.zeros(2, 2, dtype=torch.int64))


def test_trie_is_frozen():
    trie = PrefixTrie.build(make_codes((3, 4, 5)), (3, 4, 5))
    with pytest.raises(AttributeError):
        trie.sizes = (1, 2, 3)


# ---- 存取 ----


def saved(tmp_path, codes=None):
    trie = PrefixTrie.build(make_codes((3, 4, 5)) if codes is None else codes, (3, 4, 5))
    trie.save(tmp_path / "trie.safetensors")
    return trie, tmp_path / "trie.safetensors"


@pytest.mark.parametrize("unique", [False, True])
def test_save_and_load(tmp_path, unique):
    codes = make_codes((3, 4, 5))
    codes = np.unique(codes, axis=0) if unique else codes
    trie, path = saved(tmp_path, codes)
    again = PrefixTrie.load(path)
    agrees(again, codes, (3, 4, 5))
    first = path.read_bytes()
    again.filter(deny=np.arange(len(codes)) == 0).save(path)  # 过滤不随之保存
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert (len(trie.repeats) == 0) == unique


def test_every_flipped_or_missing_byte_is_noticed(tmp_path):
    _, path = saved(tmp_path)
    data = path.read_bytes()
    for place in [*range(8, len(data), 41), len(data) - 1]:
        broken = bytearray(data)
        broken[place] ^= 0x04
        path.write_bytes(broken)
        with pytest.raises(TrieFileError):
            PrefixTrie.load(path)
    path.write_bytes(data[:-3])
    with pytest.raises(TrieFileError, match="not a whole safetensors file"):
        PrefixTrie.load(path)
    with pytest.raises(FileNotFoundError):
        PrefixTrie.load(tmp_path / "nowhere")


def test_a_forged_file_with_a_right_checksum_is_still_checked(tmp_path):
    from algorithm.semantic_id.decoding import trie_file

    _, path = saved(tmp_path)
    data = path.read_bytes()
    record = json.loads(json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["semid"])
    good = load(data)

    def forge(**changes):
        tensors = {**good, **changes}
        mark = {**record, "sha256": trie_file._digest(tensors, record["sizes"])}
        path.write_bytes(save(tensors, metadata={"semid": json.dumps(mark)}))
        with pytest.raises(TrieFileError) as caught:
            PrefixTrie.load(path)
        return str(caught.value)

    assert "edges.2 leaves [0, 5)" in forge(**{"edges.2": good["edges.2"] + 3})
    assert "edges.1 is not sorted" in forge(**{"edges.1": good["edges.1"][::-1].copy()})
    pointer = good["pointers.1"].copy()
    pointer[1] = pointer[2]
    assert "pointers.1 has a node without children" in forge(**{"pointers.1": pointer})
    pointer[-1] += 1
    assert "pointers.1 must run from 0" in forge(**{"pointers.1": pointer})
    assert "order lists a row twice" in forge(order=np.zeros_like(good["order"]))
    assert "order leaves [0, 150)" in forge(order=good["order"] - 1)
    assert "repeats must rise" in forge(repeats=good["repeats"][::-1].copy())
    assert "repeats must rise within [0, 27)" in forge(repeats=good["repeats"] + 1)
    assert "order has 150 rows for" in forge(repeats=good["repeats"][1:])
    assert "unknown tensor 'more'" in forge(more=np.zeros(2, np.int32))
    assert "pointers.0 must be ints of shape (2,)" in forge(**{"pointers.0": good["pointers.1"]})
    assert "signed integer dtype" in forge(**{"pointers.0": good["pointers.0"].astype(np.float32)})


def test_other_formats_and_versions_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"a": np.zeros(2)}))
    with pytest.raises(TrieFileError, match="holds no trie"):
        PrefixTrie.load(path)
    path.write_bytes(save({"a": np.zeros(2)}, metadata={"semid": '{"format": "semid-trie", "format_version": 9}'}))
    with pytest.raises(TrieFileError, match="format_version 9.*upgrade semid"):
        PrefixTrie.load(path)
