"""导入 faiss 的残差量化器：装得下的成为模型，装不下的指名拒绝。"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from algorithm.semantic_id import SemanticIDEncoder
from algorithm.semantic_id.tests.cli.test_cli_catalog import D, N, X, fails, run_json, write_items


def _faiss_index(key, path):
    import faiss

    index = faiss.index_factory(D, key)
    index.train(X)
    index.add(X)
    faiss.write_index(index, str(path))
    return index


@pytest.mark.parametrize(
    ("key", "sizes"),
    [("RQ3x3", [8, 8, 8]), ("RQ3x3_Nfloat", [8, 8, 8]), ("IVF8,RQ2x5", [8, 32, 32]), ("IVF5,RQ4x1", [5, 2, 2, 2, 2])],
)
def test_a_faiss_residual_quantizer_becomes_a_model(key, sizes, tmp_path, capsys):
    index = _faiss_index(key, tmp_path / "rq.faiss")
    done = run_json(capsys, "import", tmp_path / "rq.faiss", "--output", tmp_path / "model")
    assert (done["kind"], done["codebook_sizes"], done["embedding_dim"]) == ("model", sizes, D)
    model = SemanticIDEncoder.from_pretrained(tmp_path / "model")
    theirs = np.asarray(index.sa_decode(index.sa_encode(X)))
    ours = model.decode_codes(model.encode_codes(torch.from_numpy(X))).numpy()
    error, best = np.square(X - ours).sum(), np.square(X - theirs).sum()
    assert error <= 1.05 * best  # 粗聚类中心没有丢：丢了会大几十倍
    same = (np.abs(ours - theirs).max(axis=1) < 1e-4).mean()
    assert same > 0.8
    # 没有训练均值，就没有以它为中心的 relative_mse，并说出原因
    judged = run_json(capsys, "evaluate", tmp_path / "model", room_items(tmp_path))
    assert judged["relative_mse"] is None
    assert judged["relative_mse_reason"]


def room_items(folder):
    write_items(folder / "items.parquet", X, [f"sku-{i}" for i in range(N)])
    return folder / "items.parquet"


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("PCA3,RQ2x4", "holds a IndexPreTransform; only residual"),
        ("OPQ2,RQ2x4", "holds a IndexPreTransform; only residual"),
        ("LSQ2x4", "holds a IndexLocalSearchQuantizer; only residual"),
        ("IVF8,LSQ2x4", "holds a IndexIVFLocalSearchQuantizer; only residual"),
        ("PRQ2x2x4", "holds a IndexProductResidualQuantizer; only residual"),
        ("IVF4_HNSW,RQ2x4", "with a IndexHNSWFlat as coarse quantizer; only flat L2"),
        ("Flat", "holds a IndexFlat"),
    ],
)
def test_a_faiss_index_that_is_no_sum_of_codewords_is_refused(key, complaint, tmp_path, capsys):
    _faiss_index(key, tmp_path / "x.faiss")
    assert complaint in fails(capsys, "import", tmp_path / "x.faiss", "--output", tmp_path / "model")
    assert os.listdir(tmp_path) == ["x.faiss"]


def test_faiss_lists_without_residuals_and_decoders_that_disagree(tmp_path, capsys, monkeypatch):
    import faiss

    from algorithm.semantic_id.catalog.exchange import faiss_model

    index = faiss.index_factory(D, "IVF8,RQ2x4")
    index.by_residual = False
    index.train(X)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    text = fails(capsys, "import", tmp_path / "x.faiss", "--output", tmp_path / "model")
    assert "by_residual=False" in text
    _faiss_index("IVF8,RQ2x4", tmp_path / "x.faiss")
    monkeypatch.setattr(faiss_model, "_coarse", lambda faiss, index, what: [np.zeros((8, D), np.float32)])
    text = fails(capsys, "import", tmp_path / "x.faiss", "--output", tmp_path / "model")
    assert "no plain sum of codewords" in text


def test_a_file_that_is_no_faiss_index(tmp_path, capsys):
    pytest.importorskip("faiss", reason="install semid[faiss] to read faiss indexes")
    (tmp_path / "junk.faiss").write_bytes(b"junk" * 99)
    assert "not a readable faiss index" in fails(capsys, "import", tmp_path / "junk.faiss", "--output", tmp_path / "m2")
    assert not (tmp_path / "m2").exists()
