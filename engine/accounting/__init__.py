"""The accountant: what a run of DP-SGD has spent, bounded from both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpcheck.engine.accounting.accountant import delta_bounds, epsilon_bounds
from dpcheck.engine.accounting.bounds import (
    Bounds,
    Phase,
    Unit,
    check_delta,
    check_epsilon,
    check_phase,
    check_rate,
    check_unit,
    seen,
)
from dpcheck.engine.accounting.calibrate import (
    batch_size_within,
    noise_multiplier,
    sample_rate_within,
    steps_of,
    steps_within,
)
from dpcheck.engine.accounting.curves import false_negatives
from dpcheck.engine.accounting.joint import joint_noise, other_noise
from dpcheck.engine.accounting.printing import at_least, at_most
from dpcheck.engine.accounting.rdp import rdp_upper
from dpcheck.engine.accounting.truncated import cut_probability

from dpcheck.errors import DpcheckError

__all__ = [
    "Bounds", "Phase", "at_least", "at_most", "batch_size_within", "curve", "cut_probability", "delta_of", "epsilon",
    "epsilon_of", "joint_noise", "noise_multiplier", "other_noise", "rdp_epsilon", "rdp_epsilon_of",
    "sample_rate_within", "steps_of", "steps_within", "trade_off",
]  # fmt: skip


def epsilon_of(phases: Sequence[Phase], delta: float, *, adjacency: str = "add-remove", records: int = 1) -> Bounds:
    """Epsilon of a composition: of several runs, queries, or phases of one run on the same records, in any order.

    Args:
        phases: each mechanism with its noise, its sampling and how often it was used.
        adjacency: "add-remove", or "replace-one".
        records: how many records a unit of privacy has at most; each is drawn and clipped on its own.

    Raises:
        DpcheckError: naming the value that is out of range.
    """
    delta, unit = check_delta(delta), check_unit(adjacency, records)
    spent = [phase for phase in map(check_phase, phases) if phase.steps]
    return _trivial(spent, delta, unit) or epsilon_bounds(spent, delta, unit)


def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> Bounds:
    """Epsilon of ``steps`` equal steps; see :func:`epsilon_of`."""
    return epsilon_of([Phase(noise_multiplier, sample_rate, steps)], delta)


def delta_of(phases: Sequence[Phase], epsilon: float, *, adjacency: str = "add-remove", records: int = 1) -> Bounds:
    """Delta of a composition at ``epsilon``, which is ``Bounds.delta`` of the result; see :func:`epsilon_of`."""
    value, unit = check_epsilon(epsilon), check_unit(adjacency, records)
    spent = [phase for phase in map(check_phase, phases) if phase.steps]
    if any(phase.noise_multiplier == 0 for phase in spent):
        return Bounds(seen(spent, records), 1.0, value, "a step without noise")
    return delta_bounds(spent, value, unit) if spent else Bounds(0.0, 0.0, value, "no step taken")


def curve(
    phases: Sequence[Phase], epsilons: Sequence[float], *, adjacency: str = "add-remove", records: int = 1
) -> list[Bounds]:
    """Delta at each of ``epsilons``; see :func:`delta_of`."""
    return [delta_of(phases, epsilon, adjacency=adjacency, records=records) for epsilon in epsilons]


def trade_off(
    phases: Sequence[Phase],
    false_positive_rates: Sequence[float],
    *,
    adjacency: str = "add-remove",
    records: int = 1,
) -> list[float]:
    """The least rate of false negatives of any test of whether a record was used, for each rate of false positives.

    A lower bound of the trade-off function of f-DP, which is thereby safe.

    Raises:
        DpcheckError: naming the value that is out of range.
    """
    rates = [check_rate(rate, "false_positive_rate") for rate in false_positive_rates]
    return false_negatives(
        rates,
        lambda epsilon: delta_of(phases, epsilon, adjacency=adjacency, records=records),
        lambda delta: epsilon_of(phases, delta, adjacency=adjacency, records=records),
    )


def _trivial(spent: Sequence[Phase], delta: float, unit: Unit) -> Bounds | None:
    if not spent:
        return Bounds(0.0, 0.0, delta, "no step taken")
    if any(phase.noise_multiplier == 0 for phase in spent):
        # If the record is drawn so rarely that delta covers it, nothing is known from below.
        lower = math.inf if seen(spent, unit.records) > delta else 0.0
        return Bounds(lower, math.inf, delta, "a step without noise")
    return None


def rdp_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The upper bound by RDP alone."""
    return rdp_epsilon_of([Phase(noise_multiplier, sample_rate, steps)], delta)


def rdp_epsilon_of(phases: Sequence[Phase], delta: float) -> float:
    """The upper bound by RDP alone, of Gaussian noise and Poisson samples that are not cut, for add-remove adjacency.

    Raises:
        DpcheckError: naming the value that is out of range, or the mechanism for which there is none.
    """
    delta, checked = check_delta(delta), [check_phase(phase) for phase in phases]
    spent = [phase for phase in checked if phase.steps]
    for phase in spent:
        if (phase.mechanism, phase.sampling, phase.cut) != ("gaussian", "poisson", 0):
            raise DpcheckError(f"RDP is not computed for {phase}", next="call epsilon_of")
    if any(phase.noise_multiplier == 0 for phase in spent):
        return math.inf
    return rdp_upper(spent, delta) if spent else 0.0
