"""The Laplace transform of a privacy loss, ``M(z) = E_P[exp(z L)]``, by quadrature with a bounded error.

What is used is M - 1: where a loss is nearly always tiny, and composed a million times, 1 would hide it behind its own
rounding. Gauss-Legendre panels, split until a bound of their error is small. For a function that is analytic and at
most F in modulus in the Bernstein ellipse of parameter r around a panel of half-width w, m nodes err by at most
``w 64/15 F r^(-2m) / (1 - r^-2)`` (Trefethen 2008, "Is Gauss quadrature better than Clenshaw-Curtis?", theorem 4.5).
F comes from :meth:`Pair.log_sup`, on the rectangle around the ellipse; r is the best of a few. One set of nodes serves
all z = t + is with 0 <= s <= S, since the bound grows with s; z = 0 gives that of the 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cached_property

import numpy as np
from dpcheck.engine.accounting.pairs import UNIT, Pair, Vector
from numpy.typing import NDArray

_POINTS = 24
# Of the decimals with which the rule is computed; numpy's weights are off by up to 1e-13.
_DIGITS = 40
_ELLIPSES = np.array([1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0])[:, None]
_LOG_CONSTANT = np.log(64 / 15) - 2 * _POINTS * np.log(_ELLIPSES) - np.log1p(-(_ELLIPSES**-2.0))
_FIRST_PANELS = 12
_MOST_PANELS = 4000
# Of :attr:`Transform.moved`, of nodes left out.
_DROPPED = 1e-18
# Of S: errors are larger the further away from the real axis.
_ENDS = 2.0 ** np.arange(-12.0, 1.0)


def _gauss() -> tuple[Vector, Vector]:
    """Nodes and weights of the rule on [-1, 1], correctly rounded: Newton's method for the Legendre polynomial."""
    nodes, weights = [], []
    with localcontext(prec=_DIGITS):
        for guess in np.polynomial.legendre.leggauss(_POINTS)[0]:
            x = Decimal(float(guess))
            for _ in range(3):
                before, here = Decimal(1), x
                for k in range(2, _POINTS + 1):
                    before, here = here, ((2 * k - 1) * x * here - (k - 1) * before) / k
                slope = _POINTS * (before - x * here) / (1 - x * x)
                x -= here / slope
            nodes.append(float(x))
            weights.append(float(2 / ((1 - x * x) * slope**2)))
    return np.array(nodes), np.array(weights)


_NODES, _WEIGHTS = _gauss()


@dataclass(frozen=True)
class Panels:
    """Where a pair is integrated."""

    pair: Pair
    centres: Vector
    halves: Vector

    def log_errors(self, t: float, s: float) -> Vector:
        """The log of a bound of each panel's error of M - 1, at every ``z = t + is'`` with ``|s'| <= s``."""
        return np.logaddexp(self.log_error(t, s), self._log_error_of_one)

    def log_error(self, t: float, s: float) -> Vector:
        """The same of M."""
        reach = self.halves * (_ELLIPSES + 1 / _ELLIPSES) / 2
        height = self.halves * (_ELLIPSES - 1 / _ELLIPSES) / 2
        left, right = (self.centres - reach).ravel(), (self.centres + reach).ravel()
        sup = self.pair.log_sup(left, right, height.ravel(), t, s).reshape(reach.shape)
        return np.asarray((sup + _LOG_CONSTANT).min(axis=0) + np.log(self.halves))

    @cached_property
    def _log_error_of_one(self) -> Vector:
        return self.log_error(0.0, 0.0)

    def split(self, worst: NDArray[np.bool_]) -> Panels:
        """With the panels chosen by the mask halved."""
        keep, half = ~worst, self.halves[worst] / 2
        centres = np.concatenate([self.centres[keep], self.centres[worst] - half, self.centres[worst] + half])
        return Panels(self.pair, centres, np.concatenate([self.halves[keep], half, half]))

    @cached_property
    def points(self) -> tuple[Vector, Vector]:
        """Nodes and weights."""
        x = (self.centres[:, None] + self.halves[:, None] * _NODES).ravel()
        return x, (self.halves[:, None] * _WEIGHTS).ravel()

    @cached_property
    def nodes(self) -> tuple[Vector, Vector]:
        """Losses and the log of their weights."""
        x, weights = self.points
        return self.pair.loss(x), np.log(weights) + self.pair.log_density(x)

    @cached_property
    def rounding(self) -> tuple[Vector, Vector]:
        """Bounds of each node's relative error through rounding: of its weight, and of exp(zL) for each ``|z| + 1``.

        Of the exponents, of the loss, and of the place of the node (as if the integrand were taken beside it).
        """
        x, weights = self.points
        losses, log_density = np.abs(self.nodes[0]), np.abs(self.pair.log_density(x))
        place = (np.abs(x) + self.halves.max()) / self.pair.mixture.sigma**2
        # A sum of so many terms, in pairs, is off by less than 20 units of all of them.
        of_weight = 64 + 4 * (np.abs(np.log(weights)) + log_density) + 4 * place * self.pair.base_slope(x)
        of_power = 4 * losses + 4 * place * self.pair.slope(x)
        return UNIT * of_weight, UNIT * of_power + self.pair.rounding(x)


