"""主成分：手算的方向与次序、符号定死、与协方差的特征方程相符。"""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from algorithm.semantic_id.metrics import principal_axes as room
from algorithm.semantic_id.metrics.principal_axes import principal_axes

RNG = np.random.default_rng(2)


def test_largest_component_is_positive_whatever_lapack_says(monkeypatch):
    x = RNG.standard_normal((50, 6))
    covariance = x.T @ x
    axes = principal_axes(covariance, 6)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(6)] > 0).all()
    real = np.linalg.eigh
    for signs in (-1.0, np.array([1, -1, 1, 1, -1, 1])):
        with monkeypatch.context() as patch:
            patch.setattr(room.np.linalg, "eigh", lambda c, s=signs: (real(c)[0], real(c)[1] * s))
            assert (principal_axes(covariance, 6) == axes).all()


def test_axes_by_hand_and_by_their_definition():
    assert principal_axes(np.diag([1.0, 9.0, 4.0]), 2).tolist() == [[0, 0], [1, 0], [0, 1]]
    # [[2, -1], [-1, 2]]：方差 3 的方向是 (1, −1) / √2，绝对值并列时看第一个分量
    assert principal_axes(np.array([[2.0, -1.0], [-1.0, 2.0]]), 1)[:, 0] == pytest.approx([0.5**0.5, -(0.5**0.5)])
    x = RNG.standard_normal((40, 5)) * [5, 1, 3, 2, 4]
    axes = principal_axes(x.T @ x, 3)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-12)
    spread = np.square(x @ axes).sum(axis=0)
    assert spread == pytest.approx(np.sort(np.linalg.eigvalsh(x.T @ x))[::-1][:3])
    assert principal_axes(np.array([[4.0]]), 2).tolist() == [[1.0]]


def test_the_example_in_the_docstring():
    assert doctest.testmod(room) == (0, 1)
