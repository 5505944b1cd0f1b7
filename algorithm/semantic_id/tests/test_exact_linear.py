"""exact_linear：与批无关、与整数精确算术一致、尺度等变、反向正确。"""

from fractions import Fraction

import pytest
import torch

from algorithm.semantic_id.encoder import FeatureEncoder
from algorithm.semantic_id.exact_linear import exact_linear


def _random(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("dim", [1, 3, 256, 700])
def test_rows_do_not_depend_on_their_company(dim):
    x, w = _random(301, dim), _random(dim, 37, seed=1)
    whole = exact_linear(x, w)
    for size in (1, 2, 3, 7, 64):
        assert torch.equal(torch.cat([exact_linear(b, w) for b in x.split(size)]), whole)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(2))
    assert torch.equal(exact_linear(x[order], w), whole[order])
    columns = torch.randperm(dim, generator=torch.Generator().manual_seed(3))  # 换求和顺序也不变
    assert torch.equal(exact_linear(x[:, columns], w[columns]), whole)


def test_agrees_with_exact_rational_arithmetic():
    """在网格上的乘积没有舍入误差，只有最后转 float32 的一次。"""
    x, w = _random(3, 256), _random(256, 2, seed=1)
    got = exact_linear(x, w)
    for i in range(3):
        x_unit = 2.0 ** (torch.frexp(x[i].abs().max())[1].item() - 24)
        w_unit = 2.0 ** (torch.frexp(w.abs().max())[1].item() - 21)
        for j in range(2):
            pairs = zip(x[i].tolist(), w[:, j].tolist(), strict=True)
            total = sum((Fraction(round(a / x_unit)) * Fraction(round(b / w_unit)) for a, b in pairs), Fraction(0))
            exact = float(total * Fraction(x_unit) * Fraction(w_unit))
            assert got[i, j].item() == torch.tensor(exact, dtype=torch.float64).float().item()


def test_close_to_the_plain_product():
    x, w = _random(64, 512), _random(512, 128, seed=1)
    reference = x.double() @ w.double()
    bound = 2.0**-18 * x.norm(dim=1, keepdim=True).double() * w.abs().max()
    assert bool(((exact_linear(x, w) - reference).abs() <= bound).all())


@pytest.mark.parametrize("power", [-60, -7, 1, 40])
def test_scale_by_a_power_of_two_is_exact(power):
    x, w = _random(20, 16), _random(16, 5, seed=1)
    assert torch.equal(exact_linear(x * 2.0**power, w), exact_linear(x, w) * 2.0**power)
    assert torch.equal(exact_linear(x, w * 2.0**power), exact_linear(x, w) * 2.0**power)


def test_zero_rows_and_zero_weights():
    assert torch.equal(exact_linear(torch.zeros(2, 4), _random(4, 3)), torch.zeros(2, 3))
    assert torch.equal(exact_linear(_random(2, 4), torch.zeros(4, 3)), torch.zeros(2, 3))


def test_backward_is_the_plain_gradient():
    x, w = _random(5, 7).requires_grad_(), _random(7, 3, seed=1).requires_grad_()
    weights = _random(5, 3, seed=2)
    (exact_linear(x, w) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ w.detach().T)
    torch.testing.assert_close(w.grad, x.detach().T @ weights)


def test_autocast_does_not_lower_the_precision():
    x, w = _random(5, 7), _random(7, 3, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact_linear(x, w), exact_linear(x, w))
        inside = exact_linear(x, w)
    assert torch.equal(inside, exact_linear(x, w))


def test_trained_network_is_batch_independent_and_scale_equivariant():
    network = FeatureEncoder(32, 48)
    network.reset_(torch.Generator().manual_seed(0))
    network.weight_out.data.copy_(_random(48, 32, seed=1, scale=0.3))
    network.bias_in.data.copy_(_random(48, seed=2))
    x = _random(500, 32, seed=3)
    with torch.no_grad():
        whole = network(x)
        assert not torch.equal(whole, x)
        assert torch.equal(torch.cat([network(b) for b in x.split(3)]), whole)
        network.unit.fill_(8.0)
        assert torch.equal(network(x * 8.0), whole * 8.0)


def test_identity_shortcut_equals_the_full_path():
    network = FeatureEncoder(8, 4)
    x = _random(10, 8)
    assert network.is_identity()
    with torch.no_grad():
        short = network(x)
    assert torch.equal(short, network(x).detach())
