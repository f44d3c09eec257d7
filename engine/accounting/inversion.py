"""delta(epsilon) of a composition, between two bounds, from the Laplace transform of its privacy loss.

For independent losses with transform M(z) = E[exp(z sum L)] and any t > 0

    delta(e) = E[(1 - exp(e - sum L))+] = 1/(2 pi i)  integral over z = t + is of  M(z) exp(-z e) / (z (z + 1)) dz

(Alghamdi et al. 2022, "The saddle-point method in differential privacy", theorem 1). What is computed differs by

* **smoothing.** e is moved by a random W in [-w/2, w/2] with the density of a Kaiser window, whose transform kappa
  falls fast: F_w(e) = E[delta(e - W)]. Now delta decreases in e, and is convex in exp(e), being a supremum of affine
  functions. So ``delta(e) <= F_w(e - c)`` with c = log E[exp W], by Jensen, for the mean of exp(e - c - W) is exp(e).
  And ``delta(e) >= 2 F_w(e + log cosh(w/2)) - F_2w(e)``, for by convexity it is at least twice the value at the mean of
  exp(e) and exp(e - 2W), which is exp(e - W) cosh(W), less that at exp(e - 2W). Both are off by about w^2. Also,
  plainly, ``delta(e) >= F_w(e + w/2)``;
* **aliasing.** The sum with spacing d gives ``sum over n of F(e + n B) exp(t n B)``, B = 2 pi / d (Poisson summation).
  No term is negative, so that the sum is above F, and F(u) <= m(r) kappa(r) M(r) exp(-r u) with
  m(r) = r^r / (1 + r)^(1 + r), for every r >= 0 (Chernoff), bounds the others from above by geometric series: r < t for
  n < 0, r > t for n > 0;
* **truncation** at s = S. There ``|M(t + is)| <= M(t)``, ``|z (z + 1)| >= s^2``, and with v = z w / 2, a = t w / 2,
  b = s w / 2 and b >= 3/2 sqrt(beta^2 + a^2) the root of beta^2 + v^2 has at most 1.342 a as its real part and at least
  0.745 b as its modulus, so that ``|kappa| <= beta cosh(1.342 a) / (sinh(beta) 0.745 b)``;
* **the transform of each loss**, known up to a relative error e_i of its value at t: the product of the T_i-th powers
  is then known up to ``E exp(2 E)``, E = sum T_i e_i;
* **rounding**, counted where it arises in units of 2^-53, with a factor of at least 2 to spare; functions of numpy and
  scipy are taken to err by at most a few units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dpcheck.engine.accounting.pairs import UNIT, Vector
from dpcheck.engine.accounting.quadrature import Transform
from numpy.typing import NDArray

# Multiplications in a product of matrices that BLAS does not share among threads.
_ONE_THREAD = 200_000
# Terms summed at once, about the square root of how many there are: the error grows with these and with their number.
_DEPTH = 64
# Terms whose exponentials are kept at once; a multiple of _DEPTH.
_CHUNK = 64 * _DEPTH


@dataclass(frozen=True)
class Kernel:
    """The Kaiser window: W in [-width/2, width/2], its density in proportion to I0(beta sqrt(1 - (2 W / width)^2))."""

    width: float
    beta: float

    def transform(self, z: NDArray[np.complexfloating]) -> NDArray[np.complex128]:
        """E[exp(z W)]."""
        root = np.sqrt(self.beta**2 + (z * self.width / 2) ** 2)
        return np.asarray(np.sinh(root) / root * (self.beta / math.sinh(self.beta)))

    def log_real(self, t: float) -> float:
        """log E[exp(t W)], rounded up."""
        root = math.hypot(self.beta, t * self.width / 2)
        # log(sinh(root) / root), of numbers that may be large
        value = root + math.log1p(-math.exp(-2 * root)) - math.log(2 * root)
        base = self.beta + math.log1p(-math.exp(-2 * self.beta)) - math.log(2 * self.beta)
        return value - base + 8 * UNIT * (root + self.beta)

    def cut(self, t: float) -> float:
        """S, from which on :meth:`tail` holds."""
        return 1.5 * math.hypot(self.beta, t * self.width / 2) * 2 / self.width

    def tail(self, t: float) -> float:
        """A bound of \\|E[exp(z W)]\\| for z = t + is, s >= S."""
        log_cosh = np.logaddexp(1.342 * t * self.width / 2, -1.342 * t * self.width / 2) - math.log(2)
        return (
            self.beta * math.exp(min(700.0, log_cosh)) / (math.sinh(self.beta) * 0.745 * self.cut(t) * self.width / 2)
        )


@dataclass(frozen=True)
class Tilt:
    """A Chernoff bound: ``F(u) <= exp(log_bound - r u)``."""

    r: float
    log_bound: float

    @classmethod
    def at(cls, r: float, log_transform: float, kernel: Kernel) -> Tilt:
        """From an upper bound of log M(r)."""
        constant = (r * math.log(r) - (1 + r) * math.log1p(r)) if r > 0 else 0.0
        return cls(r, constant + kernel.log_real(r) + log_transform + 64 * UNIT * (1 + r + abs(log_transform)))

    def alias(self, t: float, e: float, period: float) -> float:
        """A bound of the aliases on this tilt's side of t."""
        ratio = math.exp(-abs(self.r - t) * period)
        if ratio >= 0.5:
            return math.inf
        return math.exp(min(700.0, self.log_bound - self.r * e)) * ratio / (1 - ratio) * (1 + 1e-9)


