"""Dominating pairs of one step: the two output distributions that are easiest to tell apart, and their loss.

Units: the clipping norm is 1. A record, or the k records of a user, of which a step draws j with probability a_j, moves
the sum by a vector of length at most j, so that the outputs with and without it are

    A = sum_j a_j N(v_j, s^2 I) with |v_j| <= j,    and    N(0, s^2 I).

Replacing it puts another such mixture B in place of the second. For any event R take the half-space H with the same
mass under N(0, s^2 I). By Neyman and Pearson N(v)(H) is the largest value that N(v)(R) can have when H points along v,
and the smallest when it points the other way; it grows with |v|. So A(R) - e^eps B(R) is greatest on a line:

    remove:  P = sum_j a_j N(j, s^2)  against  Q = N(0, s^2),     add: the same two exchanged,
    replace: P = sum_j a_j N(j, s^2)  against  Q = sum_j a_j N(-j, s^2).

A sample of fixed size, of which a record is part with probability q, is treated by :func:`without_replacement`.

A composition is dominated by the composition of the pairs of one direction (Zhu, Dong and Wang 2022, theorem 10), and
the two directions are composed separately (Lebeda et al. 2024, arXiv 2405.20769).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, ndtr, ndtri

Vector = NDArray[np.float64]
Direction = Literal["remove", "add", "replace"]

# Half a unit in the last place of 1.
UNIT = 2.0**-53


@dataclass(frozen=True)
class Mixture:
    """``sum_j weights[j] N(j, sigma^2)`` over ``N(0, sigma^2)``; the weights may be off by k + 3 units, relatively."""

    sigma: float
    weights: tuple[float, ...]

    @classmethod
    def binomial(cls, sigma: float, rate: float, records: int) -> Mixture:
        """Of ``records`` records, each drawn with probability ``rate`` on its own."""
        return cls(
            sigma,
            tuple(math.comb(records, j) * rate**j * (1 - rate) ** (records - j) for j in range(records + 1)),
        )

    @property
    def largest(self) -> int:
        """The largest shift, k."""
        return len(self.weights) - 1

    def _exponents(self, x: Vector) -> tuple[Vector, Vector]:
        """a_j and the log of the j-th density over that of N(0, s^2), for j = 1 to k, as columns."""
        j = np.arange(1.0, len(self.weights))[:, None]
        return np.array(self.weights[1:])[:, None], j * (2 * x - j) / (2 * self.sigma**2)

    def log_ratio(self, x: Vector) -> Vector:
        """U(x), the log of the ratio of the densities; it increases."""
        weights, exponents = self._exponents(x)
        with np.errstate(divide="ignore", over="ignore"):
            first = np.full((1, x.size), self.weights[0])
            largest = np.maximum(exponents.max(axis=0), 0.0)
            scaled = first * np.exp(-largest) + (weights * np.exp(exponents - largest)).sum(axis=0)
            wide = largest + np.log(scaled[0])
            near = (weights * np.expm1(exponents)).sum(axis=0)
        small = np.abs(near) < 0.5
        return np.where(small, np.log1p(np.where(small, near, 0.0)), wide)

    def shift(self, x: Vector) -> Vector:
        """The mean shift given x, ``s^2 U'(x)``; it increases from 0 to k."""
        weights, exponents = self._exponents(x)
        j = np.arange(1.0, len(self.weights))[:, None]
        return np.asarray((j * weights * np.exp(exponents - self.log_ratio(x))).sum(axis=0))

    def rounding(self, x: Vector) -> Vector:
        """A bound of the error of :meth:`log_ratio`: of the exponents, of their exponentials, of sum and logarithm."""
        weights, exponents = self._exponents(x)
        log_ratio = self.log_ratio(x)
        given = weights * np.exp(exponents - log_ratio)
        terms = self.largest + 4
        of_terms = (given * (np.abs(exponents) + terms)).sum(axis=0) + terms * (1 - self.weights[0])
        return np.asarray(8 * UNIT * (of_terms + terms * np.abs(log_ratio)))

    def upper_tail(self, x: float) -> float:
        """Mass above x, rounded up."""
        tails = [a * float(ndtr((j - x) / self.sigma)) for j, a in enumerate(self.weights)]
        return sum(tails) * (1 + 1e-12)

    def upper_cut(self, mass: float) -> float:
        """A point with at most about ``mass`` above it."""
        share = mass / len(self.weights)
        cuts = [j - self.sigma * float(ndtri(min(0.5, share / a))) for j, a in enumerate(self.weights) if a > 0]
        return max(cuts)


