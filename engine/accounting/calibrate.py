"""The noise, the steps, the rate or the batch size that keep within a budget, on the safe side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dpcheck.engine.accounting.accountant import epsilon_bounds
from dpcheck.engine.accounting.bounds import LEAST_SCALE, Phase, Unit, check_delta, check_phase, check_unit, number
from dpcheck.engine.accounting.truncated import cut_probability
from scipy.optimize import brentq

from dpcheck.errors import DpcheckError

_LARGEST = 2.0**20
_MOST_STEPS = 10**9
_PRECISION = 1e-4
_POLISHING = 8


@dataclass(frozen=True)
class _Goal:
    """An epsilon, at a delta and for a unit, that is not to be exceeded."""

    epsilon: float
    delta: float
    unit: Unit

    @classmethod
    def of(cls, target_epsilon: Any, delta: Any, adjacency: Any, records: Any) -> _Goal:
        target = number("target_epsilon", target_epsilon)
        if target <= 0:
            raise DpcheckError(f"target_epsilon={target!r} is not positive", where="target_epsilon")
        return cls(target, check_delta(delta), check_unit(adjacency, records))

    def spent(self, phase: Phase, quick: bool = False) -> float:
        """The epsilon of the phase; a larger one, sooner, if ``quick``."""
        return epsilon_bounds([phase], self.delta, self.unit, quick).upper

    def unreachable(self, settings: str) -> DpcheckError:
        """The error that says so of the settings."""
        return DpcheckError(
            f"target_epsilon={self.epsilon:g} cannot be reached with {settings} at delta={self.delta:g}",
            where="target_epsilon",
            next="allow a larger epsilon or delta, or take fewer steps",
        )


def noise_multiplier(
    target_epsilon: float,
    sample_rate: float,
    steps: int,
    delta: float,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
    mechanism: str = "gaussian",
    cut: float = 0.0,
) -> float:
    """The smallest sigma, to 1e-4 relative and rounded up, with ``epsilon(sigma, ...).upper <= target_epsilon``.

    Args:
        sampling, mechanism, cut: as in :class:`Phase`. The least scale of Laplace noise is 0.01.

    Raises:
        DpcheckError: if no noise reaches the target, or a value is out of range.
    """
    goal = _Goal.of(target_epsilon, delta, adjacency, records)
    phase = check_phase(Phase(1.0, sample_rate, steps, sampling, mechanism, cut))
    if steps == 0:
        return 0.0

    def spent(sigma: float, quick: bool) -> float:
        return goal.spent(replace(phase, noise_multiplier=sigma), quick)

    if mechanism == "laplace" and spent(LEAST_SCALE, False) <= goal.epsilon:
        return LEAST_SCALE
    low, high = 0.0, 1.0
    while spent(high, True) > goal.epsilon:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise goal.unreachable(f"sample_rate={sample_rate:g}, steps={steps}{_cuts(cut)}")
    if low == 0.0:
        low = high / 2
        while spent(low, True) <= goal.epsilon:
            low, high = low / 2, low
    return _closest(spent, goal.epsilon, low, high)


def steps_within(
    target_epsilon: float,
    noise_multiplier: float,
    sample_rate: float,
    delta: float,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
    mechanism: str = "gaussian",
    cut: float = 0.0,
) -> int:
    """A number of steps with ``epsilon(...).upper <= target_epsilon``, and one more would not do; a billion at most.

    Args:
        sampling, mechanism, cut: as in :class:`Phase`.

    Raises:
        DpcheckError: if not even one step is within the target, or a value is out of range.
    """
    goal = _Goal.of(target_epsilon, delta, adjacency, records)
    phase = check_phase(Phase(noise_multiplier, sample_rate, 1, sampling, mechanism, cut))

    def fits(steps: int) -> bool:
        return goal.spent(replace(phase, steps=steps)) <= goal.epsilon

    if not phase.noise_multiplier or not fits(1):
        settings = f"noise_multiplier={noise_multiplier:g}, sample_rate={sample_rate:g}, steps=1{_cuts(cut)}"
        raise goal.unreachable(settings)
    return _most(fits, _MOST_STEPS)


def sample_rate_within(
    target_epsilon: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
    mechanism: str = "gaussian",
) -> float:
    """The largest rate, to 1e-4 relative and rounded down, with ``epsilon(...).upper <= target_epsilon``.

    Args:
        sampling, mechanism: as in :class:`Phase`.

    Raises:
        DpcheckError: if no rate above 1e-9 is within the target, or a value is out of range.
    """
    goal = _Goal.of(target_epsilon, delta, adjacency, records)
    phase = check_phase(Phase(noise_multiplier, 1.0, steps, sampling, mechanism))
    sigma = phase.noise_multiplier
    if steps == 0:
        return 1.0

    def spent(inverse: float, quick: bool) -> float:
        return goal.spent(replace(phase, sample_rate=1 / inverse), quick)

    if sigma > 0 and spent(1.0, False) <= goal.epsilon:
        return 1.0
    low, high = 1.0, 2.0
    while not sigma or spent(high, True) > goal.epsilon:
        low, high = high, 4 * high
        if high > 1e9 or not sigma:
            raise goal.unreachable(f"noise_multiplier={noise_multiplier:g}, steps={steps}")
    return 1 / _closest(spent, goal.epsilon, low, high)


def batch_size_within(
    target_epsilon: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    dataset_size: int,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
    mechanism: str = "gaussian",
    largest_batch: int | None = None,
) -> int:
    """An expected batch size with ``epsilon(...).upper <= target_epsilon``, and one more record would not do.

    Args:
        dataset_size: N; the rate is the batch size over it.
        sampling, mechanism: as in :class:`Phase`.
        largest_batch: to which Poisson samples are cut, if they are; see :func:`cut_probability`.

    Raises:
        DpcheckError: if not even a batch of one record is within the target, or a value is out of range.
    """
    goal = _Goal.of(target_epsilon, delta, adjacency, records)
    if isinstance(dataset_size, bool) or not isinstance(dataset_size, int) or dataset_size < 1:
        raise DpcheckError(f"dataset_size={dataset_size!r} is not a positive whole number", where="dataset_size")

    def phase_of(batch: int) -> Phase:
        rate = batch / dataset_size
        cut = 0.0 if largest_batch is None else cut_probability(dataset_size, rate, largest_batch, records)
        return check_phase(Phase(noise_multiplier, rate, steps, sampling, mechanism, cut))

    def fits(batch: int) -> bool:
        return goal.spent(phase_of(batch)) <= goal.epsilon

    if phase_of(1).steps == 0:
        return dataset_size
    if not phase_of(1).noise_multiplier or not fits(1):
        settings = f"noise_multiplier={noise_multiplier:g}, steps={steps}, a batch of 1 of {dataset_size} records"
        raise goal.unreachable(settings)
    return _most(fits, dataset_size)


def steps_of(epochs: float, dataset_size: int, expected_batch_size: int) -> int:
    """Steps in which ``epochs`` passes over the data are expected, rounded up."""
    return math.ceil(epochs * dataset_size / expected_batch_size)


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """A number, at most ``limit``, that fits, while the next does not; 1 is known to fit."""
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, 2 * high
    if high > limit:
        if low == limit or fits(limit):
            return limit
        high = limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _closest(spent: Callable[[float, bool], float], target: float, low: float, high: float) -> float:
    """The least x in [low, high], nearly, with ``spent(x, False) <= target``, where ``spent`` falls as x grows."""

    def excess(log_x: float) -> float:
        """Nearly linear, so that few evaluations find its zero."""
        return math.log(min(max(spent(math.exp(log_x), True), 1e-12), 1e12) / target)

    left, right = math.log(low), math.log(high)
    log_x = float(brentq(excess, left, right, xtol=_PRECISION / 2))
    slope = min(-1e-3, (excess(log_x + 0.01) - excess(log_x - 0.01)) / 0.02)
    # The quick bound is not the tight one.
    best = math.inf
    for _ in range(_POLISHING):
        value = spent(math.exp(log_x), False)
        if value <= target:
            best = min(best, log_x)
        off = math.log(max(value, 1e-12) / target) / slope
        if best == log_x and abs(off) < _PRECISION / 2:
            break
        log_x -= min(max(off, -0.1), 0.1) - _PRECISION / 8
    while not math.isfinite(best):
        log_x += _PRECISION
        best = log_x if spent(math.exp(log_x), False) <= target else best
    return math.exp(best)


def _cuts(cut: float) -> str:
    return f", cut={cut:g}" if cut else ""