@dataclass(frozen=True)
class Line:
    """M(z) on t + i k spacing, relative to M(t).

    Attributes:
        values: [N], for k = 0 to N - 1.
        log_scale: log M(t).
        errors: [N], of each value, and of the scale, relative to 1.
    """

    t: float
    spacing: float
    values: NDArray[np.complex128]
    log_scale: float
    errors: Vector


@dataclass(frozen=True)
class Inversion:
    """F, between two bounds.

    Attributes:
        terms: [N], what exp(-i s_k e) is multiplied by.
        error: of their sum.
        error_per_e: the same, for each unit of \\|e\\|.
        tilts: Chernoff bounds on both sides of t.
    """

    line: Line
    terms: NDArray[np.complex128]
    error: float
    error_per_e: float
    tilts: tuple[Tilt, ...]

    def _sum(self, e: float) -> tuple[float, float]:
        """The sum and a bound of its error."""
        t, log_scale = self.line.t, self.line.log_scale
        exponent = log_scale - t * e
        if exponent > 700 or not math.isfinite(self.error):
            return math.inf, math.inf
        scale = math.exp(exponent)
        turns = (self.line.spacing * e) * np.arange(len(self.terms))
        value = float((self.terms.real * np.cos(turns) + self.terms.imag * np.sin(turns)).sum()) * scale
        rounding = 8 * UNIT * (abs(exponent) + abs(log_scale) + t * abs(e) + 1)
        return value, scale * (self.error + self.error_per_e * abs(e)) + abs(value) * rounding

    def upper(self, e: float) -> float:
        """At least F(e)."""
        value, error = self._sum(e)
        return value + error

    def lower(self, e: float) -> float:
        """At most F(e)."""
        value, error = self._sum(e)
        t, period = self.line.t, 2 * math.pi / self.line.spacing
        below = min(tilt.alias(t, e, period) for tilt in self.tilts if tilt.r < t)
        above = min(tilt.alias(t, e, period) for tilt in self.tilts if tilt.r > t)
        lower = value - error - below - above
        return lower if math.isfinite(lower) else 0.0


def compose(parts: Sequence[tuple[Transform, int]], gaussian: float, t: float, end: float, period: float) -> Line:
    """The product of powers of transforms, for s from 0 to ``end``.

    Args:
        parts: each loss's transform on ``0 <= s <= end``, and how often it is composed.
        gaussian: squared mean difference of Gaussian mechanisms without sampling, for which
            ``log M(z) = gaussian z (z + 1) / 2``.
        period: B, made a little longer if need be.
    """
    count = math.ceil(end * period / (2 * math.pi)) + 1
    spacing = end / (count - 1)
    s = spacing * np.arange(count)
    log_modulus = -(s**2) * gaussian / 2
    angle = s * (2 * t + 1) * gaussian / 2
    log_scale = gaussian * t * (t + 1) / 2
    units = (16 + 8 * len(parts)) * UNIT
    errors = np.full(count, units * (1 + (t + 1) * math.sqrt(gaussian) + abs(log_scale)))
    for transform, steps in parts:
        moved = _on_line(transform, spacing, count)
        log_modulus += steps * _log_modulus(moved)
        angle += steps * np.angle(1 + moved)
        log_scale += steps * transform.log_scale
        # Of sums of products of at most _DEPTH terms, in any order, and of their sum; real and imaginary parts of both.
        # With c and f the factors of a term's power, (c - 1)(f - 1) + (c - 1) + (f - 1) is at most four times `moved`.
        summed = 16 * UNIT * (_DEPTH + len(transform.losses) / _DEPTH + 4)
        each = transform.errors + (summed + 2 * units) * transform.moved + units * abs(transform.log_scale)
        errors += steps * each[np.minimum(np.searchsorted(transform.ends, s), len(each) - 1)]
    product = np.exp(log_modulus) * np.exp(1j * angle)
    errors = np.where(errors < 50, errors * np.exp(2 * np.minimum(errors, 50.0)), math.inf)
    return Line(t, spacing, product, log_scale, errors)


