"""Compositions, and estimates of their losses: where to look, never what is certified."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from dpcheck.engine.accounting.pairs import UNIT, Loss, Vector
from dpcheck.engine.accounting.quadrature import Grid, Panels
from scipy.optimize import brentq

# Of delta: smaller ones are not told apart.
LEAST_DELTA = 1e-100
# Mass of all that is left outside of the windows, relative to delta.
_OUTSIDE = 3e-4
_PANELS = 48


@dataclass(frozen=True)
class Step:
    """A loss, composed ``count`` times with itself."""

    loss: Loss
    count: int


@dataclass(frozen=True)
class Composition:
    """Steps in one direction, and Gaussian mechanisms without sampling with squared mean difference ``gaussian``."""

    steps: tuple[Step, ...]
    gaussian: float

    @property
    def largest(self) -> float:
        """The largest loss, rounded up: delta is zero from there on."""
        if self.gaussian:
            return math.inf
        return math.fsum(step.count * max(piece.largest for piece in step.loss.pieces) for step in self.steps) * (
            1 + 4 * UNIT
        )


@dataclass(frozen=True)
class Rough:
    """The loss of each step on a few nodes, for estimates."""

    losses: tuple[Vector, ...]
    log_weights: tuple[Vector, ...]
    counts: tuple[int, ...]
    gaussian: float

    def cumulant(self, t: float) -> tuple[float, float, float]:
        """log M(t) and its first two derivatives."""
        value, first, second = self.gaussian * t * (t + 1) / 2, self.gaussian * (t + 0.5), self.gaussian
        for losses, log_weights, count in zip(self.losses, self.log_weights, self.counts, strict=True):
            exponents = log_weights + t * losses
            largest = exponents.max()
            weights = np.exp(exponents - largest)
            total = weights.sum()
            mean = float(weights @ losses / total)
            value += count * float(largest + math.log(total))
            first += count * mean
            second += count * float(weights @ (losses - mean) ** 2 / total)
        return value, first, second

    def spread(self, t: float) -> float:
        """The widest range of losses of one step that matter at t."""
        widest = 0.0
        for losses, log_weights in zip(self.losses, self.log_weights, strict=True):
            exponents = log_weights + t * losses
            matter = losses[exponents >= exponents.max() - 36]
            widest = max(widest, float(matter.max() - matter.min()))
        return widest

    def logs(self, t: float) -> list[float]:
        """log M(t) of each step."""
        pairs = zip(self.losses, self.log_weights, strict=True)
        return [Rough((losses,), (log_weights,), (1,), 0.0).cumulant(t)[0] for losses, log_weights in pairs]

    def saddle(self, excess: Callable[[float], float]) -> float:
        """The t at which ``excess``, which decreases, is zero, but not so small that periods would be long."""
        low, high = 1e-6, 1e9
        if excess(low) <= 0:
            t = low
        elif excess(high) >= 0:
            t = high
        else:
            t = math.exp(float(brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=1e-3)))
        deviation = math.sqrt(self.cumulant(t)[2])
        return min(max(t, 0.5 / deviation), high) if deviation > 0 else t

    def at_epsilon(self, epsilon: float) -> float:
        """The t for which epsilon is the mean of the tilted loss."""
        return self.saddle(lambda t: epsilon - self.cumulant(t)[1])

    def at_delta(self, delta: float) -> float:
        """The t for whose epsilon delta is estimated."""
        return self.saddle(lambda t: self.log_delta(t) - math.log(delta))

    def log_delta(self, t: float) -> float:
        """An estimate of log delta at the epsilon for which t is the saddle point."""
        value, first, second = self.cumulant(t)
        return value - t * first - math.log1p(t * (t + 1) * math.sqrt(2 * math.pi * second))


def windows_of(composition: Composition, delta: float) -> list[list[tuple[float, float]]]:
    """Of each piece of each step."""
    share = _OUTSIDE * delta / sum(len(step.loss.pieces) for step in composition.steps)
    return [[piece.window(share / step.count) for piece in step.loss.pieces] for step in composition.steps]


def rough_of(composition: Composition, windows: Sequence[Sequence[tuple[float, float]]]) -> Rough:
    """The losses inside of the windows."""
    grids = []
    for step, of_step in zip(composition.steps, windows, strict=True):
        panels = []
        for piece, window in zip(step.loss.pieces, of_step, strict=True):
            edges = np.linspace(*window, _PANELS + 1)
            panels.append(Panels(piece, (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2))
        grids.append(Grid(tuple(panels), step.loss.atoms).nodes)
    losses, log_weights = zip(*grids, strict=True)
    return Rough(losses, log_weights, tuple(step.count for step in composition.steps), composition.gaussian)


def estimated_delta(composition: Composition, epsilon: float) -> float:
    """An estimate of delta."""
    delta = 1e-10
    for _ in range(4):
        rough = rough_of(composition, windows_of(composition, delta))
        t = rough.at_epsilon(epsilon)
        log_delta = rough.log_delta(t)
        delta = math.exp(min(max(log_delta, math.log(LEAST_DELTA)), math.log(0.5)))
    return delta
