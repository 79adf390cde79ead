"""Leveled matrices: beside Muon's iteration, beside polynomials of singular values, and what becomes of these."""

import pytest
import torch

from tests.networks import generator
from tests.rounding import assert_agree
from weightedit.optim.leveling import leveled
from weightedit.optim.muon import COEFFICIENTS, Muon

SHAPES = [(5, 9), (9, 5), (6, 6), (70, 80), (80, 70), (70, 150)]


def growth():
    """By how much the rounds make an error of rounding grow at most, with the errors of each round.

    An error in a singular value s grows by p'(s). One in s^2, of which the rounds see a small matrix, grows by
    s T'(s^2), where T(s^2) = p(s) / s is what the matrix is multiplied by.
    """
    start = values = torch.logspace(-6, 0, 10**4, dtype=torch.float64)
    errors = slopes = torch.ones_like(values)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        own = abs(a) * values + abs(b) * values**3 + abs(c) * values**5
        slope = a + 3 * b * values**2 + 5 * c * values**4
        errors, slopes = errors * slope.abs() + own, slopes * slope
        values = a * values + b * values**3 + c * values**5
    return float((errors + (slopes - values / start).abs() / (2 * start)).max())


def of_values(values):
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("shape", SHAPES)
def test_rounds_are_those_of_muon(shape):
    x = torch.randn(2, *shape, generator=generator(), dtype=torch.float64)
    expected = Muon(precision="parameters")._orthogonal(x) * max(shape) ** 0.5
    assert_agree(leveled([x])[0], expected, growth())


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_values_go_through_the_polynomials(shape):
    """Small and large, square and long, alone and beside others, as they stand and turned."""
    x = torch.randn(2, *shape, generator=generator(), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    values = of_values(s / s.norm(dim=-1, keepdim=True)) * max(shape) ** 0.5
    expected = u @ torch.diag_embed(values) @ vt
    assert_agree(leveled([x])[0], expected, growth())
    assert_agree(leveled([x, x[0].mT, x[:1]])[1], expected[0].mT, growth())
    assert not leveled([torch.zeros(shape)])[0].any()


@pytest.mark.parametrize("shape", [(300, 320), (320, 300)])
def test_matrices_of_every_size_are_leveled(shape, monkeypatch):
    """In bfloat16, as on a GPU: along what float64 says, singular values in the band that the rounds lead to."""
    x = torch.randn(2, *shape, generator=generator(), dtype=torch.float64)
    (exact,) = leveled([x])
    monkeypatch.setattr("weightedit.optim.leveling._is_coarse", lambda _: True)
    (coarse,) = leveled([x.float()])
    assert coarse.dtype == torch.float32
    along = (exact * coarse).sum() / exact.norm() / coarse.norm()
    assert along > 1 - growth() ** 0.5 * torch.finfo(torch.bfloat16).eps
    assert coarse.square().mean().sqrt() == pytest.approx(1, abs=0.3)


def test_a_matrix_of_one_direction_does_not_grow_in_bfloat16(monkeypatch):
    """Its one singular value is at the end of where the polynomials are good, and rounding may put it beyond."""
    monkeypatch.setattr("weightedit.optim.leveling._is_coarse", lambda _: True)
    for seed in range(10):
        a, b = torch.randn(2, 300, 1, generator=generator(seed))
        (found,) = leveled([a @ b.mT])
        assert 0.5 < torch.linalg.matrix_norm(found, 2) / 300**0.5 < 1.3
