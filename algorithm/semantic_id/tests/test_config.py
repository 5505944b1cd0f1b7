"""配置与门口检查：每个错误都要说出字段、值、界限、出路。"""

import dataclasses

import numpy as np
import pytest
import torch

from algorithm.semantic_id import ResidualVectorQuantizer, SemanticIDConfig, SemanticIDEncoder, TrainerConfig
from algorithm.semantic_id.checks import check_codes, check_features, check_level


def test_config_stays_a_plain_mutable_dataclass():
    config = SemanticIDConfig()
    assert dataclasses.is_dataclass(config)
    config.codebook_sizes = (7, 8)
    config.num_codebooks = 99  # 改的时候不报错，建模型时才报
    with pytest.raises(ValueError, match="num_codebooks=99"):
        SemanticIDEncoder(config)


def test_num_codebooks_follows_sizes_when_left_alone():
    assert SemanticIDConfig(codebook_sizes=(5, 6)).resolved().num_codebooks == 2
    assert SemanticIDConfig(num_codebooks=2, codebook_sizes=(5, 6)).resolved().num_codebooks == 2
    assert SemanticIDConfig(codebook_sizes=[5, 6, 7, 8]).resolved().codebook_sizes == (5, 6, 7, 8)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"num_codebooks": 2}, ValueError, r"num_codebooks=2 contradicts codebook_sizes=\(1024, 4096, 16384\)"),
        ({"codebook_sizes": ()}, ValueError, "codebook_sizes is empty"),
        ({"codebook_sizes": (4, 0)}, ValueError, r"codebook_sizes\[1\]=0 is out of range; use an int in"),
        ({"codebook_sizes": (4, 2.0)}, TypeError, r"codebook_sizes\[1\] must be an int, got float"),
        ({"codebook_sizes": "256"}, TypeError, "codebook_sizes must be a sequence"),
        ({"codebook_sizes": 256}, TypeError, "codebook_sizes must be a sequence"),
        ({"embedding_dim": 0}, ValueError, "embedding_dim=0 is out of range"),
        ({"embedding_dim": True}, TypeError, "embedding_dim must be an int, got bool"),
        ({"commitment_cost": -0.1}, ValueError, r"commitment_cost=-0.1 is out of range; use a float in \[0.0, inf\)"),
        ({"commitment_cost": float("inf")}, ValueError, "commitment_cost=inf"),
        ({"commitment_cost": "0.25"}, TypeError, "commitment_cost must be a float, got str"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay=1.0 is out of range; use a float in \[0.0, 1.0\)"),
        ({"ema_decay": float("nan")}, ValueError, "ema_decay=nan"),
        ({"epsilon": 0.0}, ValueError, r"epsilon=0.0 is out of range; use a float in \(0.0, 1.0\]"),
        ({"hidden_dim": -1}, ValueError, "hidden_dim=-1"),
        ({"latent_dim": 0}, ValueError, "latent_dim=0 is out of range; use an int >= 1"),
        ({"latent_dim": 300}, ValueError, r"latent_dim=300 is wider than embedding_dim=256; use an int in \[1, 256\]"),
    ],
)
@pytest.mark.parametrize("build", [SemanticIDEncoder, ResidualVectorQuantizer])
def test_inconsistent_config(changes, error, text, build):
    with pytest.raises(error, match=text):
        build(SemanticIDConfig(**changes))


