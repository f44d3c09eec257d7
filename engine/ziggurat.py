"""Standard normals by the ziggurat method (Marsaglia and Tsang 2000; Doornik 2005), many at a time.

The density is covered by 256 strips of equal area. Strip 0 is the tail beyond ``x[1] = r`` with a rectangle under it;
strip i > 0 reaches from 0 to ``x[i]``, and left of ``x[i + 1]`` it lies under the density altogether. There, in 98.5 of
100 cases, one word of 64 bits is a value: 8 bits choose the strip and 54 others the place in it, to 2**-53 of its
width. The other cases are decided exactly: by the density in a wedge, by inversion in the tail.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]

STRIPS = 256
# Values at once: few enough for what they need to stay in the cache.
_PIECE = 2**15


@lru_cache(maxsize=1)
def edges() -> Floats:
    """Right ends of the strips and 0, [STRIPS + 1]: ``x[0]`` is the width that strip 0 would have as a rectangle."""
    low, high = 3.0, 5.0
    while math.nextafter(low, high) < high:
        middle = (low + high) / 2
        # The smaller r, the larger the strips.
        low, high = (middle, high) if _strips(middle) is None else (low, middle)
    found = _strips(high)
    assert found is not None
    return np.array(found)


def _strips(r: float) -> list[float] | None:
    """The edges, or ``None`` if the strips reach beyond the top of the density: the last of them must end there."""
    area = r * _density(r) + math.sqrt(2 * math.pi) * float(ndtr(-r))
    x = [area / _density(r), r]
    while len(x) < STRIPS:
        height = _density(x[-1]) + area / x[-1]
        if height >= 1:
            return None
        x.append(math.sqrt(-2 * math.log(height)))
    return [*x, 0.0] if _density(x[-1]) + area / x[-1] <= 1 else None


def _density(x: float) -> float:
    return math.exp(-x * x / 2)


class Ziggurat:
    """Normals from the words of a bit generator; not for two threads at once.

    Args:
        bits: the source of words.
    """

    def __init__(self, bits: np.random.BitGenerator) -> None:
        self._bits, self._generator = bits, np.random.Generator(bits)
        x = edges()
        self._width = x[:-1] * 2.0**-53
        self._inside = x[1:] / x[:-1] * 2.0**53
        density = np.exp(-(x**2) / 2)
        self._bottom, self._height, self._tail = density[:-1], np.diff(density), float(ndtr(-x[1]))
        self._scratch: tuple[npt.NDArray[np.int64], Floats, Floats] | None = None

    def fill(self, out: Floats) -> None:
        """Standard normals into ``out`` [n], contiguous."""
        for start in range(0, len(out), _PIECE):
            self._fill(out[start : start + _PIECE])

    def _fill(self, out: Floats) -> None:
        if self._scratch is None:
            self._scratch = np.empty(_PIECE, np.int64), np.empty(_PIECE), np.empty(_PIECE)
        strip, place, limit = self._scratch
        strip, place, limit = strip[: len(out)], place[: len(out)], limit[: len(out)]
        words = self._bits.random_raw(len(out)).view(np.int64)
        np.bitwise_and(words, STRIPS - 1, out=strip)
        np.right_shift(words, 10, out=words)
        place[:] = words
        np.take(self._width, strip, out=out, mode="clip")
        np.multiply(out, place, out=out)
        np.take(self._inside, strip, out=limit, mode="clip")
        np.abs(place, out=place)
        outside = np.flatnonzero(place >= limit)
        if len(outside):
            out[outside] = self._decide(out[outside], strip[outside])

    def _decide(self, values: Floats, strip: npt.NDArray[np.int64]) -> Floats:
        """Values for those that fell outside the part of their strip that lies under the density."""
        # In (0, 1], so that the tail's inversion is finite.
        chance = 1 - self._generator.random(len(values))
        height = self._bottom[strip] + chance * self._height[strip]
        beyond = np.flatnonzero((height >= np.exp(values * values * -0.5)) | (strip == 0))
        tail = strip[beyond] == 0
        drawn = self._generator.standard_normal(len(beyond))
        drawn[tail] = np.copysign(-ndtri(chance[beyond[tail]] * self._tail), values[beyond[tail]])
        values[beyond] = drawn
        return values
