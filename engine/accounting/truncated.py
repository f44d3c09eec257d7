"""Poisson samples that are cut to a largest size: what is lost is the chance that one ever had to be cut.

Let tau be the sum over all steps of the probability that more than B records are drawn. Run the mechanism with and
without the cut on the same samples and the same noise: until a sample is too large they are equal, so that any event
has a probability that differs by at most tau, on each of two neighbouring data sets. Hence, of the uncut delta,

    delta(e) - (1 + exp(e)) tau  <=  delta_cut(e)  <=  delta(e) + (1 + exp(e)) tau,

whichever records are left out (Chua et al. 2024, arXiv 2411.04205, on truncated Poisson sampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dpcheck.engine.accounting.bounds import check_rate
from dpcheck.engine.accounting.pairs import UNIT
from scipy.special import gammaln

from dpcheck.errors import DpcheckError

_STEPS = 60
# exp of more than this is no number.
_LARGEST = 700.0


def cut_probability(dataset_size: int, sample_rate: float, largest_batch: int, records: int = 1) -> float:
    """At least the probability that more than ``largest_batch`` records are drawn, for :attr:`Phase.cut`.

    It must hold for both of two neighbours, hence for n = dataset_size + records. With k = largest_batch + 1, the terms
    of ``P[Bin(n, q) >= k]`` fall at least as fast as a geometric series of ratio r = (n - k) q / ((k + 1) (1 - q)), so
    that the sum is at most the first over 1 - r.

    Args:
        records: how many records a unit of privacy has at most.

    Raises:
        DpcheckError: naming the value that is out of range.
    """
    q = check_rate(sample_rate, "sample_rate")
    for name, value in (("dataset_size", dataset_size), ("largest_batch", largest_batch), ("records", records)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DpcheckError(f"{name}={value!r} is not a positive whole number", where=name)
    n, k = dataset_size + records, largest_batch + 1
    if q == 0 or k > n:
        return 0.0
    if q == 1 or k <= n * q:
        return 1.0
    ratio = (n - k) * q / ((k + 1) * (1 - q)) * (1 + 8 * UNIT)
    if ratio >= 1:
        return 1.0
    parts = (gammaln(n + 1), -gammaln(k + 1), -gammaln(n - k + 1), k * math.log(q), (n - k) * math.log1p(-q))
    first = math.fsum(map(float, parts)) + 16 * UNIT * sum(abs(float(part)) for part in parts)
    # Below the normal numbers exp is rounded by more than a unit of itself, down to zero.
    return min(1.0, (math.exp(min(0.0, first)) + 1e-300) / (1 - ratio) * (1 + 1e-12))


def epsilon_with_cuts(
    bounds_at: Callable[[float], tuple[float, float]], delta: float, tau: float
) -> tuple[float, float]:
    """Bounds of epsilon at ``delta``, from those of the uncut samples.

    If ``delta(e') <= delta - (1 + exp(e')) tau`` then e' is enough; and if ``delta(e) > delta + (1 + exp(e)) tau`` then
    e is not.
    """
    lower, least = bounds_at(delta)
    raised = _up(delta + _shown(lower, tau))
    below = min(lower, bounds_at(raised)[0]) if raised < 1 else 0.0
    for _ in range(_STEPS):
        trial = 1.0005 * least + 1e-5
        left = _down(delta - _shown(trial, tau))
        if left <= 0:
            break
        least = bounds_at(left)[1]
        if least <= trial:
            return below, trial
    return below, math.inf


def delta_with_cuts(bounds: tuple[float, float], epsilon: float, tau: float) -> tuple[float, float]:
    """Bounds of delta at ``epsilon``."""
    shown = _shown(epsilon, tau)
    return max(0.0, _down(bounds[0] - shown)), min(1.0, _up(bounds[1] + shown))


def _shown(epsilon: float, tau: float) -> float:
    """``(1 + exp(epsilon)) tau``, rounded up; infinite where it is far above 1 or cannot be computed."""
    if tau == 0:
        return 0.0
    return (1 + math.exp(epsilon)) * tau * (1 + 16 * UNIT) + 5e-324 if epsilon <= _LARGEST else math.inf


def _up(value: float) -> float:
    return math.nextafter(value, math.inf)


def _down(value: float) -> float:
    return math.nextafter(value, -math.inf)
