"""The Laplace transform of a privacy loss, ``M(z) = E_P[exp(z L)]``, by quadrature with a bounded error.

Gauss-Legendre panels, split until a bound of their error is small. For a function that is analytic and at most F in
modulus in the Bernstein ellipse of parameter r around a panel of half-width w, m nodes err by at most
``w 64/15 F r^(-2m) / (1 - r^-2)`` (Trefethen 2008, "Is Gauss quadrature better than Clenshaw-Curtis?", theorem 4.5).
F comes from :meth:`Pair.log_sup`, on the rectangle around the ellipse; r is the best of a few. One set of nodes serves
all z = t + is with 0 <= s <= S, since the bound grows with s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dpcheck.engine.accounting.pairs import UNIT, Pair, Vector
from numpy.typing import NDArray
from scipy.special import logsumexp

_POINTS = 24
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_POINTS)
_ELLIPSES = np.array([1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0])[:, None]
_LOG_CONSTANT = np.log(64 / 15) - 2 * _POINTS * np.log(_ELLIPSES) - np.log1p(-(_ELLIPSES**-2.0))
_FIRST_PANELS = 12
_MOST_PANELS = 4000
# Weight of nodes left out.
_DROPPED = 1e-17


@dataclass(frozen=True)
class Panels:
    """Where a pair is integrated."""

    pair: Pair
    centres: Vector
    halves: Vector

    def log_error(self, t: float, s: float) -> Vector:
        """The log of a bound of each panel's error, at every ``z = t + is'`` with ``|s'| <= s``."""
        reach = self.halves * (_ELLIPSES + 1 / _ELLIPSES) / 2
        height = self.halves * (_ELLIPSES - 1 / _ELLIPSES) / 2
        left, right = (self.centres - reach).ravel(), (self.centres + reach).ravel()
        sup = self.pair.log_sup(left, right, height.ravel(), t, s).reshape(reach.shape)
        return np.asarray((sup + _LOG_CONSTANT).min(axis=0) + np.log(self.halves))

    def split(self, worst: NDArray[np.bool_]) -> Panels:
        """With the panels chosen by the mask halved."""
        keep, half = ~worst, self.halves[worst] / 2
        centres = np.concatenate([self.centres[keep], self.centres[worst] - half, self.centres[worst] + half])
        return Panels(self.pair, centres, np.concatenate([self.halves[keep], half, half]))

    def points(self) -> tuple[Vector, Vector]:
        """Nodes and weights."""
        x = (self.centres[:, None] + self.halves[:, None] * _NODES).ravel()
        return x, (self.halves[:, None] * _WEIGHTS).ravel()

    def nodes(self) -> tuple[Vector, Vector]:
        """Losses and the log of their weights."""
        x, weights = self.points()
        return self.pair.loss(x), np.log(weights) + self.pair.log_density(x)

    def rounding(self, t: float, s: float, log_scale: float) -> Vector:
        """A bound of each node's relative error through rounding, at ``z = t + is``.

        Of the exponents, of the loss, and of the place of the node (as if the integrand were taken beside it).
        """
        x, weights = self.points()
        losses, log_density = np.abs(self.pair.loss(x)), np.abs(self.pair.log_density(x))
        modulus = math.hypot(t + 1, s)
        terms = np.abs(np.log(weights)) + log_density + (t + s) * losses + abs(log_scale)
        place = (
            (np.abs(x) + self.halves.max()) * (np.abs(x) + modulus * self.pair.slope(x)) / self.pair.mixture.sigma**2
        )
        return np.asarray(UNIT * (16 + 4 * terms + 4 * place) + modulus * self.pair.rounding(x))


@dataclass(frozen=True)
class Grid:
    """Where a loss is integrated."""

    pieces: tuple[Panels, ...]
    zero: float

    @property
    def size(self) -> int:
        """How many nodes it has."""
        return sum(_POINTS * len(piece.halves) for piece in self.pieces)

    def nodes(self) -> tuple[Vector, Vector]:
        """Losses and the log of their weights, and last a loss of zero if that has a mass."""
        losses, log_weights = zip(*(piece.nodes() for piece in self.pieces), strict=True)
        zero = [0.0] if self.zero else []
        return np.concatenate([*losses, zero]), np.concatenate([*log_weights, np.log([self.zero]) if zero else []])

    def rounding(self, t: float, s: float, log_scale: float) -> Vector:
        """As of :meth:`Panels.rounding`."""
        zero = [UNIT * (16 + 4 * abs(math.log(self.zero)) + 4 * abs(log_scale))] if self.zero else []
        return np.concatenate([*(piece.rounding(t, s, log_scale) for piece in self.pieces), zero])

    def log_error(self, t: float, s: float) -> Vector:
        """The log of bounds of the errors."""
        return np.concatenate([piece.log_error(t, s) for piece in self.pieces])

    def log_upper(self, t: float) -> float:
        """At least ``log M(t)`` of the window, for a real t >= 0."""
        losses, log_weights = self.nodes()
        exponents = log_weights + t * losses
        rounding = 1024 * UNIT * (len(exponents) + float(np.abs(exponents).max()))
        return float(logsumexp(np.concatenate([exponents, self.log_error(t, 0.0)]))) + rounding


@dataclass(frozen=True)
class Transform:
    """``M(t + is) = scale * (sum_j weights_j exp(is losses_j) + e)`` with ``|e| <= error``, for ``0 <= s <= S``.

    Attributes:
        losses: [J].
        weights: [J], positive, their sum is 1.
        log_scale: log of the scale.
        error: the bound: of quadrature, and of rounding, but for that in the sum.
    """

    losses: Vector
    weights: Vector
    log_scale: float
    error: float


def panels_of(pair: Pair, window: tuple[float, float], t: float, s: float, log_tolerance: float) -> Panels:
    """Panels with errors at ``t + is'``, ``|s'| <= s``, below ``exp(log_tolerance)`` together, if few enough do."""
    edges = np.linspace(*window, _FIRST_PANELS + 1)
    panels = Panels(pair, (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2)
    while len(panels.halves) < _MOST_PANELS:
        worst = panels.log_error(t, s) > log_tolerance - math.log(len(panels.halves))
        if not worst.any():
            break
        panels = panels.split(worst)
    return panels


def transform_of(grid: Grid, t: float, s: float) -> Transform:
    """The transform on ``t + is'``, ``0 <= s' <= s``."""
    losses, exponents = grid.nodes()
    exponents = exponents + t * losses
    log_scale = float(logsumexp(exponents))
    weights = np.exp(exponents - log_scale)
    order = np.argsort(weights)
    dropped = np.cumsum(weights[order])
    keep = np.sort(order[np.searchsorted(dropped, _DROPPED) :])
    quadrature = math.exp(min(0.0, float(logsumexp(grid.log_error(t, s))) - log_scale))
    error = quadrature + _DROPPED + float(weights @ grid.rounding(t, s, log_scale))
    return Transform(losses[keep], weights[keep], log_scale, error)