def invert(line: Line, kernel: Kernel, tilts: Sequence[Tilt] = ()) -> Inversion:
    """F for a kernel that is cut before the line ends. Without tilts there is no lower bound."""
    t, spacing, count = line.t, line.spacing, len(line.values)
    s = spacing * np.arange(count)
    z = t + 1j * s
    weights = kernel.transform(z) / (z * (z + 1)) * (spacing / math.pi)
    weights[0] /= 2
    # sinh is rounded by less than this, where its real part is that of the root and it may itself be near zero.
    size = np.cosh(np.sqrt(kernel.beta**2 + (z * kernel.width / 2) ** 2).real) * (kernel.beta / math.sinh(kernel.beta))
    masses = np.abs(weights) + (spacing / math.pi) * size / np.abs(z * (z + 1))
    error = float(masses @ (line.errors + (128 + 2 * count) * UNIT))
    error += kernel.tail(t) / (math.pi * float(s[-1])) * (1 + float(line.errors[-1]))
    per_e = 8 * UNIT * float(masses @ (s + t))
    return Inversion(line, line.values * weights, error * 1.01, per_e, tuple(tilts))


def _on_line(transform: Transform, spacing: float, count: int) -> NDArray[np.complex128]:
    """``sum_j weights_j (exp(i k spacing losses_j) - 1)``, k below ``count``.

    As a product of matrices, k in two digits: with powers c and f, ``c f - 1 = (c - 1)(f - 1) + (c - 1) + (f - 1)``.
    """
    block = math.isqrt(count - 1) + 1
    rows = -(-count // block)
    total = np.zeros((2 * rows + 2, 2 * block + 2))
    # Real products this small stay on one thread: on a busy machine, waiting for a second takes longer than the work.
    tall = max(1, _ONE_THREAD // (_DEPTH * 2 * block))
    for begin in range(0, len(transform.losses), _CHUNK):
        turns: Vector = spacing * transform.losses[begin : begin + _CHUNK]
        ones = np.ones(len(turns), dtype=complex)
        coarse = np.vstack([_power_less_one(np.outer(block * np.arange(rows), turns)), ones])
        coarse *= transform.weights[begin : begin + _CHUNK]
        fine = np.column_stack([_power_less_one(np.outer(turns, np.arange(block))), ones])
        left = np.concatenate([coarse.real, coarse.imag])
        right = np.concatenate([fine.real, fine.imag], axis=1)
        for start in range(0, len(turns), _DEPTH):
            piece = right[start : start + _DEPTH]
            for row in range(0, len(left), tall):
                total[row : row + tall] += left[row : row + tall, start : start + _DEPTH] @ piece
    real = total[: rows + 1, : block + 1] - total[rows + 1 :, block + 1 :]
    imaginary = total[: rows + 1, block + 1 :] + total[rows + 1 :, : block + 1]
    each = real + 1j * imaginary
    return np.asarray(each[:-1, :-1] + each[:-1, -1:] + each[-1:, :-1]).ravel()[:count]


def _power_less_one(turn: Vector) -> NDArray[np.complex128]:
    """``exp(i turn) - 1``, to a few units of itself and of the turn."""
    half = np.sin(turn / 2)
    return np.asarray(-2 * half**2 + 1j * np.sin(turn))


def _log_modulus(moved: NDArray[np.complex128]) -> Vector:
    """``log |1 + moved|``, to a few units of ``moved``, or of 1 where that is above 1/2."""
    near = np.abs(moved) < 0.5
    inside = np.where(near, moved, 0.0)
    with np.errstate(divide="ignore"):
        far = np.log(np.abs(1 + moved))
    return np.where(near, np.log1p(2 * inside.real + np.abs(inside) ** 2) / 2, far)
