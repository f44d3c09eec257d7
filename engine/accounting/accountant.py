"""From the phases of a run to bounds of its epsilon and delta: which pairs, which method, the better of two bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dpcheck.engine.accounting.bounds import Bounds, Phase, Unit
from dpcheck.engine.accounting.estimate import Composition, Step
from dpcheck.engine.accounting.gaussian import gaussian_delta, gaussian_epsilon
from dpcheck.engine.accounting.pairs import UNIT, Direction, Loss, Mixture, Pair, without_replacement
from dpcheck.engine.accounting.pld import delta_between, epsilon_between, probe
from dpcheck.engine.accounting.rdp import rdp_upper

from dpcheck.errors import DpcheckError

# Each different phase costs some ten milliseconds; beyond this many only RDP is asked.
_MOST_PHASES = 200


def compositions(phases: Sequence[Phase], unit: Unit) -> tuple[Composition, ...]:
    """The dominating compositions, one for each direction; the first usually costs more."""
    counts: dict[Phase, int] = {}
    for phase in phases:
        key = replace(phase, steps=0)
        counts[key] = counts.get(key, 0) + phase.steps
    distance = unit.records * (2 if unit.adjacency == "replace-one" else 1)
    gaussian = math.fsum(
        n * (distance / key.noise_multiplier) ** 2 for key, n in counts.items() if key.sample_rate == 1
    )
    sampled = [(key, count) for key, count in counts.items() if key.sample_rate < 1]
    directions: tuple[Direction, ...] = ("replace",) if unit.adjacency == "replace-one" else ("remove", "add")
    return tuple(
        Composition(tuple(Step(_loss(key, direction, unit), count) for key, count in sampled), gaussian)
        for direction in directions
    )


def _loss(phase: Phase, direction: Direction, unit: Unit) -> Loss:
    if phase.sampling == "poisson":
        return Loss((Pair(Mixture.binomial(phase.noise_multiplier, phase.sample_rate, unit.records), direction),))
    if unit != Unit("replace-one"):
        raise DpcheckError(
            f"samples of fixed size have no bound for adjacency={unit.adjacency!r}, records={unit.records}",
            where="adjacency",
            next='pass adjacency="replace-one", or sample by Poisson',
        )
    return without_replacement(phase.noise_multiplier, phase.sample_rate)


def epsilon_bounds(phases: Sequence[Phase], delta: float, unit: Unit, quick: bool = False) -> Bounds:
    """Epsilon of phases that all have noise and steps; ``quick`` gives up tightness."""
    first, *others = compositions(phases, unit)
    if not first.steps:
        # The squared distance is a rounded sum.
        distance = math.sqrt(first.gaussian)
        slack = 1 + 8 * UNIT
        lower, upper = gaussian_epsilon(distance / slack, delta)[0], gaussian_epsilon(distance * slack, delta)[1]
        return Bounds(lower, upper, delta, "analytic Gaussian")
    lower, upper, method = 0.0, math.inf, "PLD"
    if len(first.steps) <= _MOST_PHASES:
        lower, upper = epsilon_between(first, delta, quick)
        for other in others:
            if not probe(other, delta, upper):
                bounds = epsilon_between(other, delta, quick)
                lower, upper = max(lower, bounds[0]), max(upper, bounds[1])
    # RDP is never below our lower bound, so that there is nothing to gain from it where that is close.
    wide = not math.isfinite(upper) or upper - lower > (0.1 if quick else 0.001) * upper
    if unit == Unit() and wide:
        renyi = rdp_upper(phases, delta)
        if renyi < upper:
            upper, method = renyi, "RDP"
    return _consistent(Bounds(lower, upper, delta, method))


def delta_bounds(phases: Sequence[Phase], epsilon: float, unit: Unit) -> Bounds:
    """Delta of phases that all have noise and steps; ``Bounds.delta`` is then epsilon."""
    first, *others = compositions(phases, unit)
    if not first.steps:
        distance, slack = math.sqrt(first.gaussian), 1 + 8 * UNIT
        lower = gaussian_delta(distance / slack, epsilon)[0]
        return Bounds(lower, gaussian_delta(distance * slack, epsilon)[1], epsilon, "analytic Gaussian")
    each = [delta_between(composition, epsilon) for composition in (first, *others)]
    return _consistent(Bounds(max(low for low, _ in each), max(high for _, high in each), epsilon, "PLD"))


def _consistent(bounds: Bounds) -> Bounds:
    """Two proofs that contradict each other prove nothing."""
    if not bounds.lower <= bounds.upper:
        raise DpcheckError(f"the accountant contradicts itself ({bounds}): nothing is certified", next="report this")
    return bounds
