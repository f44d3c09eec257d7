"""Sampling: whether the records that are summed are a Poisson sample at the rate that the ledger has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dpcheck.engine import trainer
from dpcheck.engine.auditing.effort import Effort
from dpcheck.engine.auditing.exact import Check, binomial, dispersion, judged, normal
from dpcheck.engine.auditing.subject import Claim, Reader, step
from dpcheck.engine.ranks import Ranks
from scipy import special
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Counter(nn.Module):
    """A loss whose gradient is the record itself: four random signs, divided by two, so that its norm is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Parameter(torch.zeros(4))


def _loss(model: Any, batch: list[Tensor]) -> Tensor:
    losses: Tensor = (batch[0] * model.sum).sum(1)
    return losses


def check_sampling(claim: Claim, effort: Effort) -> list[Check]:
    """Draws of the claimed data set's size, in steps of the engine on a model that only counts."""
    steps = max(
        20, min(effort.draw_steps, effort.draws // claim.dataset_size, effort.draws // 8 // claim.expected_batch_size)
    )
    run = _Run(claim, claim.dataset_size, claim.expected_batch_size, steps)
    few = _Run(claim, 20, 1, 300 if effort.draw_steps >= 100 else 100)
    empty = sum(len(drawn) == 0 for drawn in few.drawn)
    p = binomial(empty, few.steps, (1 - few.rate) ** 20)
    several = sum(len(drawn) > 1 for drawn in few.drawn)
    p_several = binomial(several, few.steps, float(special.bdtrc(1, 20, few.rate)))
    checks = [
        Check("sampling", "what is summed is what was drawn", not (run.wrong or few.wrong), run.wrong or few.wrong or
              f"in {run.steps + few.steps} steps"),
        judged("sampling", "empty draws take a step", p, f"{empty} of {few.steps} draws at rate 1/20 of 20 were empty"),
        judged("sampling", "large draws are not cut", p_several, f"{several} of these had more than one record"),
    ]  # fmt: skip
    return checks + _poisson(run)


class _Run:
    """What each step drew, from what it released: the signs tell which records were summed."""

    def __init__(self, claim: Claim, size: int, expected: int, steps: int) -> None:
        signs = Ranks.here().first(lambda: torch.randint(0, 2, (size, 4)) - 0.5)
        model = Counter()
        engine: Any = trainer.PrivacyEngine(
            model, _loss, Reader(model), TensorDataset(signs), expected_batch_size=expected, max_grad_norm=1.0,
            delta=claim.delta, noise_multiplier=0.0, steps=steps, check=False,
            physical_batch_size=1 if claim.secure else None, secure=claim.secure,
        )  # fmt: skip
        self.size, self.steps, self.wrong = size, 0, ""
        self.drawn: list[Tensor] = []
        for batch in engine:
            found = step(engine, batch)["sum"]
            self.steps += 1
            self.drawn.append(batch.indices)
            if float((found - signs[batch.indices].double().sum(0)).abs().max()) > 0.01:
                self.wrong = f"step {batch.step}: the sum is not that of its {len(batch)} records"
            if engine.ledger.steps() != self.steps:
                self.wrong = f"after {self.steps} steps the ledger has {engine.ledger.steps()}"
        records = {record for record, _ in engine.ledger.entries}
        self.rate = max(record.sample_rate for record in records)


def _poisson(run: _Run) -> list[Check]:
    n, rate = run.size, run.rate
    counts = np.array([len(drawn) for drawn in run.drawn])
    mean = f"{counts.mean():.2f} records drawn in a step, {n * rate:.2f} expected; {run.steps} steps"
    if rate == 1:
        return [Check("sampling", "all records are drawn", bool((counts == n).all()), mean)]
    participation = np.zeros(n)
    for drawn in run.drawn:
        np.add.at(participation, drawn.numpy(), 1)
    checks = [judged("sampling", "the rate", binomial(int(counts.sum()), n * run.steps, rate), mean)]
    ratio = counts.var() / (n * rate * (1 - rate))
    p = dispersion(counts, n, rate)
    checks.append(judged("sampling", "the sizes vary as of Poisson samples", p, f"{ratio:.3f} of that variance"))
    ratio = participation.var() / (run.steps * rate * (1 - rate))
    p = dispersion(participation, run.steps, rate)
    checks.append(judged("sampling", "each record is drawn on its own", p, f"{ratio:.3f} of the variance of counts"))
    return [*checks, _steps_apart(run), _neighbours_apart(run)]


def _steps_apart(run: _Run) -> Check:
    """Records that two steps share, given the sizes of both: hypergeometric."""
    total = expected = variance = 0.0
    masks = [np.bincount(drawn.numpy(), minlength=run.size) for drawn in run.drawn]
    n = run.size
    for lag in (1, 2, 3):
        for first, second in zip(masks, masks[lag:], strict=False):
            a, b = int(first.sum()), int(second.sum())
            total += float(first @ second)
            expected += a * b / n
            variance += a * b * (n - a) * (n - b) / n**2 / max(1, n - 1)
    if expected < 400:  # the skewness of small counts: Poisson tails are wider than hypergeometric ones
        tails = special.pdtr(total, expected), special.pdtrc(total - 1, expected) if total else 1.0
        p = 2 * float(min(tails))
    else:
        p = float(normal((total - expected) / max(variance, 1e-9) ** 0.5))
    return judged(
        "sampling", "steps are drawn apart", p, f"{total:.0f} records shared by near steps, {expected:.1f} expected"
    )


def _neighbours_apart(run: _Run) -> Check:
    half, both = run.size // 2, 0
    for drawn in run.drawn:
        mask = np.zeros(2 * half + 2, dtype=bool)
        mask[drawn.numpy()] = True
        both += int((mask[0 : 2 * half : 2] & mask[1 : 2 * half : 2]).sum())
    p = binomial(both, half * run.steps, run.rate**2)
    expected = half * run.steps * run.rate**2
    return judged("sampling", "neighbours are drawn apart", p, f"{both} pairs of neighbours, {expected:.1f} expected")
