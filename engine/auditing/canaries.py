"""Release: one whole run with canaries, compared with the subsampled Gaussian that is claimed, and attacked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from dpcheck.engine.accounting import Bounds, Phase
from dpcheck.engine.auditing import lower_bound as attack
from dpcheck.engine.auditing.effort import Effort
from dpcheck.engine.auditing.exact import Bools, Check, Floats, chi_square, judged, kolmogorov, normal
from dpcheck.engine.auditing.subject import CANARY, STEEP, Subject, step
from dpcheck.engine.kinds import grouping_of
from dpcheck.engine.ranks import Ranks
from scipy import special


@dataclass(frozen=True)
class Run:
    """What a run with canaries released.

    Attributes:
        values: [steps, m], of each canary's coordinate, in units of the clipping norm of its group.
        drawn: bool [steps, m].
        present: bool [m]; a canary that is not present has no gradient at all.
        noise: sigma of the values, by the ledger.
        rate: q, by the ledger.
        phases: of the ledger.
        claim: epsilon of these steps, by the engine.
    """

    values: Floats
    drawn: Bools
    present: Bools
    noise: float
    rate: float
    phases: tuple[Phase, ...]
    claim: Bounds


@dataclass(frozen=True)
class Empirical:
    """Bounds of epsilon for the canaries' run.

    Attributes:
        claimed: the accountant's.
        lower: of any mechanism, at 95 % confidence (Steinke et al. 2023).
        gaussian: of mechanisms like a Gaussian one, at 95 % confidence (Mahloujifar et al. 2024).
        canaries, steps: of the run.
        right: share of right guesses, where a guess was made for every canary.
    """

    claimed: Bounds
    lower: float
    gaussian: float
    canaries: int
    steps: int
    right: float


def size_of_run(rate: float, steps: int, effort: Effort) -> tuple[int, int, int]:
    """Steps, canaries and expected batch size of the run: its rate is the claimed one, as near as may be."""
    steps = min(steps, effort.run_steps)
    m = int(min(effort.canaries, max(100, effort.run_records / (steps * rate))))
    return steps, m, max(1, round(rate * m))


def run_canaries(subject: Subject, effort: Effort) -> Run:
    """Trains the audited model for a whole run; half of the canaries, by the toss of a coin, are not there."""
    claim = subject.claim
    rate = claim.expected_batch_size / claim.dataset_size
    steps, m, expected = size_of_run(rate, claim.steps, effort)
    pool = subject.pool(m)
    present = Ranks.here().first(lambda: np.random.default_rng().random(m) < 0.5)
    pool.scale = torch.from_numpy(present).float()
    pool.slope = torch.full((m,), STEEP * max(1.0, claim.max_grad_norm))
    engine = subject.engine(pool, claim.noise_multiplier, expected=expected, steps=steps)
    names = [name for name, p in subject.model.named_parameters() if p.requires_grad]
    grouping = grouping_of(subject.kind, names)
    share = grouping.shares[grouping.of[CANARY]]
    values, drawn = np.empty((steps, m)), np.zeros((steps, m), dtype=bool)
    # No more than are claimed, also where the ledger does not count them all.
    for t, batch in zip(range(steps), engine, strict=False):
        norm = engine.max_grad_norm
        values[t] = step(engine, batch)[CANARY][:m].numpy() / (norm * share)
        drawn[t, batch.indices.numpy()] = True
    record = engine.ledger.entries[0][0]
    noise = record.noise_multiplier / share
    return Run(values, drawn, present, noise, record.sample_rate, engine.ledger.phases(), engine.epsilon())


def check_release(run: Run) -> list[Check]:
    """Goodness of fit of the canaries' coordinates to N(0, sigma^2), subsampled where the canary is present."""
    z, present, sigma, q = run.values, run.present, run.noise, run.rate
    absent = z[:, ~present] / sigma
    p = float(chi_square(np.square(absent).sum(), absent.size))
    std = f"standard deviation {np.square(absent).mean() ** 0.5:.4f} of the claimed one on {absent.size} values"
    inside, outside = z[present & run.drawn], z[:, present][~run.drawn[:, present]]
    mean, rest = float(inside.mean() if inside.size else 1), float(outside.mean() if outside.size else 0)
    p_inside = float(normal((mean - 1) / sigma * max(1, inside.size) ** 0.5))
    p_outside = float(normal(rest / sigma * max(1, outside.size) ** 0.5))
    values = np.sort(z[:, present].ravel())
    mixture = (1 - q) * special.ndtr(values / sigma) + q * special.ndtr((values - 1) / sigma)
    return [
        judged("release", "absent canaries show noise alone", p, std),
        judged(
            "release", "a canary that is drawn counts for C", 2 * min(p_inside, p_outside),
            f"{mean:.4f} C when drawn, {rest:.4f} C when not",
        ),
        judged(
            "release", "present canaries follow the subsampled Gaussian", kolmogorov(values, mixture),
            f"Kolmogorov-Smirnov on {values.size} values, rate {q:.4g}, noise multiplier {sigma:.4g}",
        ),
    ]  # fmt: skip


def attacked(run: Run, delta: float) -> tuple[Empirical, Check]:
    """Guesses by the likelihood ratio, and what they say about the claimed epsilon."""
    z, sigma, q = run.values, run.noise, run.rate
    exponent = (z - 0.5) / sigma**2
    ratio = np.logaddexp(np.log(q) + exponent, np.log1p(-q) if q < 1 else -np.inf)
    guesses = attack.guess(ratio.sum(0), run.present)
    claimed = run.claim
    surely = attack.epsilon_lower(guesses, delta, 1 - 1e-6)
    least = attack.epsilon_lower(guesses, delta, 0.95)
    every = guesses[-1]
    found = Empirical(
        claimed, least, attack.gaussian_lower(guesses, delta, 0.95), len(run.present), len(z), every.right / every.made
    )
    what = f"at least {least:.4g} with 95 % confidence, claimed at most {claimed.upper:.4g}"
    p = min(1.0, min(attack.p_value(g, claimed.upper, delta) for g in guesses) * len(guesses))
    return found, Check("epsilon", "an attack does not find more than is claimed", surely <= claimed.upper, what, p)
