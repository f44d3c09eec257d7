"""delta of one to three steps, from the definition and not by transforms, with mpmath or by nested quadrature."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
from mpmath import mpf
from numpy.typing import NDArray

DIRECTIONS = ("remove", "add", "replace")


class Exact:
    """One step: P and Q are mixtures of normal distributions around 0 to k, of which Q is N(0, s^2) unless replaced."""

    def __init__(self, sigma: float, rate: float, direction: str, records: int = 1) -> None:
        q, n = mpf(rate), records
        self.sigma = mpf(sigma)
        mixture = [(mpmath.binomial(n, j) * q**j * (1 - q) ** (n - j), mpf(j)) for j in range(n + 1)]
        normal = [(mpf(1), mpf(0))]
        mirror = [(a, -j) for a, j in mixture]
        self.p, self.q = {
            "remove": (mixture, normal),
            "add": (normal, mixture),
            "replace": (mixture, mirror),
        }[direction]
        self.rises = direction != "add"
        self.reach = 11 * self.sigma + n

    def density(self, x: mpf, of: str = "p") -> mpf:
        return mpmath.fsum(a * mpmath.npdf(x, m, self.sigma) for a, m in getattr(self, of))

    def loss(self, x: mpf) -> mpf:
        return mpmath.log(self.density(x)) - mpmath.log(self.density(x, "q"))

    def tail(self, x: mpf, of: str) -> mpf:
        """Mass where the loss is above that at x."""
        sign = 1 if self.rises else -1
        return mpmath.fsum(a * mpmath.ncdf(sign * (m - x) / self.sigma) for a, m in getattr(self, of))

    def delta(self, epsilon: mpf) -> mpf:
        """Of one step: the event is where the loss, which is monotone, exceeds epsilon."""
        low, high = -4 * self.reach, 4 * self.reach
        above = self.loss(low) > epsilon
        if above == (self.loss(high) > epsilon):
            return 1 - mpmath.exp(epsilon) if above else mpf(0)
        for _ in range(int(3.4 * mpmath.mp.dps)):
            middle = (low + high) / 2
            low, high = (middle, high) if (self.loss(middle) > epsilon) == above else (low, middle)
        return self.tail(low, "p") - mpmath.exp(epsilon) * self.tail(low, "q")


def subsampled_delta(sigma: float, rate: float, direction: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """delta of one step of one record added or removed, in closed form, for an array of epsilons."""
    from scipy.special import ndtr

    def remove(e: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            x = sigma**2 * np.log((np.exp(e) - (1 - rate)) / rate) + 0.5
        inside = (1 - rate) * ndtr(-x / sigma) + rate * ndtr((1 - x) / sigma) - np.exp(e) * ndtr(-x / sigma)
        return np.where(np.exp(e) <= 1 - rate, 1 - np.exp(e), inside)

    def add(e: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            x = sigma**2 * np.log((np.exp(-e) - (1 - rate)) / rate) + 0.5
        inside = ndtr(x / sigma) - np.exp(e) * ((1 - rate) * ndtr(x / sigma) + rate * ndtr((x - 1) / sigma))
        return np.where(np.exp(-e) <= 1 - rate, 0.0, inside)

    return remove if direction == "remove" else add


def delta_of_steps(sigma: float, rate: float, direction: str, steps: int, epsilon: float) -> float:
    """delta of up to three steps of one record added or removed: integrals over all outcomes but the last one."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(-11 * sigma, 11 * sigma + 1, 61)
    half = np.diff(edges)[:, None] / 2
    x = ((edges[1:] + edges[:-1])[:, None] / 2 + half * nodes).ravel()
    normal = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    ratio = 1 - rate + rate * np.exp((2 * x - 1) / (2 * sigma**2))
    mass = (half * weights).ravel() * (normal * ratio if direction == "remove" else normal)
    loss = np.log(ratio) if direction == "remove" else -np.log(ratio)
    one = subsampled_delta(sigma, rate, direction)
    if steps == 1:
        return float(one(np.array([epsilon]))[0])
    if steps == 2:
        return float(mass @ one(epsilon - loss))
    return float(sum(m * (mass @ one(epsilon - first - loss)) for m, first in zip(mass, loss, strict=True)))


def delta_of_fixed_size(sigma: float, rate: float, steps: int, epsilon: float) -> float:
    """delta of one or two steps with samples of fixed size.

    With noise of half the size, the curve of removing for positive losses, that of adding for negative ones, and what
    is left of the mass at zero.
    """
    half = sigma / 2
    remove, add = subsampled_delta(half, rate, "remove"), subsampled_delta(half, rate, "add")

    def one(e: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(e >= 0, remove(e), add(e))

    if steps == 1:
        return float(one(np.array([epsilon]))[0])
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(0.5, 11 * half + 1, 61)
    width = np.diff(edges)[:, None] / 2
    x = ((edges[1:] + edges[:-1])[:, None] / 2 + width * nodes).ravel()
    normal = (width * weights).ravel() * np.exp(-(x**2) / (2 * half**2)) / (half * np.sqrt(2 * np.pi))
    ratio = 1 - rate + rate * np.exp((2 * x - 1) / (2 * half**2))
    loss, mass = np.log(ratio), normal * ratio
    zero = 1 - mass.sum() - normal.sum()
    return float(mass @ one(epsilon - loss) + normal @ one(epsilon + loss) + zero * one(np.array([epsilon]))[0])
