"""Renyi differential privacy of the Poisson-subsampled Gaussian mechanism, add/remove adjacency.

With P = (1 - q) N(0, s^2) + q N(1, s^2) and Q = N(0, s^2), the divergence of order a is ``log E_Q[(P/Q)^a] / (a - 1)``,
and this direction is the larger one (Mironov, Talwar and Zhang 2019, theorem 5). "Cumulant" is ``log E_Q[(P/Q)^a]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dpcheck.engine.accounting.bounds import Phase
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

Vector = NDArray[np.float64]

# Orders close enough together that the best of them costs less than 0.1 % of epsilon against the best of all.
_INTEGERS = np.unique(np.concatenate([np.arange(2, 129), np.geomspace(128, 65536, 150).round()])).astype(int)
_FRACTIONS = 1 + np.geomspace(1e-3, 40.0, 240)
ORDERS: Vector = np.concatenate([_FRACTIONS, _INTEGERS.astype(float)])
# exp(-_DIGITS) is the relative error allowed to the quadrature, far below the 1e-12 that is added for rounding.
_DIGITS = 40.0
_ROUNDING = 1e-12
# Of the quadrature: with less noise than it can resolve, only the integer orders are used.
_MOST_POINTS = 1e6


@lru_cache(maxsize=256)
def _cumulants(noise_multiplier: float, sample_rate: float) -> Vector:
    """Upper bounds of the cumulant of one step at :data:`ORDERS`."""
    if sample_rate == 1.0:
        return ORDERS * (ORDERS - 1) / (2 * noise_multiplier**2)
    fractions = [_by_quadrature(noise_multiplier, sample_rate, float(order)) for order in _FRACTIONS]
    integers = [_by_sum(noise_multiplier, sample_rate, int(order)) for order in _INTEGERS]
    return np.asarray(np.maximum(np.array(fractions + integers), 0.0) * (1 + _ROUNDING))


def _by_sum(sigma: float, rate: float, order: int) -> float:
    """Exact for integer orders: Mironov, Talwar and Zhang 2019, section 3.3."""
    k = np.arange(order + 1, dtype=float)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choose + k * math.log(rate) + (order - k) * math.log1p(-rate) + k * (k - 1) / (2 * sigma**2)
    # The terms are sums of numbers far larger than themselves.
    return float(logsumexp(terms)) + 4e-16 * float(gammaln(order + 1))


def _by_quadrature(sigma: float, rate: float, order: float) -> float:
    """For any order above 1, by the trapezoidal rule with its error and its tails bounded and added.

    The integrand ``N(x; 0, s^2) (1 - q + q exp((2x - 1) / 2s^2))^a`` is analytic for ``|Im x| < pi s^2``, and on the
    lines ``|Im x| = w`` its modulus integrates to at most ``exp(w^2 / 2s^2)`` times the integral itself, so that the
    rule with step h has a relative error of at most ``2 exp(w^2 / 2s^2) / (exp(2 pi w / h) - 1)`` (Trefethen and
    Weideman 2014, theorem 5.1).
    """
    width = min(0.9 * math.pi * sigma**2, math.sqrt(2 * _DIGITS) * sigma)
    step = 2 * math.pi * width / (width**2 / (2 * sigma**2) + _DIGITS)
    # Beyond the ends the integrand is below N(x; 0, s^2) on the left and exp(a (a - 1) / 2s^2) N(x; a, s^2) on the
    # right: less than exp(-_DIGITS) each, while the whole is at least 1.
    reach = math.sqrt(2 * _DIGITS) * sigma
    right = order + math.sqrt(order * (order - 1) + reach**2)
    if right + reach > _MOST_POINTS * step:
        return math.inf
    x = np.arange(-reach, right + step, step)
    base = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    density = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    total = float(logsumexp(density + order * base)) + math.log(step)
    return float(np.logaddexp(total, -_DIGITS + math.log(2))) + 3 * math.exp(-_DIGITS)


def rdp_upper(phases: Sequence[Phase], delta: float) -> float:
    """Epsilon at ``delta`` by the improved conversion (Canonne, Kamath and Steinke 2020, Proposition 12)."""
    total = np.zeros(len(ORDERS))
    for phase in phases:
        total += phase.steps * _cumulants(phase.noise_multiplier, phase.sample_rate)
    rdp = total * (1 + _ROUNDING) / (ORDERS - 1)
    epsilon = rdp + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(epsilon.min()))
