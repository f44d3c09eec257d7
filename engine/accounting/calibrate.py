"""The noise, the steps or the rate that keep within a budget, on the safe side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from dpcheck.engine.accounting.accountant import epsilon_bounds
from dpcheck.engine.accounting.bounds import Phase, check_delta, check_phase, check_unit, number
from scipy.optimize import brentq

from dpcheck.errors import DpcheckError

_LARGEST = 2.0**20
_MOST_STEPS = 10**9
_PRECISION = 1e-4
_POLISHING = 8


def noise_multiplier(
    target_epsilon: float,
    sample_rate: float,
    steps: int,
    delta: float,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
) -> float:
    """The smallest sigma, to 1e-4 relative and rounded up, with ``epsilon(sigma, ...).upper <= target_epsilon``.

    Raises:
        DpcheckError: if no noise reaches the target, or a value is out of range.
    """
    target, delta, unit = _target(target_epsilon), check_delta(delta), check_unit(adjacency, records)
    check_phase(Phase(1.0, sample_rate, steps, sampling))
    if steps == 0:
        return 0.0

    def spent(sigma: float, quick: bool) -> float:
        return epsilon_bounds([Phase(sigma, sample_rate, steps, sampling)], delta, unit, quick).upper

    low, high = 0.0, 1.0
    while spent(high, True) > target:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise _unreachable(target, f"sample_rate={sample_rate:g}, steps={steps}, delta={delta:g}")
    if low == 0.0:
        low = high / 2
        while spent(low, True) <= target:
            low, high = low / 2, low
    return _closest(spent, target, low, high)


def steps_within(
    target_epsilon: float,
    noise_multiplier: float,
    sample_rate: float,
    delta: float,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
) -> int:
    """A number of steps with ``epsilon(...).upper <= target_epsilon``, and one more would not do; a billion at most.

    Raises:
        DpcheckError: if not even one step is within the target, or a value is out of range.
    """
    target, delta, unit = _target(target_epsilon), check_delta(delta), check_unit(adjacency, records)
    phase = check_phase(Phase(noise_multiplier, sample_rate, 1, sampling))

    def fits(steps: int) -> bool:
        return epsilon_bounds([replace(phase, steps=steps)], delta, unit).upper <= target

    if not phase.noise_multiplier or not fits(1):
        raise _unreachable(target, f"noise_multiplier={noise_multiplier:g}, sample_rate={sample_rate:g}, steps=1")
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
        if high > _MOST_STEPS:
            return _MOST_STEPS if fits(_MOST_STEPS) else low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def sample_rate_within(
    target_epsilon: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    *,
    adjacency: str = "add-remove",
    records: int = 1,
    sampling: str = "poisson",
) -> float:
    """The largest rate, to 1e-4 relative and rounded down, with ``epsilon(...).upper <= target_epsilon``.

    Multiplied by the size of the data set it is the largest expected batch.

    Raises:
        DpcheckError: if no rate above 1e-9 is within the target, or a value is out of range.
    """
    target, delta, unit = _target(target_epsilon), check_delta(delta), check_unit(adjacency, records)
    sigma = check_phase(Phase(noise_multiplier, 1.0, steps, sampling)).noise_multiplier
    if steps == 0:
        return 1.0

    def spent(inverse: float, quick: bool) -> float:
        return epsilon_bounds([Phase(sigma, 1 / inverse, steps, sampling)], delta, unit, quick).upper

    if sigma > 0 and spent(1.0, False) <= target:
        return 1.0
    low, high = 1.0, 2.0
    while not sigma or spent(high, True) > target:
        low, high = high, 4 * high
        if high > 1e9 or not sigma:
            raise _unreachable(target, f"noise_multiplier={noise_multiplier:g}, steps={steps}, delta={delta:g}")
    return 1 / _closest(spent, target, low, high)


def _closest(spent: Callable[[float, bool], float], target: float, low: float, high: float) -> float:
    """The least x in [low, high], nearly, with ``spent(x, False) <= target``, where ``spent`` falls as x grows."""

    def excess(log_x: float) -> float:
        """Nearly linear, so that few evaluations find its zero."""
        return math.log(max(spent(math.exp(log_x), True), 1e-12) / target)

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


def _target(value: float) -> float:
    target = number("target_epsilon", value)
    if target <= 0:
        raise DpcheckError(f"target_epsilon={target!r} is not positive", where="target_epsilon")
    return target


def _unreachable(target: float, settings: str) -> DpcheckError:
    return DpcheckError(
        f"target_epsilon={target:g} cannot be reached with {settings}",
        where="target_epsilon",
        next="allow a larger epsilon or delta, or take fewer steps",
    )
