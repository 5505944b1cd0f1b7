"""模型的门：写过的权重看得见、多进程训练被拒、再小的批也复活死码字、坏码本与对不上的编码被拒。"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.checks import MultiProcessTrainingError
from algorithm.semantic_id.codebook import DEAD_AFTER_EXPECTED_HITS, REVIVE_STEP, VectorQuantizer

SIZES, DIM = (40, 300), 24


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_encoder(beam_size: int = 1) -> SemanticIDEncoder:
    torch.manual_seed(0)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=DIM, codebook_sizes=SIZES, beam_size=beam_size))
    for level, quantizer in enumerate(encoder.rq_vae.quantizers):
        quantizer.reset_(gaussian(SIZES[level], DIM, seed=level) * 0.5**level)
    return encoder


def truth(encoder: SemanticIDEncoder, x: torch.Tensor) -> torch.Tensor:
    """从没搜索过的副本的答案：它只看得见当前的权重。"""
    fresh = SemanticIDEncoder(encoder.config)
    fresh.load_state_dict(encoder.state_dict())
    return fresh.encode_codes(x)


# ---- 推理模式 ----


@pytest.mark.parametrize("beam_size", [1, 4])
def test_encoding_in_inference_mode_leaves_training_alone(beam_size):
    """Lightning 的 sanity check：先在推理模式里编码，再训练一步；与没有编码过的逐字节相同。"""
    x = gaussian(64, DIM, seed=9)
    seen, plain = make_encoder(beam_size), make_encoder(beam_size)
    with torch.inference_mode():
        seen.encode(x)
    for encoder in (seen, plain):
        encoder.train().rq_vae(x)["total_loss"].backward()
    for name, value in plain.state_dict().items():
        assert torch.equal(seen.state_dict()[name], value), name
    assert torch.equal(seen.encode_codes(x), truth(plain, x))


# ---- 写过的权重 ----


def swap(weight: torch.nn.Parameter) -> None:
    weight.data = gaussian(SIZES[0], DIM, seed=50)


def step(weight: torch.nn.Parameter) -> None:
    weight.requires_grad_().grad = gaussian(SIZES[0], DIM, seed=51)
    torch.optim.SGD([weight], lr=1.0).step()
    weight.requires_grad_(False)


def one_row(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight[7] = 3.0


NOTICED = {
    "copy_": lambda weight: weight.copy_(gaussian(SIZES[0], DIM, seed=50)),
    "one row": one_row,
    "optimizer": step,
    "data =": swap,
    "data, whole": lambda weight: weight.data.mul_(-1),
    "numpy, whole": lambda weight: weight.detach().numpy().__imul__(-1),
}


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("write", NOTICED.values(), ids=NOTICED.keys())
def test_one_row_sees_every_whole_write(write, beam_size):
    encoder, x = make_encoder(beam_size), gaussian(300, DIM, seed=9)
    before = encoder.encode_codes(x)
    write(encoder.rq_vae.quantizers[0].embedding.weight)
    want = truth(encoder, x)
    assert not torch.equal(before, want)
    assert torch.equal(torch.cat([encoder.encode_codes(row) for row in x.split(1)]), want)


def test_load_state_dict_is_seen():
    encoder, x = make_encoder(), gaussian(300, DIM, seed=9)
    encoder.encode(x)
    other = SemanticIDEncoder(encoder.config)
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder.encode_codes(x[:1]), other.encode_codes(x[:1]))


PARTIAL = {
    "data": lambda weight: weight.data.view(-1)[5:9].fill_(40.0),
    "numpy": lambda weight: weight.detach().numpy()[11, 3:5].fill(-40.0),
}


@pytest.mark.parametrize("search", ["numpy", "torch", "generic", "auto"])
@pytest.mark.parametrize("write", PARTIAL.values(), ids=PARTIAL.keys())
def test_a_partial_write_is_seen_after_refresh_or_by_many_rows(write, search, monkeypatch):
    if search == "generic":
        pytest.importorskip("algorithm.semantic_id.search._native")
    monkeypatch.setenv("SEMID_SEARCH", search)
    x = gaussian(4096, DIM, seed=9)
    for refresh in (True, False):
        encoder = make_encoder()
        before = encoder.encode_codes(x)
        write(encoder.rq_vae.quantizers[0].embedding.weight)
        want = truth(encoder, x)
        assert not torch.equal(before, want)
        if refresh:
            encoder.refresh_()
            assert torch.equal(encoder.encode_codes(x[:300]), want[:300])
        assert torch.equal(encoder.encode_codes(x), want)


# ---- 多进程 ----


def _rank(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    encoder, x = make_encoder(), gaussian(64, DIM, seed=9)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    calls = (
        lambda: encoder.train().rq_vae(x),
        lambda: encoder.rq_vae.quantizers[0](x),
        lambda: train_codebook(encoder, x, 1, config=TrainerConfig(effort="fast")),
    )
    for call in calls:
        with pytest.raises(MultiProcessTrainingError, match="process group of 2 ranks is not supported"):
            call()
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert torch.equal(encoder.encode_codes(x), truth(encoder, x))  # 编码不受限
    encoder.eval().rq_vae(x)
    torch.distributed.destroy_process_group()


def test_two_ranks_may_not_train(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)


# ---- 复活 ----


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 20])
def test_a_small_batch_revives_too(batch):
    """死码字搬到「所属码字 → 那一行」连线的五分之一处，计数是均匀使用时的稳态 B / K。"""
    quantizer = VectorQuantizer(8, 5).train()
    quantizer.reset_(gaussian(8, 5))
    quantizer.embedding.weight[3] = 100.0
    quantizer.rows_seen.fill_(DEAD_AFTER_EXPECTED_HITS * 8 + 1)
    quantizer.last_hit_row.fill_(DEAD_AFTER_EXPECTED_HITS * 8 + 1)
    quantizer.last_hit_row[3] = 0
    x = gaussian(batch, 5, seed=4)
    indices = quantizer.lookup(x)
    assert quantizer.update_(x, indices) == 1
    places = torch.lerp(quantizer.embedding.weight[indices], x, REVIVE_STEP)  # (B, 5)
    revived = quantizer.embedding.weight[3]
    assert (places - revived).abs().amax(1).min() < 1e-6
    assert float(quantizer.ema_cluster_size[3]) == batch / 8
    assert torch.allclose(quantizer.ema_w[3], revived * batch / 8)
    assert int(quantizer.revived_row[3]) == int(quantizer.rows_seen)


# ---- 对不上的输入 ----


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e17, 3e38])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_bad_codebook_is_refused(value, beam_size):
    encoder = make_encoder(beam_size)
    encoder.rq_vae.quantizers[1].embedding.weight[17, 4] = value
    with pytest.raises(ValueError, match=r"codebook of 300 has .* in codeword 17 at column 4; values must be finite"):
        encoder.encode(gaussian(3, DIM))


@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (6, 2), (5, 1), (5, 3), (5,)])
def test_path_errors_wants_one_code_per_row(shape):
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"codes must be a tensor of shape \(5, 2\), one row per feature row"):
        encoder.path_errors(gaussian(5, DIM), torch.zeros(shape, dtype=torch.int64))
    assert encoder.path_errors(gaussian(5, DIM), torch.zeros(5, 2, dtype=torch.int64)).shape == (5, 2)


def test_decode_skips_no_level():
    encoder, ids = make_encoder(), torch.zeros(3, dtype=torch.int64)
    assert encoder.decode(ids, ids, None).shape == (3, DIM)
    with pytest.raises(ValueError, match="got ids of 3 levels, but the model has 2"):
        encoder.decode(ids, None, ids)
    with pytest.raises(ValueError, match="got ids of 1 levels"):
        encoder.decode(ids)
    three = SemanticIDEncoder(SemanticIDConfig(embedding_dim=DIM, codebook_sizes=(4, 4, 4)))
    with pytest.raises(TypeError, match="l2_ids must be a torch.Tensor, got NoneType"):
        three.decode(ids, None, ids)