def test_config_round_trips_through_a_dict():
    config = SemanticIDConfig(codebook_sizes=(3, 4), embedding_dim=5).resolved()
    assert SemanticIDConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"unknown config field 'codebook_size'; known fields: embedding_dim"):
        SemanticIDConfig.from_dict({"codebook_size": [3]})
    with pytest.raises(TypeError, match="JSON object"):
        SemanticIDConfig.from_dict([1])


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an int"),
        ({"learning_rate": 0}, ValueError, "learning_rate=0.0"),
        ({"init": "random"}, ValueError, "init='random' is not supported; use 'kmeans' or 'uniform'"),
        ({"holdout_rate": 0.6}, ValueError, r"holdout_rate=0.6 is out of range; use a float in \[0.0, 0.5\]"),
        ({"seed": 2**63}, ValueError, "seed="),
        ({"max_train_rows": 0}, ValueError, "max_train_rows=0"),
    ],
)
def test_trainer_config(changes, error, text):
    with pytest.raises(error, match=text):
        TrainerConfig(**changes)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (np.zeros((2, 4), np.float32), TypeError, "features must be a torch.Tensor, got ndarray; use torch.from_numpy"),
        (torch.zeros(2, 4, dtype=torch.int64), TypeError, "real floating dtype, got torch.int64"),
        (torch.zeros(2, 4, dtype=torch.complex64), TypeError, "real floating dtype, got torch.complex64"),
        (torch.zeros(4), ValueError, r"must have shape \(B, 4\), got \(4,\)"),
        (torch.zeros(1, 2, 4), ValueError, r"must have shape \(B, 4\)"),
        (torch.zeros(2, 5), ValueError, "features has width 5, but the model was built with embedding_dim=4"),
        (torch.zeros(0, 4), ValueError, "features is empty"),
        (torch.full((2, 4), 1e16), ValueError, r"row 0 has .* absolute values must be <= 1e\+15"),
        (
            torch.full((2, 4), 1e300, dtype=torch.float64),
            ValueError,
            "row 0 has inf at column 0; values must be finite",
        ),
    ],
)
def test_bad_features(value, error, text):
    with pytest.raises(error, match=text):
        check_features(value, 4)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(2, 3), hidden_dim=2))
    for door in (encoder.encode, encoder.encode_codes, encoder.rq_vae):
        with pytest.raises(error, match=text):
            door(value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_real_floating_dtype_is_welcome(dtype):
    assert check_features(torch.ones(2, 4, dtype=dtype), 4).dtype == torch.float32


@pytest.mark.parametrize("level", [0, 4, -1])
def test_level_out_of_range(level):
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(2, 3, 4)))
    with pytest.raises(ValueError, match=rf"level={level} is out of range; use an int in \[1, 3\]"):
        encoder.get_codebook_embeddings(level)


def test_level_type():
    with pytest.raises(TypeError, match="level must be an int, got str"):
        check_level("1", 3)
    with pytest.raises(TypeError, match="level must be an int, got bool"):
        check_level(True, 3)
    assert check_level(np.int64(3), 3) == 2


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (([0, 1], [0, 1]), TypeError, "l1_ids must be a torch.Tensor, got list"),
        ((torch.tensor([0]),), ValueError, "got ids of 1 levels, but the model has 2"),
        ((torch.tensor([0.0]), torch.tensor([0])), TypeError, "l1_ids must have an integer dtype, got torch.float32"),
        ((torch.tensor([True]), torch.tensor([0])), TypeError, "l1_ids must have an integer dtype, got torch.bool"),
        ((torch.tensor([0, 1]), torch.tensor([0])), ValueError, r"l2_ids has shape \(1,\)"),
        ((torch.tensor([0, 1]), torch.tensor([0, 3])), ValueError, r"l2_ids row 1 is 3; codes of L2 are in \[0, 3\)"),
        ((torch.tensor([0, -1]), torch.tensor([0, 1])), ValueError, r"l1_ids row 1 is -1; codes of L1 are in \[0, 2\)"),
    ],
)
def test_bad_codes(ids, error, text):
    with pytest.raises(error, match=text):
        check_codes(ids, (2, 3))
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(2, 3)))
    with pytest.raises(error, match=text):
        encoder.decode(*ids)


def test_narrow_integer_codes_are_welcome():
    ids = check_codes((torch.tensor([1], dtype=torch.int8), torch.tensor([2], dtype=torch.int32)), (2, 3))
    assert [i.dtype for i in ids] == [torch.int64] * 2


def test_default_config_is_written_as_before_latent_dim_existed():
    """后来加的字段取默认值时不进配置的字典：旧模型的指纹因此不变。"""
    assert "latent_dim" not in SemanticIDConfig().to_dict()
    assert SemanticIDConfig(latent_dim=8).to_dict()["latent_dim"] == 8
    assert SemanticIDConfig.from_dict(SemanticIDConfig(latent_dim=8).to_dict()).width == 8


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"effort": "fastest"}, r"effort='fastest' is not supported; use one of 'fast', 'default', 'max'"),
        ({"beam_size": 0}, r"beam_size=0 is out of range; use an int in \[1, 1024\]"),
        ({"beam_size": 2000}, r"beam_size=2000 is out of range; use an int in \[1, 1024\]"),
    ],
)
def test_trainer_config_doors(changes, text):
    with pytest.raises(ValueError, match=text):
        TrainerConfig(**changes)
