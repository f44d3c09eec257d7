"""The Gaussian mechanism without sampling, in closed form: Balle and Wang 2018, theorem 8.

With mean difference m (in standard deviations), a = m/2 - eps/m and b = a - m, delta = Phi(a) - exp(eps) Phi(b). Since
``exp(eps) phi(b) = phi(a)`` that is ``phi(a) (M(a) - M(b))`` with ``M = Phi / phi``, which does not cancel as badly.
The rounding of a, of the two ratios and of their difference is bounded and put on the safe side.
"""

from __future__ import annotations

import math

from dpcheck.engine.accounting.pairs import UNIT
from scipy.optimize import brentq
from scipy.special import erfcx, ndtr


def gaussian_delta(difference: float, epsilon: float) -> tuple[float, float]:
    """Bounds of delta at ``epsilon``, for a mean difference of so many standard deviations."""
    a = difference / 2 - epsilon / difference
    b = -difference / 2 - epsilon / difference
    density = math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    first = float(ndtr(a)) if a > 0 else density * _mills(a)
    second = density * _mills(b)
    off = 64 * UNIT * (1 + (1 + abs(a)) * (difference + abs(epsilon) / difference))
    error = off * (first + second)
    return max(0.0, first - second - error), min(1.0, first - second + error)


def gaussian_epsilon(difference: float, delta: float) -> tuple[float, float]:
    """Bounds of epsilon at ``delta``."""
    if gaussian_delta(difference, 0.0)[1] <= delta:
        return 0.0, 0.0

    def excess(epsilon: float) -> float:
        return math.log(max(gaussian_delta(difference, epsilon)[1], 1e-320)) - math.log(delta)

    high = difference**2 / 2 + difference
    while excess(high) > 0:
        high *= 2
    root = float(brentq(excess, 0.0, high, xtol=1e-13 * high, rtol=1e-14))
    lower = upper = root
    step = 1e-13 * high
    while gaussian_delta(difference, upper)[1] > delta:
        upper, step = upper + step, 2 * step
    step = 1e-13 * high
    while lower > 0 and gaussian_delta(difference, lower)[0] <= delta:
        lower, step = lower - step, 2 * step
    return max(0.0, lower), upper


def _mills(x: float) -> float:
    """Phi(x) / phi(x), for x <= 0."""
    return math.sqrt(math.pi / 2) * float(erfcx(-x / math.sqrt(2)))
