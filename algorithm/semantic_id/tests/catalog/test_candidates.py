"""模型交给物品表的候选：前缀之内的候选与穷举一致，误差按定义，一行的候选与它和谁同批无关；来源可以只读一段。"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.interfaces import SemanticIDModel
from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder
from algorithm.semantic_id.catalog.unique.candidates import candidates_of
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.search.definition import distance


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=12, codebook_sizes=(4, 8, 40)))
    for quantizer in encoder.rq_vae.quantizers:
        torch.nn.init.normal_(quantizer.embedding.weight)
        quantizer.embedding.weight.data[5 % len(quantizer.embedding.weight)] = quantizer.embedding.weight.data[1]
    return encoder.eval()


X = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))


def nearest_by_hand(model, x, prefix):
    """前缀固定，最后一层全部不同的码字按（误差，编号）排。"""
    books = [model.get_codebook_embeddings(level) for level in (1, 2, 3)]
    residual = x
    for book, code in zip(books, prefix, strict=False):
        residual = residual - book[code]
    far = distance(residual, books[2])
    kept = [i for i in range(len(books[2])) if i != 5]  # 5 与 1 是同一个码字
    return sorted((float(far[i]), i) for i in kept)


@pytest.mark.parametrize("count", [1, 6, 39, 40, 1100])
def test_candidates_within_a_prefix_agree_with_a_full_sort(model, count):
    assert isinstance(model, SemanticIDModel)
    prefixes = torch.stack([torch.arange(30) % 4, torch.arange(30) % 8], dim=1)
    codes, errors = model.encode_candidates(X, count, prefixes)
    assert codes.shape == (30, count, 3)
    for row in range(0, 30, 7):
        want = nearest_by_hand(model, X[row], prefixes[row].tolist())[:count]
        got = [(e, c[2]) for e, c in zip(errors[row].tolist(), codes[row].tolist(), strict=True) if c[0] >= 0]
        assert got == want
        assert (codes[row, : len(want), :2] == prefixes[row]).all()
        assert (codes[row, len(want) :] == -1).all()
        assert torch.isinf(errors[row, len(want) :]).all()
    alone = model.encode_candidates(X[7:8], count, prefixes[7:8])
    assert torch.equal(alone[0][0], codes[7])
    assert torch.equal(alone[1][0], errors[7])


def test_the_code_of_an_item_is_the_first_candidate_of_its_prefix_and_errors_mean_the_same(model):
    codes = model.encode_codes(X)
    near, errors = model.encode_candidates(X, 3, codes[:, :-1])
    assert torch.equal(near[:, 0], codes)
    walked = model.path_errors(X, codes)
    assert walked.shape == (30, 3)
    assert torch.equal(walked[:, -1], errors[:, 0])
    residual = X[4]
    for level in range(3):
        far = distance(residual, model.get_codebook_embeddings(level + 1)[codes[4, level]])
        residual = residual - model.get_codebook_embeddings(level + 1)[codes[4, level]]
        assert float(far) == float(walked[4, level])


def test_bad_prefixes_are_refused(model):
    with pytest.raises(ValueError, match=r"prefixes has shape \(30, 3\); need \(30, 2\)"):
        model.encode_candidates(X, 3, torch.zeros(30, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="l1_ids row 0 is 9"):
        model.encode_candidates(X, 3, torch.full((30, 2), 9))
    with pytest.raises(ValueError, match="num_candidates"):
        model.encode_candidates(X, 0, torch.zeros(30, 2, dtype=torch.int64))


def test_wide_candidates_stay_in_l1_and_never_repeat(model):
    codes = model.encode_codes(X).numpy()
    found = candidates_of(model, X.numpy(), codes, 16, wide=True)
    assert (found.codes[:, 0] == codes[found.item, 0]).all()
    rows = np.concatenate([found.item[:, None], found.codes], axis=1)
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (found.codes[:, 1] != codes[found.item, 1]).any()
    narrow = candidates_of(model, X.numpy(), codes, 16, wide=False)
    assert (narrow.codes[:, :2] == codes[narrow.item, :2]).all()


@pytest.mark.parametrize("kind", ["array", "npy", "fortran", "parquet", "folder"])
def test_a_source_can_be_read_in_part(kind, tmp_path):
    x = np.arange(46, dtype=np.float32).reshape(23, 2)
    path = tmp_path / "x.npy"
    if kind in ("npy", "fortran"):
        np.save(path, np.asfortranarray(x) if kind == "fortran" else x)
    elif kind in ("parquet", "folder"):
        path = tmp_path / "rows"
        path.mkdir()
        for i, (start, stop) in enumerate([(0, 9), (9, 10), (10, 23)] if kind == "folder" else [(0, 23)]):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(x[start:stop].ravel()), 2)
            table = pa.table({"item_id": pa.array(range(start, stop)), "embedding": vectors})
            pq.write_table(table, path / f"{i}.parquet", row_group_size=4)
    source = open_vectors(x if kind == "array" else path)
    assert bool(source.stamp) == (kind != "array")
    for start, stop in ((0, 23), (0, 1), (5, 11), (9, 10), (10, 10), (22, 23), (3, 20)):
        blocks = list(source.blocks(4, start, stop))
        assert [block.start for block in blocks] == list(range(start, stop, 4))
        assert [row for block in blocks for row in block.ids.to_pylist()] == list(range(start, stop))
        np.testing.assert_array_equal(np.concatenate([x[:0], *(block.vectors for block in blocks)]), x[start:stop])
