"""束搜索：整个编码器。"""

from __future__ import annotations

import copy

import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder
from algorithm.semantic_id.tests.search.test_beam import PATHS, choose_path, gaussian


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    choose_path(monkeypatch, request.param)
    return request.param


# ---- 整个编码器 ----


def make_encoder(beam_size: int = 4, **changes) -> SemanticIDEncoder:
    torch.manual_seed(0)
    config = SemanticIDConfig(**{"embedding_dim": 24, "codebook_sizes": (20, 40, 30), "hidden_dim": 16, **changes})
    config.beam_size = beam_size
    encoder = SemanticIDEncoder(config)
    for i, quantizer in enumerate(encoder.rq_vae.quantizers):
        quantizer.reset_(gaussian(quantizer.num_embeddings, 24, seed=i, scale=0.6**i))
    encoder.rq_vae.encoder.weight_out.data.normal_(0, 0.1)  # 不是恒等映射
    return encoder.eval()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_forward_and_encode_agree(path, mode):
    encoder = make_encoder().train(mode == "train")
    x = gaussian(300, 24, seed=5)
    want = encoder.encode_codes(x)
    for _ in range(2):
        output = encoder.rq_vae(x)
        assert torch.equal(torch.stack(output["indices"], 1), want)
        output["total_loss"].backward()
        want = encoder.encode_codes(x)  # 训练模式下码本刚变过：表与整理好的码本都得跟上


def test_encode_is_the_first_candidate_and_beats_greedy(path):
    encoder, greedy = make_encoder(4), make_encoder(1)
    x = gaussian(500, 24, seed=5)
    codes, errors = encoder.encode_candidates(x, 3)
    assert codes.shape == (500, 3, 3)
    assert errors.dtype == torch.float64
    assert torch.equal(codes[:, 0], encoder.encode_codes(x))
    assert torch.equal(greedy.encode_candidates(x, 1)[0][:, 0], greedy.encode_codes(x))
    wide, _ = greedy.encode_candidates(x, 7)
    assert (wide == greedy.encode_codes(x)[:, None]).all(2).any(1).all()
    assert not torch.equal(codes[:, 0], greedy.encode_codes(x))
    assert all(len(set(map(tuple, row))) == 7 for row in wide.tolist())
    # 误差说的就是码字之和与隐向量的距离
    z = encoder.rq_vae.encoder(x)
    total = sum(q.embedding.weight[codes[:, 0, i]] for i, q in enumerate(encoder.rq_vae.quantizers))
    assert torch.allclose(errors[:, 0], (z - total).double().square().sum(1), rtol=1e-4)


def test_candidates_are_padded(path):
    encoder = make_encoder(2, codebook_sizes=(2, 3))
    codes, errors = encoder.encode_candidates(gaussian(4, 24), 9)
    assert codes[:, :6].ge(0).all()
    assert codes[:, 6:].eq(-1).all()
    assert errors[:, 6:].isinf().all()
    assert errors[:, :6].isfinite().all()


def test_editing_the_weights_is_noticed(path):
    encoder, x = make_encoder(), gaussian(300, 24, seed=5)
    encoder.encode_codes(x)
    encoder.rq_vae.quantizers[0].embedding.weight.data.mul_(0.5)
    fresh = make_encoder()
    fresh.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder.encode_codes(x), fresh.encode_codes(x))
    assert torch.equal(copy.deepcopy(encoder).encode_codes(x), fresh.encode_codes(x))


def test_beam_size_travels_with_the_model(path, tmp_path):
    encoder, x = make_encoder(4), gaussian(50, 24, seed=5)
    assert encoder.fingerprint() != make_encoder(1).fingerprint() != make_encoder(2).fingerprint()
    encoder.save_pretrained(tmp_path)
    again = SemanticIDEncoder.from_pretrained(tmp_path)
    assert again.config.beam_size == 4
    assert again.fingerprint() == encoder.fingerprint()
    assert torch.equal(again.encode_codes(x), encoder.encode_codes(x))


def test_table_budget_is_not_part_of_the_model():
    encoder = make_encoder()
    before = encoder.fingerprint()
    encoder.rq_vae.beam_table_bytes = 0
    assert encoder.fingerprint() == before
    assert "beam_table_bytes" not in encoder.config.to_dict()


def test_old_configs_still_load():
    values = SemanticIDConfig(codebook_sizes=(4, 5)).resolved().to_dict()
    assert "beam_size" not in values
    config = SemanticIDConfig.from_dict(values)
    assert (config.beam_size, config.beam, config.to_dict()) == (None, 1, values)


@pytest.mark.parametrize("value", [0, -1, 1025])
def test_beam_size_out_of_range(value):
    with pytest.raises(ValueError, match=rf"beam_size={value} is out of range; use an int"):
        SemanticIDConfig(beam_size=value).resolved()
    with pytest.raises(ValueError, match=rf"num_candidates={value} is out of range; use an int"):
        make_encoder().encode_candidates(torch.zeros(1, 24), value)


def test_bad_input_is_refused_at_the_door():
    encoder = make_encoder()
    with pytest.raises(TypeError, match=r"beam_size must be an int, got float"):
        SemanticIDConfig(beam_size=2.0).resolved()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features row 1 has nan"):
        encoder.encode_candidates(torch.tensor([[0.0] * 24, [float("nan")] * 24]), 2)
    with pytest.raises(ValueError, match="features has width 3"):
        encoder.encode_candidates(torch.zeros(2, 3), 2)
