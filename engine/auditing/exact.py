"""Tests of a null hypothesis, each with a p-value that is exact or an upper bound, and a budget of false alarms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Of each check, whatever it looks at: with the checks of one audit, a false alarm in less than 10**-5 of all audits.
LEVEL = 1e-6


@dataclass(frozen=True)
class Check:
    """What one check of an audit found.

    Attributes:
        part: "clipping", "noise", "sampling", "release" or "epsilon".
        name: what was looked at.
        ok: whether it is as claimed.
        measured: in words, with numbers and units.
        p_value: of the claim, after the correction for the number of things looked at; None if nothing is random.
        record: how to repeat the worst case, if there is one.
    """

    part: str
    name: str
    ok: bool
    measured: str
    p_value: float | None = None
    record: str = ""


def judged(part: str, name: str, p_value: float, measured: str, record: str = "") -> Check:
    """A random check: it fails where the claim has a p-value below :data:`LEVEL`."""
    p_value = float(p_value) if p_value == p_value else 0.0
    return Check(part, name, p_value >= LEVEL, measured, min(1.0, p_value), record)


def chi_square(sums: npt.ArrayLike, degrees: npt.ArrayLike) -> Floats:
    """Two-sided p-values of sums of squares of ``degrees`` standard normals."""
    lower, upper = special.chdtr(degrees, sums), special.chdtrc(degrees, sums)
    return np.asarray(2 * np.minimum(lower, upper), dtype=float)


def normal(z: npt.ArrayLike) -> Floats:
    """Two-sided p-values of standard normals."""
    return np.asarray(2 * special.ndtr(-np.abs(z)), dtype=float)


def correlation(r: npt.ArrayLike, length: npt.ArrayLike) -> Floats:
    """P-values of the cosine between a standard normal vector of this length (at least 2) and an independent one.

    The square of the cosine is Beta(1/2, (length - 1) / 2), whatever the other vector is.
    """
    square = np.minimum(1.0, np.square(np.asarray(r, dtype=float)))
    return np.asarray(special.betainc((np.asarray(length, dtype=float) - 1) / 2, 0.5, 1 - square), dtype=float)


def kolmogorov(values: Floats, distribution: Floats) -> float:
    """P-value, rounded up, of independent values; ``distribution`` is the claimed CDF at the *sorted* values."""
    n = len(values)
    steps = np.arange(n + 1) / n
    above, below = (steps[1:] - distribution).max(), (distribution - steps[:-1]).max()
    return float(min(1.0, 2 * special.smirnov(n, max(above, below, 0.0))))


def binomial(successes: int, trials: int, probability: float) -> float:
    """Two-sided p-value: twice the smaller tail."""
    lower = special.bdtr(successes, trials, probability)
    upper = special.bdtrc(successes - 1, trials, probability) if successes else 1.0
    return float(min(1.0, 2 * min(lower, upper)))


def dispersion(counts: npt.ArrayLike, trials: int, probability: float) -> float:
    """P-value of the variance of independent Binomial(trials, probability) counts.

    The sum of squares is compared with a chi-square distribution of the same first two moments.
    """
    counts = np.asarray(counts, dtype=float)
    variance = trials * probability * (1 - probability)
    # Variance of the square of one standardised count, relative to a normal's.
    scale = 1 + (1 - 6 * probability * (1 - probability)) / variance / 2
    total = float(np.square(counts - trials * probability).sum()) / variance
    return float(chi_square(total / scale, len(counts) / scale))
