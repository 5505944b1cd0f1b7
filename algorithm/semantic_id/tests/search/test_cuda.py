"""CUDA 上与 CPU 上同样的编号、同样的字节；没有显卡时跳过。"""

import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.exact_linear import exact_linear
from algorithm.semantic_id.search import beam
from algorithm.semantic_id.search.nearest import nearest, prepare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SIZES, WIDTH = (300, 700, 5000), 96


def gaussian(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture(scope="module")
def books() -> list[torch.Tensor]:
    made = [gaussian(size, WIDTH, seed=level, scale=2.0**-level) for level, size in enumerate(SIZES)]
    made[2][10:200] = made[2][9]  # 重复的码字
    made[1][5:40] *= 1e-8
    return made


@pytest.fixture(scope="module")
def rows(books) -> torch.Tensor:
    """普通的行、两个码字的中点、码字自己、远离原点的行。"""
    i, j = torch.randint(SIZES[0], (2, 400), generator=torch.Generator().manual_seed(7))
    ties = (books[0][i] + books[0][j]) / 2
    return torch.cat([gaussian(9000, WIDTH, seed=8), ties, books[0][:50], 40 + gaussian(100, WIDTH, seed=9)])


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 7, 256, 8192])
def test_nearest_is_the_cpu_s(books, rows, level, batch):
    x = rows if batch > 1 else rows[-150:]
    want = nearest(x, prepare(books[level]))
    book = prepare(books[level].cuda())
    got = torch.cat([nearest(part, book) for part in x.cuda().split(batch)])
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("setting", ["tf32", "autocast"])
def test_reduced_precision_settings_do_not_reach_the_search(books, rows, setting):
    want = nearest(rows, prepare(books[2]))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if setting == "tf32" else before)
        with torch.autocast("cuda", enabled=setting == "autocast"):
            got = nearest(rows.cuda(), prepare(books[2].cuda()))
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("tables", [True, False])
def test_beam_is_the_cpu_s(books, rows, tables):
    z = rows[-1200:]

    def run(z: torch.Tensor, weights: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        prepared = [prepare(weight) for weight in weights]
        products = beam.InnerProducts(prepared)
        products.grow_(weights, 1 << 40, 4, 1 << 40 if tables else 0)
        return beam.search(z, weights, prepared, 4, products)

    want, got = run(z, books), run(z.cuda(), [book.cuda() for book in books])
    assert all(torch.equal(a, b.cpu()) for a, b in zip(want, got, strict=True))


def test_exact_linear_is_the_cpu_s():
    x, weight = gaussian(3000, 256), gaussian(256, 64, seed=1)
    assert torch.equal(exact_linear(x.cuda(), weight.cuda()).cpu(), exact_linear(x, weight))


def trained(device: str) -> SemanticIDEncoder:
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=32, codebook_sizes=(40, 60))).to(device)
    x = gaussian(4000, 32, seed=3) * torch.linspace(0.2, 2, 32)
    train_codebook(encoder, x, 3, config=TrainerConfig(seed=5, batch_size=256), progress=False)
    assert encoder.feature_mean.device.type == device
    return encoder


def test_training_gives_the_same_bytes_and_the_codes_travel():
    first, second = trained("cuda"), trained("cuda")
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    x = gaussian(3000, 32, seed=4)
    codes = torch.stack(first.encode(x.cuda()), 1).cpu()
    assert torch.equal(codes, torch.stack(first.cpu().encode(x), 1))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_compiled_encoder_gives_the_same_ids(beam_size):
    config = SemanticIDConfig(embedding_dim=16, codebook_sizes=(8, 20), beam_size=beam_size)
    encoder = SemanticIDEncoder(config).cuda().eval()
    x = gaussian(60, 16).cuda()
    want = encoder.encode(x * 1.0)
    got = torch.compile(lambda rows: encoder.encode(rows * 1.0))(x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