@dataclass(frozen=True)
class Pair:
    """One direction. The privacy loss is ``L = log P/Q``, distributed as under P, of the outcomes ``above``, or all."""

    mixture: Mixture
    direction: Direction
    above: float = -math.inf

    def loss(self, x: Vector) -> Vector:
        """L(x)."""
        if self.direction == "remove":
            return self.mixture.log_ratio(x)
        if self.direction == "add":
            return -self.mixture.log_ratio(x)
        return self.mixture.log_ratio(x) - self.mixture.log_ratio(-x)

    @property
    def largest(self) -> float:
        """The largest loss, rounded up; that of adding is where no record is drawn."""
        if self.direction != "add" or self.mixture.weights[0] == 0:
            return math.inf
        return -math.log(self.mixture.weights[0]) * (1 + 4 * UNIT) + 2 * (self.mixture.largest + 3) * UNIT

    def log_density(self, x: Vector) -> Vector:
        """Of P."""
        density = self.log_base(x)
        return density if self.direction == "add" else density + self.mixture.log_ratio(x)

    def log_base(self, x: Vector) -> Vector:
        """Log density of the outcome without the record."""
        return _log_normal(x, self.mixture.sigma)

    def base_slope(self, x: Vector) -> Vector:
        """``|s^2|`` times the slope of :meth:`log_base`."""
        return np.abs(x)

    def log_base_sup(self, left: Vector, right: Vector, height: Vector) -> Vector:
        """A bound of the log modulus of that density on the rectangles of :meth:`log_sup`."""
        return _log_normal(np.clip(0.0, left, right), self.mixture.sigma) + height**2 / (2 * self.mixture.sigma**2)

    def slope(self, x: Vector) -> Vector:
        """``|s^2 L'(x)|``."""
        both = self.direction == "replace"
        return self.mixture.shift(x) + (self.mixture.shift(-x) if both else 0.0)

    def rounding(self, x: Vector) -> Vector:
        """A bound of the error of :meth:`loss`."""
        both = self.direction == "replace"
        return self.mixture.rounding(x) + (self.mixture.rounding(-x) if both else 0.0)

    def window(self, mass: float) -> tuple[float, float]:
        """An interval outside of which P has at most about ``mass``."""
        left = self.mixture.sigma * float(ndtri(mass / 2))
        right = -left if self.direction == "add" else self.mixture.upper_cut(mass / 2)
        return max(left, self.above), right

    def outside(self, left: float, right: float) -> float:
        """Mass of P outside of [left, right], rounded up."""
        # Every component of the mixture is to the right of N(0, s^2).
        below = float(ndtr(left / self.mixture.sigma)) * (1 + 1e-12) if left > self.above else 0.0
        if self.direction == "add":
            return below + float(ndtr(-right / self.mixture.sigma)) * (1 + 1e-12)
        return below + self.mixture.upper_tail(right)

    def log_sup(self, left: Vector, right: Vector, height: Vector, t: float, s: float) -> Vector:
        """A bound of ``log |p(z) exp((t + is) L(z))|`` on the rectangles ``left <= Re z <= right, |Im z| <= height``.

        With f = height / s^2 the terms of the mixture at x + iy have arguments in a sector of opening k f, so that
        their sum is at least ``cos(k f / 2)`` of what it is at x, and at most that; hence the bounds of Re U and of
        ``|U'| <= shift / (s^2 cos(k f / 2))``, and ``|Im U| <= k f``. Infinite if the sector is too wide.
        """
        mixture = self.mixture
        angle = height / mixture.sigma**2
        sector = mixture.largest * angle
        narrow = sector < 3.0
        log_cosine = np.log(np.cos(np.where(narrow, sector, 0.0) / 2))
        base = self.log_base_sup(left, right, height)
        if self.direction == "remove":
            real = (t + 1) * mixture.log_ratio(right)
            shift, most = mixture.shift(right), sector
        elif self.direction == "add":
            real = -t * (mixture.log_ratio(left) + log_cosine)
            shift, most = mixture.shift(right), sector
        else:
            real = (t + 1) * mixture.log_ratio(right) - t * (mixture.log_ratio(-right) + log_cosine)
            shift, most = mixture.shift(right) + mixture.shift(-left), 2 * sector
        turn = np.minimum(most, shift * angle / np.exp(log_cosine))
        return np.where(narrow, base + real + s * turn, np.inf)


@dataclass(frozen=True)
class Loss:
    """A privacy loss: its distribution on pieces, and the values that alone have a mass, with that mass."""

    pieces: tuple[Pair, ...]
    atoms: tuple[tuple[float, float], ...] = ()


def without_replacement(sigma: float, rate: float) -> Loss:
    """Of a uniform sample of fixed size, a record replaced by another; the rate is the sample's share of the records.

    The sample with the record can be had from one without it by exchanging a record s: given the rest of the sample,
    the outputs are q N(x) + (1 - q) N(s) and q N(x') + (1 - q) N(s), each two of x, x', s at most 2 apart. By advanced
    joint convexity (Balle, Barthe and Gaboardi 2018, theorem 2) for eps >= 0 their divergence is at most that of
    (1 - q) N(0) + q N(2) from N(0); for eps < 0 the same with the two exchanged (Zhu, Dong and Wang 2022, proposition
    30). So the loss is positive as that of removing and negative as that of adding, with noise of half the size.
    """
    mixture = Mixture.binomial(sigma / 2, rate, 1)
    # U is zero at 1/2. What is left is (1 - q) (Phi(h) - Phi(-h)), h = 1 / 2s.
    zero = (1 - rate) * float(erf(1 / (2 * mixture.sigma) / math.sqrt(2)))
    return Loss((Pair(mixture, "remove", 0.5), Pair(mixture, "add", 0.5)), ((0.0, zero),))


def _log_normal(x: Vector, sigma: float) -> Vector:
    return -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
