"""从物品表建树：完整的 ID（去重位在内），唯一的物品表一物一叶，束搜索一个不漏。"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.semantic_id.catalog import Catalog, encode_catalog
from algorithm.semantic_id.decoding import PrefixTrie, beam_search
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.fake_model import FakeModel

SIZES = (3, 4, 2)


def catalog_of(tmp_path, unique, num_items=150, sizes=SIZES):
    """150 个物品落在 24 条路径上：大多共用一个 ID。"""
    x = (np.random.default_rng(0).random((num_items, len(sizes))) * sizes).astype(np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), len(sizes))
    pq.write_table(
        pa.table({"item_id": [f"i{i}" for i in range(num_items)], "embedding": rows}), tmp_path / "x.parquet"
    )
    model = FakeModel(sizes, len(sizes))
    encode_catalog(model, open_vectors(tmp_path / "x.parquet"), tmp_path / "cat", unique=unique, rows_per_part=64)
    return Catalog.open(tmp_path / "cat")


@pytest.mark.parametrize(
    ("unique", "num_items", "sizes"), [("suffix", 150, SIZES), ("nearest-free", 60, (5, 6, 8)), ("none", 24, SIZES)]
)
def test_every_item_is_found_by_its_own_id(tmp_path, unique, num_items, sizes):
    catalog = catalog_of(tmp_path, unique, num_items, sizes)
    trie = PrefixTrie.build(catalog)
    ids = catalog.find(catalog.read().column("item_id"))  # (N, L')，物品表的行序
    assert trie.sizes == catalog.id_sizes == tuple((*sizes, *([ids[:, 3].max() + 1] if unique == "suffix" else [])))
    assert trie.num_items == num_items
    first = {tuple(row): i for i, row in reversed(list(enumerate(ids.tolist())))}
    assert trie.num_ids == len(first) == (num_items if unique != "none" else len(np.unique(ids, axis=0)))
    assert trie.find(torch.from_numpy(ids).long()).tolist() == [first[tuple(row)] for row in ids.tolist()]
    generator = torch.Generator().manual_seed(0)
    found = beam_search(
        lambda codes, _: torch.randn(len(codes), trie.sizes[codes.shape[1]], generator=generator),
        trie,
        batch_size=2,
        num_beams=num_items,
    )
    for batch in range(2):
        assert sorted(found.items[batch][found.items[batch] >= 0].tolist()) == sorted(first.values())


def test_other_sizes_may_be_given_and_are_checked(tmp_path):
    catalog = catalog_of(tmp_path, "suffix")
    assert PrefixTrie.build(catalog, (3, 4, 2, 64)).sizes == (3, 4, 2, 64)
    with pytest.raises(ValueError, match=r"codes have 4 levels, but sizes=\(3, 4, 2\) has 3"):
        PrefixTrie.build(catalog, SIZES)


def test_a_catalog_without_items_is_refused():
    class Empty:
        id_columns, id_sizes = ("l1", "l2"), (3, 4)

        def tables(self):
            return iter(())

    with pytest.raises(ValueError, match="the catalog has no items: a trie needs at least one"):
        PrefixTrie.build(Empty())
