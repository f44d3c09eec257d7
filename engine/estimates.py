"""What a plan costs beyond the non-private step, site by site: estimates from shapes and one measured rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from dpcheck.engine.memory import gradient_bytes, peak_bytes, room
from dpcheck.engine.plan import Plan
from dpcheck.engine.sites.base import FLOPS_PER_BYTE, Site

from dpcheck.diagnostic import Location
from dpcheck.kernels import matmul


@dataclass(frozen=True)
class SiteEstimate:
    """One site of a plan.

    Attributes:
        op: the op that sums gradients over samples; several for a parameter that is used several times.
        kind: the sampler.
        location: the line of the forward that it is the backward of, if it is known.
        parameters: whose gradients it is part of.
        method: ``ghost``, ``instantiate``, ``recompute`` or ``direct``; see :class:`dpcheck.engine.sites.base.Work`.
        flops: of norms and sum.
        seconds: estimated time of both; a part of it replaces the non-private contraction.
        held: bytes that wait for the clip factors: contributions, or operands (which may be shared with other sites);
            nothing with two backwards.
    """

    op: str
    kind: str
    location: Location | None
    parameters: tuple[str, ...]
    method: str
    flops: float
    seconds: float
    held: int


@dataclass(frozen=True)
class PlanEstimate:
    """A plan as a whole.

    Attributes:
        batch_size: of which it was made and estimated: at least 2.
        sites: one for each, in the order of the parameters.
        seconds: estimated time of norms and clipped sums, which take the place of the unclipped sums.
        planning_seconds: what capture, analysis and planning took.
        backwards: 2 if the second gives the clipped sum, and nothing is held for it.
        peak_bytes: alive at once in one forward and backward, beyond weights and batch.
        gradient_bytes: of them, the clipped sum.
        budget_bytes: half of what is free; ``None`` if that is not known.
        samples_within_budget: how many samples like these that holds; ``None`` with it.
    """

    batch_size: int
    sites: tuple[SiteEstimate, ...]
    seconds: float
    planning_seconds: float
    backwards: int
    peak_bytes: int
    gradient_bytes: int
    budget_bytes: int | None
    samples_within_budget: int | None


def estimate(plan: Plan, size: int, *, planning_seconds: float, budget: int | None) -> PlanEstimate:
    """Of a plan for ``size`` samples, at the rate of a matrix product here; ``budget`` in bytes."""
    sites = estimates(plan, measured_rate())
    total = sum(site.seconds for site in sites)
    fits = None if budget is None else room(plan, size, budget)
    memory = peak_bytes(plan), gradient_bytes(plan), budget, fits
    return PlanEstimate(size, sites, total, planning_seconds, plan.backwards, *memory)


def estimates(plan: Plan, flops_per_second: float) -> tuple[SiteEstimate, ...]:
    """One for each site, in the order of the parameters."""
    found = []
    for i, (site, places) in enumerate(zip(plan.sites, plan.places, strict=True)):
        kept = i in plan.kept
        work = site.work(kept)
        origins = [node.meta.get("origin") for node in places]
        found.append(
            SiteEstimate(
                " + ".join(dict.fromkeys(str(node.target).removesuffix(".default") for node in places)),
                site.kind,
                next((origin.location for origin in origins if origin is not None), None),
                tuple(c.name for c in plan.contributions if i in c.sites),
                work.method,
                work.flops,
                (work.flops + work.moved * FLOPS_PER_BYTE) / flops_per_second,
                _held(site, kept) if plan.backwards == 1 else 0,
            )
        )
    return tuple(found)


def _held(site: Site, kept: bool) -> int:
    return 4 * site.batch * math.prod(site.shape) if kept else site.operand_bytes()


def measured_rate() -> float:
    """Floating-point operations a second of a matrix product here, at the present number of threads."""
    a, best = torch.ones(512, 512), 0.0
    for _ in range(5):
        start = time.perf_counter()
        matmul(a, a)
        best = max(best, 2.0 * 512**3 / (time.perf_counter() - start))
    return best