@dataclass(frozen=True)
class Grid:
    """Where a loss is integrated."""

    pieces: tuple[Panels, ...]
    atoms: tuple[tuple[float, float], ...] = ()

    @property
    def size(self) -> int:
        """How many nodes it has."""
        return sum(_POINTS * len(piece.halves) for piece in self.pieces)

    @cached_property
    def nodes(self) -> tuple[Vector, Vector]:
        """Losses and the log of their weights; those that alone have a mass come last."""
        losses, log_weights = zip(*(piece.nodes for piece in self.pieces), strict=True)
        alone, masses = [loss for loss, _ in self.atoms], [math.log(mass) for _, mass in self.atoms]
        return np.concatenate([*losses, alone]), np.concatenate([*log_weights, masses])

    @cached_property
    def rounding(self) -> tuple[Vector, Vector]:
        """As of :attr:`Panels.rounding`; a loss that alone has a mass is off by at most 128 units of itself."""
        of_weight, of_power = zip(*(piece.rounding for piece in self.pieces), strict=True)
        alone = [UNIT * (64 + 4 * abs(math.log(mass))) for _, mass in self.atoms]
        return np.concatenate([*of_weight, alone]), np.concatenate(
            [*of_power, [UNIT * 256 * abs(loss) for loss, _ in self.atoms]]
        )

    def moment(self, t: float, s: float = 0.0) -> Moment:
        """M(t) for t >= 0, with an error of quadrature that holds at ``t + is'``, ``0 <= s' <= s``."""
        losses, log_weights = self.nodes
        exponents = log_weights + t * losses
        log_scale = _log_sum(exponents)
        weights = np.exp(exponents - log_scale)
        terms = weights
        if log_scale <= 1:
            moved = -np.expm1(-t * np.abs(losses)) * np.exp(log_weights + np.maximum(t * losses, 0.0))
            log_scale = math.log1p(float((np.sign(losses) * moved).sum()))
            weights, terms = np.exp(exponents - log_scale), moved * math.exp(-log_scale)
        of_weight, of_power = self.rounding
        of_weight = of_weight + 4 * UNIT * abs(log_scale)
        log_quadrature = _log_sum(np.concatenate([piece.log_errors(t, s) for piece in self.pieces])) - log_scale
        rounding = float(terms @ of_weight + (1 + t) * (weights @ of_power))
        return Moment(log_scale, weights, of_weight, rounding, log_quadrature)

    def log_upper(self, t: float) -> float:
        """At least ``log M(t)`` of the window, for a real t >= 0."""
        moment = self.moment(t)
        above = float(np.logaddexp(math.log1p(moment.rounding), moment.log_quadrature))
        return moment.log_scale + above + 8 * UNIT * (abs(moment.log_scale) + above)


@dataclass(frozen=True)
class Moment:
    """M(t). Where it is near 1, it is that of the outcomes on the grid, and of a loss of zero elsewhere.

    Attributes:
        weights: [J], of the nodes, relative to M(t).
        of_weight: [J], bounds of their relative errors.
        rounding, log_quadrature: bounds of the errors, relative to M(t).
    """

    log_scale: float
    weights: Vector
    of_weight: Vector
    rounding: float
    log_quadrature: float


@dataclass(frozen=True)
class Transform:
    """``M(t + is) = scale * (1 + sum_j weights_j (exp(is losses_j) - 1) + e)`` for ``0 <= s <= S``.

    Attributes:
        losses: [J].
        weights: [J], positive, their sum is at most about 1.
        log_scale: log M(t).
        ends: [K], increasing, the last is S: what follows holds up to each of them.
        moved: [K], ``sum_j weights_j min(2, s |losses_j|)``, which the sum above does not exceed.
        errors: [K], bounds of \\|e\\|: of quadrature, and of rounding, but for that in the sum.
    """

    losses: Vector
    weights: Vector
    log_scale: float
    ends: Vector
    moved: Vector
    errors: Vector


def panels_of(pair: Pair, window: tuple[float, float], t: float, s: float, log_tolerance: float) -> Panels:
    """Panels with errors at ``t + is'``, ``|s'| <= s``, below ``exp(log_tolerance)`` together, if few enough do."""
    edges = np.linspace(*window, _FIRST_PANELS + 1)
    panels = Panels(pair, (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2)
    while len(panels.halves) < _MOST_PANELS:
        worst = panels.log_errors(t, s) > log_tolerance - math.log(len(panels.halves))
        if not worst.any():
            break
        panels = panels.split(worst)
    return panels


def transform_of(grid: Grid, t: float, s: float, outside: float) -> Transform:
    """The transform on ``t + is'``, ``0 <= s' <= s``, of the outcomes on the grid.

    Args:
        outside: at least the mass of those that are not.
    """
    moment, (losses, _), (_, of_power) = grid.moment(t, s), grid.nodes, grid.rounding
    ends = s * _ENDS
    turned = np.minimum(2.0, np.outer(ends, np.abs(losses)))
    moved = turned @ moment.weights * (1 + 1e-9)
    rounding = turned @ (moment.weights * moment.of_weight) + ends * (moment.weights @ of_power)
    at_end = moment.weights * turned[-1]
    order = np.argsort(at_end)
    keep = np.sort(order[np.searchsorted(np.cumsum(at_end[order]), _DROPPED) :])
    quadrature = math.exp(moment.log_quadrature) if moment.log_quadrature < 0 else math.inf
    errors = (quadrature + moment.rounding + outside + _DROPPED + rounding) * (1 + 1e-9)
    return Transform(losses[keep], moment.weights[keep], moment.log_scale, ends, moved, errors)


def _log_sum(exponents: Vector) -> float:
    """``log sum exp``."""
    largest = float(exponents.max())
    return largest + math.log(float(np.exp(exponents - largest).sum())) if math.isfinite(largest) else largest
