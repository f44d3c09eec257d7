"""From the phases of a run to bounds of its epsilon and delta: which pairs, which method, the better of two bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dpcheck.engine.accounting.bounds import Bounds, Phase, Unit
from dpcheck.engine.accounting.estimate import Composition, Step
from dpcheck.engine.accounting.gaussian import gaussian_delta, gaussian_epsilon
from dpcheck.engine.accounting.laplace import laplace, largest_loss
from dpcheck.engine.accounting.merging import merged
from dpcheck.engine.accounting.pairs import UNIT, Direction, Loss, Mixture, Pair, without_replacement
from dpcheck.engine.accounting.pld import delta_between, epsilon_between, probe
from dpcheck.engine.accounting.rdp import rdp_upper
from dpcheck.engine.accounting.truncated import delta_with_cuts, epsilon_with_cuts

from dpcheck.errors import DpcheckError


def compositions(phases: Sequence[Phase], unit: Unit) -> tuple[Composition, ...]:
    """The dominating compositions, one for each direction; the first usually costs more."""
    counts: dict[Phase, int] = {}
    for phase in phases:
        key = replace(phase, steps=0, cut=0.0)
        counts[key] = counts.get(key, 0) + phase.steps
    distance = unit.records * (2 if unit.adjacency == "replace-one" else 1)
    plain = [key for key in counts if key.sample_rate == 1 and key.mechanism == "gaussian"]
    gaussian = math.fsum(counts[key] * (distance / key.noise_multiplier) ** 2 for key in plain)
    sampled = [(key, count) for key, count in counts.items() if key not in plain]
    directions: tuple[Direction, ...] = ("replace",) if unit.adjacency == "replace-one" else ("remove", "add")
    return tuple(
        Composition(tuple(Step(_loss(key, direction, unit), count) for key, count in sampled), gaussian)
        for direction in directions
    )


def _loss(phase: Phase, direction: Direction, unit: Unit) -> Loss:
    if phase.mechanism == "laplace":
        if unit != Unit() or phase.sampling != "poisson":
            raise _no_bound("Laplace noise", unit, 'pass adjacency="add-remove" and records=1, and sample by Poisson')
        return laplace(phase.noise_multiplier, phase.sample_rate, direction)
    if phase.sampling == "poisson":
        return Loss((Pair(Mixture.binomial(phase.noise_multiplier, phase.sample_rate, unit.records), direction),))
    if unit != Unit("replace-one"):
        raise _no_bound("samples of fixed size", unit, 'pass adjacency="replace-one", or sample by Poisson')
    return without_replacement(phase.noise_multiplier, phase.sample_rate)


def epsilon_bounds(phases: Sequence[Phase], delta: float, unit: Unit, quick: bool = False) -> Bounds:
    """Epsilon of phases that all have noise and steps; ``quick`` gives up tightness."""
    tau = _chance_of_cuts(phases)
    if tau:
        method = "PLD, with samples cut to size"

        def at(delta: float) -> tuple[float, float]:
            bounds = _epsilon_of_whole(phases, delta, unit, quick)
            return bounds.lower, bounds.upper

        return _consistent(Bounds(*epsilon_with_cuts(at, delta, tau), delta, method))
    return _epsilon_of_whole(phases, delta, unit, quick)


def _epsilon_of_whole(phases: Sequence[Phase], delta: float, unit: Unit, quick: bool) -> Bounds:
    dearer, cheaper = merged(phases)
    above = compositions(dearer, unit)
    if not above[0].steps:
        # The squared distance is a rounded sum.
        distance = math.sqrt(above[0].gaussian)
        slack = 1 + 8 * UNIT
        lower, upper = gaussian_epsilon(distance / slack, delta)[0], gaussian_epsilon(distance * slack, delta)[1]
        return Bounds(lower, upper, delta, "analytic Gaussian")
    method = "PLD"
    lower, upper = _worst(above, delta, quick)
    if cheaper != dearer:
        lower = _worst(compositions(cheaper, unit), delta, quick)[0]
    if all(phase.mechanism == "laplace" for phase in dearer):
        each = [phase.steps * largest_loss(phase.noise_multiplier, phase.sample_rate) for phase in dearer]
        upper, method = min((upper, method), (math.fsum(each) * (1 + 1e-12), "pure differential privacy"))
    # RDP is never below our lower bound, so that there is nothing to gain from it where that is close; and each phase
    # costs it a tenth of a second.
    wide = not math.isfinite(upper) or (len(dearer) < 20 and upper - lower > (0.1 if quick else 0.001) * upper)
    if wide and unit == Unit() and all((p.mechanism, p.sampling) == ("gaussian", "poisson") for p in dearer):
        upper, method = min((upper, method), (rdp_upper(dearer, delta), "RDP"))
    return _consistent(Bounds(lower, upper, delta, method))


def _worst(directions: tuple[Composition, ...], delta: float, quick: bool) -> tuple[float, float]:
    """The larger epsilon of all directions, between two bounds."""
    lower, upper = epsilon_between(directions[0], delta, quick)
    for other in directions[1:]:
        if not probe(other, delta, upper):
            bounds = epsilon_between(other, delta, quick)
            lower, upper = max(lower, bounds[0]), max(upper, bounds[1])
    return lower, upper


def delta_bounds(phases: Sequence[Phase], epsilon: float, unit: Unit) -> Bounds:
    """Delta of phases that all have noise and steps; ``Bounds.delta`` is then epsilon."""
    tau = _chance_of_cuts(phases)
    whole = _delta_of_whole(phases, epsilon, unit)
    if not tau:
        return whole
    low, high = delta_with_cuts((whole.lower, whole.upper), epsilon, tau)
    return Bounds(low, high, epsilon, "PLD, with samples cut to size")


def _delta_of_whole(phases: Sequence[Phase], epsilon: float, unit: Unit) -> Bounds:
    dearer, cheaper = merged(phases)
    above = compositions(dearer, unit)
    if not above[0].steps:
        distance, slack = math.sqrt(above[0].gaussian), 1 + 8 * UNIT
        lower = gaussian_delta(distance / slack, epsilon)[0]
        return Bounds(lower, gaussian_delta(distance * slack, epsilon)[1], epsilon, "analytic Gaussian")
    each = [delta_between(composition, epsilon) for composition in above]
    lower, upper = max(low for low, _ in each), max(high for _, high in each)
    if cheaper != dearer:
        lower = max(delta_between(composition, epsilon)[0] for composition in compositions(cheaper, unit))
    return _consistent(Bounds(lower, upper, epsilon, "PLD"))


def _chance_of_cuts(phases: Sequence[Phase]) -> float:
    """At least the probability that any sample was cut."""
    return math.fsum(phase.steps * phase.cut for phase in phases) * (1 + 8 * UNIT)


def _no_bound(what: str, unit: Unit, instead: str) -> DpcheckError:
    return DpcheckError(
        f"{what} have no bound for adjacency={unit.adjacency!r}, records={unit.records}",
        where="adjacency",
        next=instead,
    )


def _consistent(bounds: Bounds) -> Bounds:
    """Two proofs that contradict each other prove nothing."""
    if not bounds.lower <= bounds.upper:
        raise DpcheckError(f"the accountant contradicts itself ({bounds}): nothing is certified", next="report this")
    return bounds
