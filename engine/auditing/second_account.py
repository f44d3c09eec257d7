"""A second account of a run, by arithmetic of its own, to hold the accountant's claim against.

Privacy losses are put on a grid and convolved; nothing is shared with :mod:`dpcheck.engine.accounting`. It is an
estimate, within about 1 % where delta is above 1e-10, and no bound.
"""

from __future__ import annotations

import numpy as np
from dpcheck.engine.auditing.exact import Floats
from scipy import special
from scipy.signal import fftconvolve

_CELLS = 4000
_DROPPED = 1e-17


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of ``steps`` Poisson-subsampled Gaussian mechanisms for one record added or removed, estimated."""
    return max(_one_way(noise, rate, steps, delta, removed=removed) for removed in (True, False))


def _one_way(noise: float, rate: float, steps: int, delta: float, *, removed: bool) -> float:
    x = np.linspace(-9.5 * noise, 1 + 9.5 * noise, 40 * _CELLS)
    middle = (x[1:] + x[:-1]) / 2
    without = np.diff(special.ndtr(x / noise))
    with_it = (1 - rate) * without + rate * np.diff(special.ndtr((x - 1) / noise))
    exponent = (middle - 0.5) / noise**2
    loss = np.logaddexp(np.log(rate) + exponent, np.log1p(-rate) if rate < 1 else -np.inf)
    masses, loss = (with_it, loss) if removed else (without, -loss)
    # The spread of the sum, not of one step, decides how fine the grid must be.
    mean = float(masses @ loss)
    spread = float(masses @ np.square(loss - mean)) ** 0.5
    width = max(spread * steps**0.5 / _CELLS * 8, float(np.ptp(loss)) / 2**20)
    start, one = _on_grid(masses, loss, width)
    start, many = _power(start, one, steps)
    at = (start + np.arange(len(many))) * width
    return _inverted(at, many, delta)


def _on_grid(masses: Floats, loss: Floats, width: float) -> tuple[int, Floats]:
    """Masses at multiples of ``width``, divided between both neighbours so that means are kept."""
    place = loss / width
    low = np.floor(place).astype(int)
    part, start = place - low, int(low.min())
    size = int(low.max()) - start + 2
    grid = np.bincount(low - start, masses * (1 - part), size) + np.bincount(low - start + 1, masses * part, size)
    return start, np.asarray(grid)


def _power(start: int, masses: Floats, count: int) -> tuple[int, Floats]:
    found: tuple[int, Floats] = 0, np.ones(1)
    square = start, masses
    while count:
        if count % 2:
            found = _cut(found[0] + square[0], fftconvolve(found[1], square[1]))
        count //= 2
        if count:
            square = _cut(2 * square[0], fftconvolve(square[1], square[1]))
    return found


def _cut(start: int, masses: Floats) -> tuple[int, Floats]:
    kept = np.flatnonzero(masses > _DROPPED)
    first, last = (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 1)
    return start + first, masses[first:last].clip(0)


def _inverted(at: Floats, masses: Floats, delta: float) -> float:
    """The epsilon at which the sum of masses * (1 - exp(epsilon - loss)) beyond it is ``delta``."""
    low, high = 0.0, max(0.0, float(at[-1]))
    for _ in range(60):
        middle = (low + high) / 2
        beyond = at > middle
        spent = float(masses[beyond] @ -np.expm1(middle - at[beyond]))
        low, high = (middle, high) if spent > delta else (low, middle)
    return high
