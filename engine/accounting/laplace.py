"""The Laplace mechanism on one number, with Poisson sampling: noise for private counts beside the gradients.

A record moves the number by at most 1 (the noise's scale b is relative to that). With u in [-1, 1] the move,
(1 - q) Lap(0, b) + q Lap(u, b) is told apart from Lap(0, b) best by half-lines, for the ratio of Lap(u, b) and
Lap(0, b) is monotone, and the half-line on the side of u has the more mass the larger ``|u|`` is; so u = 1 dominates,
as in :mod:`dpcheck.engine.accounting.pairs` for normal noise. With

    U(x) = log(1 - q + q exp((|x| - |x - 1|) / b))

the loss is U (remove) or -U (add): constant for x <= 0 and for x >= 1, and smooth between, where the exponent is
``(2 x - 1) / b``, as of normal noise with variance b / 2.

Without sampling and one step that is delta(e) = 1 - exp((e - 1 / b) / 2) for 0 <= e <= 1 / b (Balle and Wang 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dpcheck.engine.accounting.pairs import Direction, Loss, Mixture, Pair, Vector


@dataclass(frozen=True)
class Middle(Pair):
    """Outcomes between 0 and 1."""

    @property
    def scale(self) -> float:
        """b."""
        return 2 * self.mixture.sigma**2

    def log_base(self, x: Vector) -> Vector:
        return np.asarray(-x / self.scale - math.log(2 * self.scale))

    def base_slope(self, x: Vector) -> Vector:
        return np.full_like(x, 0.5)

    def log_base_sup(self, left: Vector, right: Vector, height: Vector) -> Vector:
        return self.log_base(left)

    def rounding(self, x: Vector) -> Vector:
        # The scale is rounded, too.
        return 2 * super().rounding(x)

    def window(self, mass: float) -> tuple[float, float]:
        return 0.0, 1.0

    def outside(self, left: float, right: float) -> float:
        return 0.0


def laplace(scale: float, rate: float, direction: Direction) -> Loss:
    """The loss of one step; not for "replace"."""
    low, high = _ratio(-1 / scale, rate), _ratio(1 / scale, rate)
    near, far = 0.5, math.exp(-1 / scale) / 2
    middle = Middle(Mixture((scale / 2) ** 0.5, (1 - rate, rate)), direction)
    if direction == "add":
        return Loss((middle,), ((-low, near), (-high, far)))
    return Loss((middle,), ((low, (1 - rate) * near + rate * far), (high, (1 - rate) * far + rate * near)))


def _ratio(exponent: float, rate: float) -> float:
    """``log(1 - q + q exp(exponent))``, to 128 units of itself for exponents of at most 100."""
    rise = rate * math.expm1(exponent)
    if rise > -0.5:
        return math.log1p(rise)
    return float(np.logaddexp(math.log1p(-rate) if rate < 1 else -math.inf, math.log(rate) + exponent))


def largest_loss(scale: float, rate: float) -> float:
    """The epsilon of pure differential privacy of one step, rounded up: of removing, which costs more."""
    return laplace(scale, rate, "remove").atoms[1][0] * (1 + 1e-14)
