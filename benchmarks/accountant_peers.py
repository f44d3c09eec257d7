"""What other accountants say of a case: dp-accounting, prv-accountant, and closed forms with mpmath."""

from __future__ import annotations

import math
from typing import Any

from accountant_cases import Case
from dpcheck.engine.accounting import Phase

# Of dp-accounting's privacy losses.
_INTERVAL = 1e-4
Pair = tuple[float, float]


def dp_accounting(case: Case) -> Pair | None:
    """Its optimistic and its pessimistic epsilon; 0 where it has no optimistic one."""
    if any(phase.sampling == "fixed-size" for phase in case.phases):
        return None
    optimistic = 0.0 if case.largest_batch else _epsilon(case, False)
    return optimistic, _epsilon(case, True)


def _epsilon(case: Case, pessimistic: bool) -> float:
    first, *rest = [_loss(case, phase, pessimistic).self_compose(phase.steps) for phase in case.phases]
    for other in rest:
        first = first.compose(other)
    return float(first.get_epsilon_for_delta(case.delta))


def _loss(case: Case, phase: Phase, pessimistic: bool) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    sigma, rate, k = phase.noise_multiplier, phase.sample_rate, case.records
    how: dict[str, Any] = {"value_discretization_interval": _INTERVAL, "use_connect_dots": pessimistic}
    if case.largest_batch:
        # Its size is that of the larger of both data sets.
        return pld.from_truncated_subsampled_gaussian_mechanism(
            case.dataset_size + 1, rate, case.largest_batch, sigma, **how
        )
    how["pessimistic_estimate"] = pessimistic
    if phase.mechanism == "laplace":
        return pld.from_laplace_mechanism(sigma, sampling_prob=rate, **how)
    if k > 1:
        drawn = [math.comb(k, j) * rate**j * (1 - rate) ** (k - j) for j in range(k + 1)]
        kept = [(j, p) for j, p in enumerate(drawn) if p]
        return pld.from_mixture_gaussian_mechanism(sigma, [j for j, _ in kept], [p for _, p in kept], **how)
    if case.queries:
        how["sensitivity"], sigma = math.hypot(*(1 / z for z in case.queries)), 1.0
    relation = {"add-remove": "ADD_OR_REMOVE_ONE", "replace-one": "REPLACE_ONE"}[case.adjacency]
    how["neighboring_relation"] = NeighboringRelation[relation]
    return pld.from_gaussian_mechanism(sigma, sampling_prob=rate, **how)


def rdp(case: Case) -> float | None:
    """Its epsilon by Renyi differential privacy, of samples of fixed size."""
    if any(phase.sampling != "fixed-size" for phase in case.phases):
        return None
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    for phase in case.phases:
        # It wants whole numbers, and noise relative to how far replacing a record moves the sum: twice its norm.
        size = 10**6
        drawn, noise = round(phase.sample_rate * size), GaussianDpEvent(phase.noise_multiplier / 2)
        event = SampledWithoutReplacementDpEvent(size, drawn, noise)
        accountant.compose(event, phase.steps)
    return float(accountant.get_epsilon(case.delta))


def prv_accountant(case: Case, error: float) -> Pair | None:
    """Its lower and its upper bound."""
    import prv_accountant as prv

    odd = case.adjacency != "add-remove" or case.records > 1 or case.queries or case.largest_batch
    if odd or any(phase.mechanism == "laplace" and phase.sample_rate < 1 for phase in case.phases):
        return None

    def variable(phase: Phase) -> Any:
        if phase.mechanism == "laplace":
            return prv.LaplaceMechanism(1 / phase.noise_multiplier)
        return prv.PoissonSubsampledGaussianMechanism(
            sampling_probability=phase.sample_rate, noise_multiplier=phase.noise_multiplier
        )

    steps = [phase.steps for phase in case.phases]
    accountant = prv.PRVAccountant(
        prvs=[variable(phase) for phase in case.phases],
        max_self_compositions=steps,
        eps_error=error,
        delta_error=case.delta / 1000,
    )
    lower, _, upper = accountant.compute_epsilon(case.delta, steps)
    return float(lower), float(upper)


def exact(case: Case) -> float | None:
    """The closed form, where there is one: Gaussian noise without sampling, one number with Laplace noise."""
    import mpmath

    first = case.phases[0]
    if any(phase.sample_rate < 1 for phase in case.phases) or case.adjacency != "add-remove":
        return None
    with mpmath.workdps(60):
        if first.mechanism == "laplace":
            alone = len(case.phases) == first.steps == 1
            # Balle and Wang 2018: delta = 1 - exp((epsilon - 1 / b) / 2)
            return float(1 / mpmath.mpf(first.noise_multiplier) + 2 * mpmath.log1p(-case.delta)) if alone else None
        each = [(phase.steps, mpmath.mpf(phase.noise_multiplier)) for phase in case.phases]
        if case.queries:
            each = [(first.steps, mpmath.mpf(z)) for z in case.queries]
        m = case.records * mpmath.sqrt(sum(steps / z**2 for steps, z in each))

        low, high = mpmath.mpf(0), m * m + 40 * m
        for _ in range(150):
            e = (low + high) / 2
            # Theorem 8 of the same.
            delta = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)
            low, high = (e, high) if delta > case.delta else (low, e)
        return float(high)
