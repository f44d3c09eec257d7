"""Laplace noise against integrals over the densities themselves, which know nothing of half-lines or of transforms."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from dpcheck.engine.accounting import Phase, delta_of, epsilon_of, noise_multiplier
from dpcheck.engine.accounting.laplace import largest_loss
from scipy.integrate import quad

from dpcheck.errors import DpcheckError


def _densities(scale: float, rate: float, remove: bool):
    def lap(x: float) -> float:
        return math.exp(-abs(x) / scale) / (2 * scale)

    def mixture(x: float) -> float:
        return (1 - rate) * lap(x) + rate * lap(x - 1)

    return (mixture, lap) if remove else (lap, mixture)


def _one(scale: float, rate: float, remove: bool, epsilon: float) -> float:
    """The integral of (P - exp(epsilon) Q)+; outside of [0, 1] its sign is constant."""
    p, q = _densities(scale, rate, remove)
    factor = math.exp(epsilon)
    outer = [max(0.0, scale * (p(x) - factor * q(x))) for x in (0.0, 1.0)]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, 1, 401)
    x = (edges[:-1, None] + edges[1:, None] + nodes * np.diff(edges)[:, None]) / 2
    values = np.array([max(0.0, p(float(v)) - factor * q(float(v))) for v in x.ravel()]).reshape(x.shape)
    return sum(outer) + float((values * weights * np.diff(edges)[:, None] / 2).sum())


def _two(scale: float, rate: float, remove: bool, epsilon: float) -> float:
    p, q = _densities(scale, rate, remove)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = np.linspace(0, 1, 5)
    total = scale * sum(p(x) * _one(scale, rate, remove, epsilon - math.log(p(x) / q(x))) for x in (0.0, 1.0))
    for left, right in pairwise(edges):
        for node, weight in zip(nodes, weights, strict=True):
            x = float(left + right + node * (right - left)) / 2
            inner = _one(scale, rate, remove, epsilon - math.log(p(x) / q(x)))
            total += weight * (right - left) / 2 * p(x) * inner
    return total


@pytest.mark.parametrize(
    ("scale", "rate", "at"), [(1.0, 1.0, 0.4), (0.5, 0.1, 0.3), (3.0, 0.01, 1e-3), (0.2, 0.5, 3.0)]
)
def test_one_step_is_the_integral_over_its_densities(scale: float, rate: float, at: float) -> None:
    exact = max(_one(scale, rate, remove, at) for remove in (True, False))
    bounds = delta_of([Phase(scale, rate, 1, mechanism="laplace")], at)
    assert 0.98 * exact <= bounds.lower <= exact * (1 + 1e-6)
    assert exact * (1 - 1e-6) <= bounds.upper <= 1.02 * exact
    if rate == 1:
        assert exact == pytest.approx(1 - math.exp((at - 1 / scale) / 2), rel=1e-5)


@pytest.mark.parametrize(("scale", "rate", "at"), [(1.0, 1.0, 1.2), (0.5, 0.1, 0.4)])
def test_two_steps_are_the_nested_integral(scale: float, rate: float, at: float) -> None:
    exact = max(_two(scale, rate, remove, at) for remove in (True, False))
    bounds = delta_of([Phase(scale, rate, 2, mechanism="laplace")], at)
    assert bounds.lower <= exact * (1 + 1e-4)
    assert exact * (1 - 1e-4) <= bounds.upper <= 1.02 * exact


def test_a_gaussian_and_a_laplace_step_compose() -> None:
    """The integral of one over the outcomes of the other."""
    sigma, scale, at = 2.0, 1.5, 0.9

    def integrand(x: float) -> float:
        loss = (2 * x - 1) / (2 * sigma**2)
        density = math.exp(-((x - 1) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        e = at - loss
        top = 1 / scale
        one = 0.0 if e >= top else 1 - math.exp(e) if e <= -top else 1 - math.exp((e - top) / 2)
        return density * one

    exact = quad(integrand, -20, 22, limit=500, points=[-1.0, 0.0, 2.0, 5.0])[0]
    bounds = delta_of([Phase(sigma, 1.0, 1), Phase(scale, 1.0, 1, mechanism="laplace")], at)
    assert bounds.lower <= exact * (1 + 1e-7)
    assert exact * (1 - 1e-7) <= bounds.upper <= 1.01 * exact


@pytest.mark.parametrize(
    ("scale", "rate", "steps"), [(1.0, 1.0, 3), (0.1, 0.01, 10), (0.01, 1e-8, 5), (50.0, 0.3, 100)]
)
def test_epsilon_never_exceeds_that_of_pure_privacy(scale: float, rate: float, steps: int) -> None:
    pure = steps * math.log1p(rate * math.expm1(1 / scale))
    assert largest_loss(scale, rate) == pytest.approx(pure / steps, rel=1e-9)
    bounds = epsilon_of([Phase(scale, rate, steps, mechanism="laplace")], 1e-12)
    assert bounds.lower <= bounds.upper <= pure * (1 + 1e-9)


def test_what_has_no_bound_is_refused() -> None:
    laplace = Phase(1.0, 0.1, 1, mechanism="laplace")
    for unit in ({"adjacency": "replace-one"}, {"records": 2}):
        with pytest.raises(DpcheckError, match="Laplace noise have no bound"):
            epsilon_of([laplace], 1e-5, **unit)
    with pytest.raises(DpcheckError, match="mechanism='cauchy'"):
        epsilon_of([Phase(1.0, 0.1, 1, mechanism="cauchy")], 1e-5)
    with pytest.raises(DpcheckError, match=r"noise_multiplier=0\.001"):
        epsilon_of([Phase(1e-3, 0.1, 1, mechanism="laplace")], 1e-5)
    assert noise_multiplier(1.0, 0.1, 10, 1e-5, adjacency="replace-one", sampling="fixed-size") > 0
