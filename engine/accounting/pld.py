"""Epsilon and delta of a composition between two bounds, by inverting the transform of its privacy loss.

Outcomes x of a step outside of a window get an infinite loss in the upper bound and none in the lower; their mass,
summed over all steps, is 3e-4 of delta. What is chosen here (window, line, smoothing, period) is chosen by estimates,
and only decides how far apart the bounds are; :mod:`dpcheck.engine.accounting.inversion` proves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpcheck.engine.accounting.estimate import LEAST_DELTA, Composition, estimated_delta, rough_of, windows_of
from dpcheck.engine.accounting.inversion import Inversion, Kernel, Tilt, compose, invert
from dpcheck.engine.accounting.quadrature import Grid, panels_of, transform_of
from scipy.optimize import brentq


@dataclass(frozen=True)
class Attempt:
    """How hard to try.

    Attributes:
        width: of the smoothing, relative to sqrt(epsilon / (1 + t)). It moves the bounds by about its square / 10 of
            epsilon where the loss is nearly normal.
        radians: by how much a loss may turn on the line: a node and a point for each 2 or so. It widens the smoothing.
        enough: the distance of the bounds, relative to epsilon or to 1/2, at which the next attempt is not made.
    """

    width: float
    radians: float
    enough: float


_ATTEMPTS = (Attempt(0.04, 1e4, 0.003), Attempt(0.02, 4e4, 0.01), Attempt(0.005, 1.6e5, math.inf))
# The least width of the smoothing, relative to epsilon or to 1e-3.
_FINEST = 1e-5
# Products of a node and a point of the line: a few seconds' work.
_MOST_WORK = 3e9
# A relative error of a transform beyond which nothing is tried.
_HOPELESS = 0.1
# The real axis where Chernoff bounds are taken, relative to t.
_RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Curve:
    """delta(epsilon) near one epsilon, between two bounds.

    Attributes:
        epsilon: an estimate of where the bounds are close.
        kernel: of the smoothing.
        smooth, smoother: delta smoothed over its width, and over twice as much.
        outside: mass of an infinite loss, in the upper bound.
    """

    epsilon: float
    kernel: Kernel
    smooth: Inversion
    smoother: Inversion
    outside: float

    def delta_upper(self, epsilon: float) -> float:
        """At least delta(epsilon)."""
        return self.smooth.upper(epsilon - self.kernel.log_real(1.0)) + self.outside

    def delta_lower(self, epsilon: float) -> float:
        """At most delta(epsilon)."""
        # log cosh(x) <= x^2 / 2
        by_convexity = 2 * self.smooth.lower(epsilon + self.kernel.width**2 / 8) - self.smoother.upper(epsilon)
        return max(by_convexity, self.smooth.lower(epsilon + self.kernel.width / 2))

    def epsilon_upper(self, delta: float) -> float:
        """An epsilon of which ``delta_upper <= delta`` was computed; infinite if none was found."""
        if self.delta_upper(0.0) <= delta:
            return 0.0
        found, step = self._crossing(self.delta_upper, delta), self._resolution
        while math.isfinite(found) and step < self.kernel.width:
            if self.delta_upper(found) <= delta:
                return found
            found, step = found + step, 2 * step
        return math.inf

    def epsilon_lower(self, delta: float) -> float:
        """An epsilon of which ``delta_lower > delta`` was computed; zero if none was found."""
        found, step = self._crossing(self.delta_lower, delta), self._resolution
        while found > 0 and step < self.kernel.width:
            if self.delta_lower(found) > delta:
                return found
            found, step = found - step, 2 * step
        return 0.0

    @property
    def _resolution(self) -> float:
        return max(self.kernel.width * 1e-3, abs(self.epsilon) * 1e-12)

    def _crossing(self, delta_at: Callable[[float], float], delta: float) -> float:
        """Where ``delta_at`` falls below delta, roughly; not a number if it was not found."""

        def excess(epsilon: float) -> float:
            return math.log(min(max(delta_at(epsilon), 1e-300), 1e300) / delta)

        reach = max(1 / self.smooth.line.t, self.kernel.width)
        for _ in range(12):
            low, high = self.epsilon - reach, self.epsilon + reach
            if excess(low) > 0 >= excess(high):
                return float(brentq(excess, low, high, xtol=self._resolution / 10))
            reach *= 2
        return math.nan


def epsilon_between(composition: Composition, delta: float, quick: bool = False) -> tuple[float, float]:
    """Bounds of epsilon, from one attempt only if ``quick``."""
    lower, upper, near = 0.0, composition.largest, None
    for attempt in _ATTEMPTS[:1] if quick else _ATTEMPTS:
        here = curve(composition, delta, attempt, near)
        if here is None or here.smooth.line.errors[0] > _HOPELESS:
            break
        lower, upper = max(lower, here.epsilon_lower(delta)), min(upper, here.epsilon_upper(delta))
        if upper - lower <= attempt.enough * max(upper, 0.5) or not math.isfinite(upper):
            break
        near = upper
    return lower, upper


def delta_between(composition: Composition, epsilon: float) -> tuple[float, float]:
    """Bounds of delta at an epsilon."""
    if epsilon >= composition.largest:
        return 0.0, 0.0
    lower, upper = 0.0, 1.0
    guess = estimated_delta(composition, epsilon)
    for attempt in (*_ATTEMPTS, *_ATTEMPTS[-1:] * 5):
        here = curve(composition, guess, attempt, epsilon)
        if here is None:
            break
        lower = max(lower, here.delta_lower(epsilon))
        upper = min(upper, here.delta_upper(epsilon))
        # A bound of delta moves t times as much as that of epsilon, and t epsilon is about 20.
        close = upper - lower <= 20 * attempt.enough * upper
        if upper <= LEAST_DELTA or (close and guess <= 20 * upper):
            break
        guess = max(upper / 2, LEAST_DELTA)
    return lower, upper


def probe(composition: Composition, delta: float, epsilon: float) -> bool:
    """Whether delta at ``epsilon`` was computed to be at most ``delta``, at little cost."""
    if math.isfinite(epsilon) and epsilon >= composition.largest:
        return True
    here = curve(composition, delta, _ATTEMPTS[0]) if math.isfinite(epsilon) else None
    return here is not None and here.delta_upper(epsilon) <= delta


def curve(composition: Composition, delta: float, attempt: Attempt, near: float | None = None) -> Curve | None:
    """The curve near one epsilon; None if it would be too much work.

    Args:
        delta: its order of magnitude.
        near: the epsilon; if None, an estimate of that which belongs to ``delta``.
    """
    steps = composition.steps
    windows = windows_of(composition, delta)
    beyond = [
        (1 + 1e-12) * sum(piece.outside(*window) for piece, window in zip(step.loss.pieces, of_step, strict=True))
        for step, of_step in zip(steps, windows, strict=True)
    ]
    outside = (1 + 1e-12) * sum(step.count * mass for step, mass in zip(steps, beyond, strict=True))
    rough = rough_of(composition, windows)
    t = rough.at_delta(delta) if near is None else rough.at_epsilon(near)
    epsilon = rough.cumulant(t)[1] if near is None else near
    scale = 12 * math.sqrt(rough.cumulant(t)[2]) + 15 / t + rough.spread(t)
    # What is cut off is relative to exp(excess) delta.
    excess = rough.cumulant(t)[0] - t * epsilon - math.log(delta)
    beta = min(max(6.0, 2.0 + excess), 30.0)
    width = max(attempt.width * math.sqrt(abs(epsilon) / (1 + t)), 3 * beta * scale / attempt.radians)
    width = max(width, _FINEST * max(abs(epsilon), 1e-3))
    kernel = Kernel(width, beta)
    t = min(t, 20 / kernel.width)
    grids = []
    for step, of_step, log_scale in zip(steps, windows, rough.logs(t), strict=True):
        tolerance = log_scale + math.log(1e-9 / (step.count * len(steps) * len(of_step)))
        pieces = zip(step.loss.pieces, of_step, strict=True)
        panels = tuple(panels_of(piece, window, t, kernel.cut(t), tolerance) for piece, window in pieces)
        grids.append(Grid(panels, step.loss.atoms))
    tilts = [_tilt(composition, grids, t * ratio, kernel) for ratio in _RATIOS]
    period = _period(tilts, t, epsilon, math.log(1e-5 * delta))
    if sum(grid.size for grid in grids) * period * kernel.cut(t) / (2 * math.pi) > _MOST_WORK:
        return None
    parts = [
        (transform_of(grid, t, kernel.cut(t), mass), step.count)
        for grid, step, mass in zip(grids, steps, beyond, strict=True)
    ]
    line = compose(parts, composition.gaussian, t, kernel.cut(t), period)
    wide = Kernel(2 * kernel.width, beta)
    return Curve(epsilon, kernel, invert(line, kernel, tilts), invert(line, wide), outside)


def _tilt(composition: Composition, grids: Sequence[Grid], r: float, kernel: Kernel) -> Tilt:
    log_transform = composition.gaussian * r * (r + 1) / 2
    if r > 0:
        log_transform += sum(
            step.count * grid.log_upper(r) for step, grid in zip(composition.steps, grids, strict=True)
        )
    return Tilt.at(r, log_transform if r > 0 else 0.0, kernel)


def _period(tilts: Sequence[Tilt], t: float, e: float, log_alias: float) -> float:
    """Long enough for the aliases on both sides to be below ``exp(log_alias)``."""

    def needed(tilt: Tilt) -> float:
        return max(tilt.log_bound - tilt.r * e - log_alias, 1.0) / abs(tilt.r - t)

    below = min(needed(tilt) for tilt in tilts if tilt.r < t)
    return max(below, min(needed(tilt) for tilt in tilts if tilt.r > t))
