"""Renyi differential privacy of the Poisson-subsampled Gaussian mechanism, add/remove adjacency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dpcheck.engine.accounting.bounds import Phase
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

Vector = NDArray[np.float64]

# Integer orders, dense where small noise or few steps put the optimum; between them the cumulant is interpolated.
_INTEGERS = np.unique(np.concatenate([np.arange(2, 129), np.geomspace(128, 65536, 150).round()])).astype(int)
_BETWEEN = 1 + np.geomspace(1e-4, 1, 400)[:-1]


@lru_cache(maxsize=4096)
def _cumulant(noise_multiplier: float, sample_rate: float, order: int) -> float:
    """``log E_Q[(P/Q)^order]``: Mironov, Talwar and Zhang 2019, section 3.3, exact for integers."""
    if sample_rate == 1.0:
        return order * (order - 1) / (2 * noise_multiplier**2)
    k = np.arange(order + 1, dtype=float)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choose + k * math.log(sample_rate) + (order - k) * math.log1p(-sample_rate)
    return float(logsumexp(terms + k * (k - 1) / (2 * noise_multiplier**2)))


def cumulants(phases: Sequence[Phase]) -> tuple[Vector, Vector]:
    """Orders, and upper bounds of the cumulant ``(order - 1) * RDP(order)`` of the composition.

    The cumulant is convex in the order and zero at 1, so a chord lies above it: fractional orders are safe.
    """
    total = np.zeros(len(_INTEGERS))
    for phase in phases:
        each = [_cumulant(phase.noise_multiplier, phase.sample_rate, int(order)) for order in _INTEGERS]
        # A relative rounding of 1e-12 on the safe side, for the sums of logarithms.
        total += phase.steps * np.maximum(np.array(each), 0.0) * (1 + 1e-12)
    knots, heights = np.concatenate([[1.0], _INTEGERS]), np.concatenate([[0.0], total])
    orders = np.concatenate([_BETWEEN, np.linspace(2, 65, 505), _INTEGERS])
    return orders, np.interp(orders, knots, heights)


def rdp_upper(phases: Sequence[Phase], delta: float) -> float:
    """Epsilon at ``delta`` by the improved conversion (Canonne, Kamath and Steinke 2020, Proposition 12)."""
    orders, cumulant = cumulants(phases)
    rdp = cumulant / (orders - 1)
    epsilon = rdp + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(epsilon.min()))
