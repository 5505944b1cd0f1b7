"""训练器：接着训练、极小的输入、门口。"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, train_codebook
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.training.test_trainer import CONFIG, FAST, UNIFORM, data, trained
from algorithm.semantic_id.training import rows as training_rows
from algorithm.semantic_id.training.rows import TrainingRows


def test_second_call_goes_on_and_reinit_starts_over():
    x = data()
    encoder, first = trained(x, epochs=2)
    learned = encoder.get_codebook_embeddings(1)
    _, second = trained(x, epochs=0, encoder=encoder)
    assert torch.equal(encoder.get_codebook_embeddings(1), learned)
    _, third = trained(x, epochs=2, encoder=encoder)
    assert third["relative_mse"] <= first["relative_mse"]
    # 第一次的最后用留出行教过码本，它们不再是没见过的
    assert first["num_refit_rows"] == second["num_refit_rows"] == third["num_refit_rows"] == 1000
    assert first["holdout_relative_mse"] > 0
    assert second["holdout_relative_mse"] is third["holdout_relative_mse"] is third["holdout_collision_rate"] is None
    _, fourth = trained(x, epochs=2, encoder=encoder, reinit=True)
    assert fourth["holdout_relative_mse"] == first["holdout_relative_mse"]
    assert torch.equal(encoder.get_codebook_embeddings(1), learned)


def test_going_on_with_other_data_moves_the_training_mean():
    """`relative_mse` 以最近一次训练的均值为中心；模型里存的与报告的数字必须是同一个均值。"""
    encoder, _ = trained(data(), epochs=1)
    other = data(seed=5) + np.float32(2.0)
    _, figures = trained(other, epochs=0, encoder=encoder)
    assert figures["num_holdout_rows"] == 50
    torch.testing.assert_close(encoder.feature_mean, torch.from_numpy(other).mean(0), atol=0.2, rtol=0)
    kept = TrainingRows(open_vectors(other), FAST, Path()).mean
    torch.testing.assert_close(encoder.feature_mean, torch.from_numpy(kept).float())


def test_reloaded_encoder_remembers_that_it_was_initialised(tmp_path):
    encoder, _ = trained(data(), epochs=1, output_dir=tmp_path)
    again = SemanticIDEncoder.from_pretrained(tmp_path)
    trained(data(seed=5), epochs=0, encoder=again)
    assert torch.equal(again.get_codebook_embeddings(2), encoder.get_codebook_embeddings(2))


def test_fewer_rows_than_codewords_says_what_it_did(caplog):
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=8, codebook_sizes=(4, 64), hidden_dim=4))
    with caplog.at_level(logging.WARNING):
        _, figures = trained(data(40), epochs=1, encoder=encoder)
    assert len(figures["notes"]) == 1
    assert "L2 has 64 codewords but only 38 distinct residuals in 38 training rows" in figures["notes"][0]
    assert "consider a smaller codebook" in caplog.text
    assert trained(data(40), epochs=0, encoder=encoder, reinit=True)[1]["collision_rate"] == 0.0


@pytest.mark.parametrize("rows", [1, 2, 19])
def test_tiny_inputs_train(rows):
    _, figures = trained(data(rows), epochs=2)
    assert figures["num_train_rows"] == rows
    assert figures["num_holdout_rows"] == 0


def test_identical_rows_train():
    encoder, figures = trained(np.ones((50, 8), dtype=np.float32), epochs=2)
    assert figures["collision_rate"] == pytest.approx(1 - 1 / 48)
    torch.testing.assert_close(encoder.decode_codes(encoder.encode_codes(torch.ones(1, 8))), torch.ones(1, 8))


def test_uniform_init_is_the_requirements():
    encoder, _ = trained(data(), epochs=0, config=UNIFORM)
    for level, size in enumerate((8, 16), start=1):
        weight = encoder.get_codebook_embeddings(level)
        assert 0.5 / size < float(weight.abs().max()) <= 1 / size


def test_mode_is_restored():
    encoder = SemanticIDEncoder(CONFIG).eval()
    trained(data(), epochs=1, encoder=encoder)
    assert not encoder.training
    encoder.train()
    trained(data(), epochs=1, encoder=encoder)
    assert encoder.training


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"item_features": data(dim=7)}, ValueError, "7"),
        ({"num_epochs": -1}, ValueError, r"num_epochs=-1 is out of range; use an int in \[0, 2147483647\]"),
        ({"num_epochs": 2.0}, TypeError, "num_epochs must be an int"),
        ({"encoder": torch.nn.Linear(2, 2)}, TypeError, "encoder must be a SemanticIDEncoder, got Linear"),
        ({"config": {"seed": 1}}, TypeError, "config must be a TrainerConfig, got dict"),
        ({"resume": True}, ValueError, "resume=True needs output_dir"),
        ({"effort": "fast"}, TypeError, "unexpected keyword argument 'effort'"),
    ],
)
def test_bad_arguments(change, error, text):
    arguments = {"encoder": SemanticIDEncoder(CONFIG), "item_features": data(), "num_epochs": 1, "progress": False}
    with pytest.raises(error, match=text):
        train_codebook(**{**arguments, **change})


@pytest.mark.parametrize("block_rows", [100_000, 200])
def test_bad_row_is_found_before_anything_is_written(tmp_path, monkeypatch, block_rows):
    """块放得下与放不下（先转存到磁盘）都一样：半份转存也不留下。"""
    monkeypatch.setattr(training_rows, "_CHUNK_ROWS", 64)
    monkeypatch.setattr(training_rows, "_READ_ROWS", 100)
    monkeypatch.setattr(training_rows, "_BLOCK_BYTES", block_rows * 8 * 4)
    x = data()
    x[777, 3] = np.nan
    encoder = SemanticIDEncoder(CONFIG)
    before = encoder.fingerprint()
    with pytest.raises(ValueError, match="777"):
        train_codebook(encoder, x, 1, output_dir=tmp_path / "run", progress=False)
    assert encoder.fingerprint() == before
    assert not (tmp_path / "run").exists()
