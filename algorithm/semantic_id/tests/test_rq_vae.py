"""需求自己的用例，以及需求草稿里每个陷阱一条：在草稿上会失败、在这里必须通过。"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from algorithm.interfaces import SemanticIDEncoderInterface, SemanticIDModel
from algorithm.semantic_id import (
    FeatureDecoder,
    FeatureEncoder,
    ResidualVectorQuantizer,
    SemanticIDConfig,
    SemanticIDEncoder,
    VectorQuantizer,
    compute_codebook_utilization,
    train_codebook,
)

# ---- 需求原文的用例，逐字不动 ----
# fmt: off


def test_semantic_id_encoder():
    config = SemanticIDConfig()
    encoder = SemanticIDEncoder(config)
    
    # 测试编码
    features = torch.randn(32, 256)
    l1, l2, l3 = encoder.encode(features)
    
    assert l1.shape == (32,), f"L1 shape mismatch: {l1.shape}"
    assert l2.shape == (32,), f"L2 shape mismatch: {l2.shape}"
    assert l3.shape == (32,), f"L3 shape mismatch: {l3.shape}"
    
    assert l1.max() < 1024, "L1 out of range"
    assert l2.max() < 4096, "L2 out of range"
    assert l3.max() < 16384, "L3 out of range"
    
    # 测试解码
    reconstructed = encoder.decode(l1, l2, l3)
    assert reconstructed.shape == (32, 256)
    
    # 测试重建误差
    error = F.mse_loss(reconstructed, features)
    print(f"Reconstruction error: {error.item():.4f}")
    
    print("All tests passed!")


# fmt: on
# ---- 小模型 ----

SMALL = SemanticIDConfig(embedding_dim=8, codebook_sizes=(4, 6, 10), hidden_dim=16)


def clustered(num_rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    """带两级簇结构的数据：12 个大类，每类 8 个子类，再加噪声。"""
    g = torch.Generator().manual_seed(seed)
    top = torch.randn(12, dim, generator=g)
    sub = torch.randn(12, 8, dim, generator=g) * 0.4
    i, j = torch.randint(12, (num_rows,), generator=g), torch.randint(8, (num_rows,), generator=g)
    return top[i] + sub[i, j] + 0.1 * torch.randn(num_rows, dim, generator=g)


def small_encoder(seed: int = 0) -> SemanticIDEncoder:
    torch.manual_seed(seed)
    return SemanticIDEncoder(SMALL)


# ---- 名字与签名 ----


def test_names_defaults_and_keys_of_the_requirement():
    config = SemanticIDConfig()
    assert (config.embedding_dim, config.num_codebooks, config.codebook_sizes) == (256, 3, (1024, 4096, 16384))
    assert (config.commitment_cost, config.ema_decay, config.epsilon) == (0.25, 0.99, 1e-5)
    encoder = small_encoder()
    assert isinstance(encoder, SemanticIDEncoderInterface)
    assert isinstance(encoder, SemanticIDModel)
    quantizer = VectorQuantizer(num_embeddings=7, embedding_dim=3, ema_decay=0.9)
    assert isinstance(quantizer.embedding, nn.Embedding)
    assert dict(quantizer.named_buffers())["ema_cluster_size"].shape == (7,)
    assert dict(quantizer.named_buffers())["ema_w"].shape == (7, 3)
    assert quantizer.embedding.weight.abs().max() <= 1 / 7
    output = encoder.rq_vae(torch.randn(5, 8))
    expected = {"quantized", "indices", "reconstruction_loss", "commitment_loss", "total_loss"}
    assert set(output) == expected
    assert [i.shape for i in output["indices"]] == [(5,)] * 3
    assert isinstance(output["indices"], list)
    assert [encoder.get_codebook_embeddings(level).shape for level in (1, 2, 3)] == [(4, 8), (6, 8), (10, 8)]
    assert len(encoder.rq_vae.quantizers) == 3


def test_the_interface_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        SemanticIDEncoderInterface()


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (3, 4, 5, 6), (16, 7, 9, 2, 1)])
def test_any_number_of_levels(sizes):
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=8, codebook_sizes=sizes, hidden_dim=4))
    codes = encoder.encode(torch.randn(6, 8))
    assert len(codes) == len(sizes) == encoder.config.num_codebooks
    total = sum(encoder.get_codebook_embeddings(i + 1)[c] for i, c in enumerate(codes))
    torch.testing.assert_close(encoder.decode(*codes), total)


def test_losses_by_hand():
    """一维两层，手算：x = 3 → L1 取 2，残差 1 → L2 取 0.5，重建 2.5。"""
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=1, codebook_sizes=(2, 2), commitment_cost=0.5)).eval()
    rq.quantizers[0].reset_(torch.tensor([[2.0], [-2.0]]))
    rq.quantizers[1].reset_(torch.tensor([[-1.0], [0.5]]))
    out = rq(torch.tensor([[3.0]]))
    assert [i.item() for i in out["indices"]] == [0, 1]
    assert out["quantized"].item() == 2.5
    assert out["reconstruction_loss"].item() == pytest.approx(0.25)  # (3 − 2.5)²
    assert out["commitment_loss"].item() == pytest.approx(1.25)  # (3 − 2)² + (1 − 0.5)²
    assert out["total_loss"].item() == pytest.approx(0.25 + 0.5 * 1.25)


def test_networks_start_as_the_exact_identity():
    encoder = small_encoder()
    x = torch.randn(50, 8)
    assert torch.equal(encoder.rq_vae.encoder(x), x)
    assert torch.equal(encoder.rq_vae.decoder(x), x)
    assert isinstance(encoder.rq_vae.encoder, FeatureEncoder)
    assert isinstance(encoder.rq_vae.decoder, FeatureDecoder)
    codes = encoder.encode(x)
    total = sum(encoder.get_codebook_embeddings(i + 1)[c] for i, c in enumerate(codes))
    assert torch.equal(encoder.decode(*codes), total)
    assert encoder.decode(l1_ids=codes[0], l2_ids=codes[1], l3_ids=codes[2]).shape == (50, 8)


def test_codebook_embeddings_are_a_copy():
    encoder = small_encoder()
    encoder.get_codebook_embeddings(1).zero_()
    assert encoder.get_codebook_embeddings(1).abs().max() > 0


def test_model_keeps_its_own_config():
    config = SemanticIDConfig(embedding_dim=8, codebook_sizes=[4, 6])
    encoder = SemanticIDEncoder(config)
    config.embedding_dim = 9
    assert encoder.config.embedding_dim == 8
    assert encoder.config.codebook_sizes == (4, 6)
    assert encoder.config.num_codebooks == 2


# ---- 需求的训练循环逐字可跑，而且训练得好 ----


def test_literal_training_loop_trains_well():
    item_features = clustered(3000, 16)
    torch.manual_seed(0)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=16, codebook_sizes=(8, 32, 64), hidden_dim=32))
    before = F.mse_loss(encoder.decode(*encoder.encode(item_features)), item_features).item()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for epoch in range(12):
        for batch in DataLoader(item_features, batch_size=256):
            optimizer.zero_grad()
            output = encoder.rq_vae(batch)
            loss = output["total_loss"]
            loss.backward()
            optimizer.step()
        utilization = compute_codebook_utilization(encoder)
        line = f"Epoch {epoch}: Loss={loss:.4f}, Utilization={utilization:.2%}"
    assert "Epoch 11" in line
    after = F.mse_loss(encoder.decode(*encoder.encode(item_features)), item_features).item()
    assert after < 0.1 * before
    for level, ids in enumerate(encoder.encode(item_features)):
        assert len(ids.unique()) / encoder.codebook_sizes[level] >= 0.9, f"L{level + 1}"


# ---- 陷阱 ----


def test_one_batch_does_not_blow_up_unused_codewords():
    """草稿：计数从 0 开始，一批之后未命中的码字除以约 1e-5，范数放大上千倍。"""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 8)
    before = quantizer.embedding.weight.clone()
    _, indices, _ = quantizer(torch.randn(16, 8))
    unused = torch.ones(64, dtype=torch.bool)
    unused[indices] = False
    assert unused.any()
    assert torch.equal(quantizer.embedding.weight[unused], before[unused])
    assert quantizer.embedding.weight.norm(dim=1).max() < 10


def test_ema_by_hand():
    """γ = 0.75，计数 1，码字 0；两行 2、4 命中：计数 0.75 + 0.25·2 = 1.25，和 0.25·6 = 1.5，码字 1.2。"""
    quantizer = VectorQuantizer(2, 1, ema_decay=0.75)
    quantizer.reset_(torch.tensor([[0.0], [100.0]]))
    quantizer(torch.tensor([[2.0], [4.0]]))
    assert quantizer.ema_cluster_size.tolist() == [1.25, 0.75]
    assert quantizer.ema_w.tolist() == [[1.5], [75.0]]
    assert quantizer.embedding.weight.tolist() == [[pytest.approx(1.2)], [100.0]]


def test_ema_buffers_keep_their_identity():
    """重新绑定 buffer 会让 DDP 与 compile 丢失它们；更新必须就地。"""
    quantizer = VectorQuantizer(8, 4)
    pointers = [t.data_ptr() for t in (quantizer.ema_w, quantizer.ema_cluster_size, quantizer.embedding.weight)]
    for _ in range(3):
        quantizer(torch.randn(16, 4))
    assert pointers == [t.data_ptr() for t in (quantizer.ema_w, quantizer.ema_cluster_size, quantizer.embedding.weight)]


def test_forgotten_counts_do_not_become_denormal():
    """长期不命中的码字：计数低于 epsilon 后清零，再次命中时立刻等于命中行的均值。"""
    quantizer = VectorQuantizer(2, 1, ema_decay=0.1, epsilon=1e-3)
    quantizer.reset_(torch.tensor([[0.0], [50.0]]))
    for _ in range(4):
        quantizer(torch.tensor([[1.0]]))
    assert quantizer.ema_cluster_size[1] == 0.0
    assert quantizer.embedding.weight[1] == 50.0
    quantizer(torch.tensor([[40.0]]))
    assert quantizer.embedding.weight[1] == 40.0


def test_encode_in_train_mode_writes_nothing():
    encoder = small_encoder().train()
    x = torch.randn(200, 8)
    before = copy.deepcopy(encoder.state_dict())
    in_train = encoder.encode(x)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    in_eval = encoder.eval().encode(x)
    assert all(torch.equal(a, b) for a, b in zip(in_train, in_eval, strict=True))


def test_forward_and_encode_see_the_same_ids():
    """草稿的 forward 用 r − (r + (q − r))，与 encode 的 r − q 舍入不同；近并列时 ID 会分叉。"""
    x, c = torch.tensor([[-118.375404]]), torch.tensor([[-246.37541]])  # 随机搜索五千万对数找到的一对
    exact, sketch = x - c, x - (x + (c - x))
    assert exact != sketch
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=1, codebook_sizes=(1, 2)))
    for training in (False, True):
        rq.quantizers[0].reset_(c)
        rq.quantizers[1].reset_(torch.cat([sketch, exact]))  # 草稿的残差正好落在 0 号上
        rq.train(training)
        assert [int(i) for i in rq.encode(x)] == [0, 1]
        assert [int(i) for i in rq(x)["indices"]] == [0, 1]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_straight_through_gradient_is_one(levels):
    """d(重建损失)/dx 里 quantized 对 z 的导数必须是 1，而不是层数。"""
    torch.manual_seed(0)
    rq = ResidualVectorQuantizer(SemanticIDConfig(embedding_dim=4, codebook_sizes=(8,) * levels)).eval()
    x = torch.randn(6, 4, requires_grad=True)
    rq(x)["quantized"].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_single_level_straight_through():
    quantizer = VectorQuantizer(8, 4).eval()
    x = torch.randn(6, 4, requires_grad=True)
    quantized, indices, loss = quantizer(x)
    torch.testing.assert_close(quantized, quantizer.embedding(indices))
    quantized.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert loss.item() == pytest.approx(F.mse_loss(x, quantizer.embedding(indices)).item())


def test_no_one_hot_in_a_training_step():
    """L3 全尺寸一步：任何新张量都不得达到 B × K 个元素。"""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    quantizer = VectorQuantizer(16384, 8)
    with Largest() as largest:
        quantizer(torch.randn(64, 8))
    assert 0 < largest.elements < 64 * 16384


def test_uniform_init_revives_dead_codewords():
    """uniform ±1/K 起步时绝大多数码字从不命中；训练模式的更新必须自己把它们救活。"""
    x = clustered(2048, 8)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 8)
    assert len(quantizer.lookup(x).unique()) < 40
    for epoch in range(8):
        for batch in x[torch.randperm(2048, generator=torch.Generator().manual_seed(epoch))].split(128):
            quantizer(batch)
    assert len(quantizer.lookup(x).unique()) >= 60


def test_balanced_codewords_are_not_revived():
    """阈值按期望命中计：B/K = 1/64 时，均匀使用的码字在 20 步内大多没有命中，但一个也不该被判死。"""
    quantizer = VectorQuantizer(1024, 4)
    quantizer.reset_(torch.randn(1024, 4, generator=torch.Generator().manual_seed(0)))
    rows = quantizer.embedding.weight.clone()
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        quantizer(rows[torch.randint(1024, (16,), generator=g)])
    assert int((quantizer.last_hit_row == 0).sum()) > 512
    assert int(quantizer.dead_codes().sum()) == 0
    assert int((quantizer.revived_row > 0).sum()) == 0


def test_revival_lies_between_a_codeword_and_a_real_residual():
    quantizer = VectorQuantizer(4, 2)
    quantizer.reset_(torch.tensor([[0.0, 0.0], [90.0, 0.0], [91.0, 0.0], [92.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    for _ in range(11):  # 44 行 > 10 · 4：码字 1、2、3 死了，每步最多复活 4 · 25% = 1 个
        quantizer(x)
    moved = (quantizer.revived_row > 0).nonzero()[:, 0].tolist()
    assert moved == [1]
    revived = quantizer.embedding.weight[1]
    assert sorted(revived.abs().tolist())[0] == pytest.approx(0.0, abs=1e-6)  # 在 0 与某个 ±e_i 的连线上
    assert 0.0 < float(revived.norm()) < 1.0


def test_revival_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quantizer = VectorQuantizer(4, 2)
    torch.manual_seed(5)
    x = torch.eye(2).repeat(30, 1)
    for _ in range(3):
        quantizer(x)
    assert bool((quantizer.revived_row > 0).any())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("call", ["encode", "forward", "quantizer"])
def test_nan_never_becomes_id_zero(value, call):
    encoder = small_encoder()
    x = torch.randn(6, 8)
    x[3, 2] = value
    function = {"encode": encoder.encode, "forward": encoder.rq_vae, "quantizer": encoder.rq_vae.quantizers[0]}[call]
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(ValueError, match=r"row 3 has .* at column 2; values must be finite"):
        function(x)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_diverged_network_is_an_error_not_id_zero():
    encoder = small_encoder()
    encoder.rq_vae.encoder.weight_out.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="latent row 0 has nan"):
        encoder.encode(torch.randn(2, 8))


def test_row_number_of_a_bad_row_far_into_a_large_batch():
    encoder = small_encoder()
    x = torch.zeros(20_000, 8)
    x[17_003, 1] = float("nan")
    with pytest.raises(ValueError, match="features row 17003 "):
        encoder.encode(x)


# ---- 利用率的口径 ----


def test_utilization_counts_the_last_rows_only():
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=1, codebook_sizes=(2, 4)))
    assert compute_codebook_utilization(encoder) == 0.0
    for quantizer, words in zip(encoder.rq_vae.quantizers, ([[0.0], [9.0]], [[0.0], [1.0], [2.0], [3.0]]), strict=True):
        quantizer.reset_(torch.tensor(words))
        quantizer.rows_seen.fill_(100)
    encoder.rq_vae.quantizers[0].last_hit_row.copy_(torch.tensor([100, 60]))  # 窗口 40 行：第 61…100 行
    encoder.rq_vae.quantizers[1].last_hit_row.copy_(torch.tensor([61, 60, 99, 0]))
    assert compute_codebook_utilization(encoder) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert f"{compute_codebook_utilization(encoder):.2%}" == "50.00%"


def test_train_codebook_gives_learned_encoder():
    x = clustered(1500, 16)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=16, codebook_sizes=(8, 16, 32), hidden_dim=16))
    figures = train_codebook(encoder, x, num_epochs=2, progress=False)
    assert figures["relative_mse"] < 0.1
    assert bool(encoder.rq_vae.initialized)
