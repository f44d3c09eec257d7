"""The trade between the two errors of an attacker, from the trade between epsilon and delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dpcheck.engine.accounting.bounds import Bounds

_POINTS = 24


def false_negatives(
    false_positive_rates: Sequence[float],
    delta_at: Callable[[float], Bounds],
    epsilon_at: Callable[[float], Bounds],
) -> list[float]:
    """Lower bounds of an attacker's false-negative rate for each rate of false positives.

    The trade-off function of Dong, Roth and Su 2022 (proposition 6 of which gives it from the curve of delta):
    ``f(x) >= max(1 - delta - exp(eps) x, exp(-eps) (1 - delta - x))`` for every eps >= 0 and its delta. Upper bounds of
    delta, at finitely many epsilons, keep it below the truth.
    """
    last = epsilon_at(1e-9).upper
    grid = [0.0, *(last * (i / _POINTS) ** 2 for i in range(1, _POINTS + 1))] if math.isfinite(last) else [0.0]
    curve = [(epsilon, min(1.0, delta_at(epsilon).upper)) for epsilon in dict.fromkeys(grid)]
    return [
        max(0.0, *(max(1 - d - math.exp(e) * x, math.exp(-e) * (1 - d - x)) for e, d in curve if e < 700))
        for x in false_positive_rates
    ]
