"""Standard normals by the ziggurat method (Marsaglia and Tsang 2000; Doornik 2005), many at a time.

The density is covered by 1024 strips of equal area. Strip 0 is the tail beyond ``x[1] = r`` with a rectangle under it;
strip i > 0 reaches from 0 to ``x[i]``, and left of ``x[i + 1]`` it lies under the density altogether. There, in 99.6 of
100 cases, one word of 64 bits is a value: its last 10 bits choose the strip, and the word as a number of either sign is
the place in it, of which these bits are less than 2**-53 of the width. The other cases are decided exactly: by the
density in a wedge, by inversion in the tail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]

STRIPS = 1024
# Values at once: enough for two threads not to wait for Python's lock at every turn, few enough for the cache.
PIECE = 2**17
_spare: list[Floats] = []


@contextmanager
def buffer(count: int) -> Iterator[Floats]:
    """Memory for ``count <= PIECE`` values to write over. It is kept: new memory costs more than what it is for."""
    try:
        memory = _spare.pop()
    except IndexError:
        memory = np.empty(PIECE)
    try:
        yield memory[:count]
    finally:
        _spare.append(memory)


@lru_cache
def edges(strips: int = STRIPS) -> Floats:
    """Right ends of the strips and 0, [strips + 1]: ``x[0]`` is the width that strip 0 would have as a rectangle."""
    low, high = 3.0, 5.0
    while math.nextafter(low, high) < high:
        middle = (low + high) / 2
        # The smaller r, the larger the strips.
        low, high = (middle, high) if _strips(middle, strips) is None else (low, middle)
    found = _strips(high, strips)
    assert found is not None
    return np.array(found)


def _strips(r: float, strips: int) -> list[float] | None:
    """The edges, or ``None`` if the strips reach beyond the top of the density: the last of them must end there."""
    area = r * _density(r) + math.sqrt(2 * math.pi) * float(ndtr(-r))
    x = [area / _density(r), r]
    while len(x) < strips:
        height = _density(x[-1]) + area / x[-1]
        if height >= 1:
            return None
        x.append(math.sqrt(-2 * math.log(height)))
    return [*x, 0.0] if _density(x[-1]) + area / x[-1] <= 1 else None


def _density(x: float) -> float:
    return math.exp(-x * x / 2)


@dataclass(frozen=True)
class _Table:
    """By strip, [STRIPS]: width for a place of 2**63; places below which all is inside; density below; its height."""

    width: Floats
    inside: Floats
    bottom: Floats
    height: Floats
    tail: float
    """Probability of all beyond ``x[1]`` on one side."""


@lru_cache
def _table() -> _Table:
    x = edges()
    density = np.exp(-(x**2) / 2)
    return _Table(
        width=x[:-1] * 2.0**-63,
        inside=x[1:] / x[:-1] * 2.0**63,
        bottom=density[:-1],
        height=np.diff(density),
        tail=float(ndtr(-x[1])),
    )


class Ziggurat:
    """Normals from the words of a bit generator; not for two threads at once.

    Args:
        bits: the source of words.
    """

    def __init__(self, bits: np.random.BitGenerator) -> None:
        self._bits, self._generator, self._table = bits, np.random.Generator(bits), _table()

    def fill(self, out: Floats) -> None:
        """Standard normals into ``out`` [n], contiguous."""
        for start in range(0, len(out), PIECE):
            piece = out[start : start + PIECE]
            with buffer(len(piece)) as place, buffer(len(piece)) as limit:
                self._fill(piece, place, limit)

    def _fill(self, out: Floats, place: Floats, limit: Floats) -> None:
        words = self._bits.random_raw(len(out)).view(np.int64)
        place[:] = words
        strip = np.bitwise_and(words, STRIPS - 1, out=words)
        np.take(self._table.width, strip, out=out, mode="clip")
        np.multiply(out, place, out=out)
        np.take(self._table.inside, strip, out=limit, mode="clip")
        np.abs(place, out=place)
        outside = np.flatnonzero(place >= limit)
        if len(outside):
            out[outside] = self._decide(out[outside], strip[outside])

    def _decide(self, values: Floats, strip: npt.NDArray[np.int64]) -> Floats:
        """Values for those that fell outside the part of their strip that lies under the density."""
        # In (0, 1], so that the tail's inversion is finite.
        chance = 1 - self._generator.random(len(values))
        height = self._table.bottom[strip] + chance * self._table.height[strip]
        beyond = np.flatnonzero((height >= np.exp(values * values * -0.5)) | (strip == 0))
        tail = strip[beyond] == 0
        drawn = self._generator.standard_normal(len(beyond))
        drawn[tail] = np.copysign(-ndtri(chance[beyond[tail]] * self._table.tail), values[beyond[tail]])
        values[beyond] = drawn
        return values
