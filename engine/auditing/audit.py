"""An audit: the claim of a run of DP-SGD against what the engine does on the user's model and records."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from dpcheck.engine.accounting import Phase
from dpcheck.engine.admission import checked_method
from dpcheck.engine.auditing import second_account
from dpcheck.engine.auditing.canaries import Empirical, attacked, check_release, run_canaries
from dpcheck.engine.auditing.draws import check_sampling
from dpcheck.engine.auditing.effort import LONG, SHORT, Effort
from dpcheck.engine.auditing.exact import Check
from dpcheck.engine.auditing.noise import check_noise
from dpcheck.engine.auditing.sensitivity import check_clipping
from dpcheck.engine.auditing.subject import Claim, Subject
from dpcheck.engine.kinds import Clipping
from dpcheck.engine.sampling import Loader
from dpcheck.engine.settings import settle
from dpcheck.engine.summing import on_device
from torch import nn

from dpcheck.capture import LossFn
from dpcheck.errors import DpcheckError
from dpcheck.fixes.copying import duplicate
from dpcheck.records import CollateFn, map_style, unit_of
from dpcheck.unit import Unit

# The second account is an estimate.
_ACCOUNTS_DIFFER = 0.02


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        ok: no check failed.
        checks: one for each fact that was looked at.
        empirical: bounds of epsilon for the run with canaries.
        claim: the settings that were audited.
    """

    ok: bool
    checks: tuple[Check, ...]
    empirical: Empirical
    claim: Claim


def audit(
    model: nn.Module,
    loss_fn: LossFn,
    dataset: Any,
    *,
    expected_batch_size: int,
    max_grad_norm: float,
    delta: float,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    collate_fn: CollateFn | None = None,
    unit: Unit | None = None,
    clipping: Clipping | str = "flat",
    secure: bool = False,
    thorough: bool = False,
    check: bool = True,
    _effort: Effort | None = None,
) -> Audit:
    """Attacks the engine with a copy of the model, the loss, and a few of the records.

    Args:
        model, loss_fn, dataset, expected_batch_size, max_grad_norm, delta, noise_multiplier, target_epsilon, epochs,
            steps, collate_fn, unit, clipping, secure, check: as for :class:`dpcheck.PrivacyEngine`. Nothing is trained.
        thorough: more releases, draws and canaries, and the whole run: minutes in the place of seconds.

    In a torch.distributed world every rank calls this, with the same arguments, and each has its own verdict.

    An audit finds faults; it proves nothing. What it sees are the steps at the model's present parameters, on at most
    forty of the records and variations of them.

    Raises:
        DpcheckError: as :class:`dpcheck.PrivacyEngine`; if no noise is claimed.
    """
    data, effort = map_style(dataset), _effort or (LONG if thorough else SHORT)
    settings = settle(
        dataset_size=len(data), expected_batch_size=expected_batch_size, max_grad_norm=max_grad_norm, delta=delta,
        noise_multiplier=noise_multiplier, target_epsilon=target_epsilon, epochs=epochs, steps=steps,
        physical_batch_size=None, seed=None, secure=secure, unit=unit_of(dataset, unit), clipping=clipping,
    )  # fmt: skip
    if settings.noise_multiplier == 0:
        raise DpcheckError("noise_multiplier=0 claims no privacy: there is nothing to audit", where="noise_multiplier")
    claim = Claim(
        settings.dataset_size, settings.expected_batch_size, settings.noise_multiplier, settings.max_grad_norm, delta,
        settings.steps, settings.clipping, secure,
    )  # fmt: skip
    with _repeatable_randomness(), _quiet():
        model = duplicate(model).model
        loader = Loader(data, collate_fn, effort.records, settings.unit)
        few = on_device(loader.collate(torch.arange(min(8, len(data)))), dict(model.named_parameters()))
        method = checked_method(model, settings.unit.loss(loss_fn), few) if check else "auto"
        subject = Subject(model, loss_fn, loader, claim, effort, method=method)
        clipped, base = check_clipping(subject)
        noisy = check_noise(subject, base, effort)
        drawn = check_sampling(claim, effort)
        run = run_canaries(subject, effort)
        empirical, attack = attacked(run, delta)
    checks = (*clipped, *noisy, *drawn, *check_release(run), _account(run.phases, empirical), attack)
    return Audit(all(c.ok for c in checks), checks, empirical, claim)


def _account(phases: Sequence[Phase], empirical: Empirical) -> Check:
    claimed, what = empirical.claimed, "the accountant agrees with a second account"
    if len({(p.noise_multiplier, p.sample_rate) for p in phases}) != 1 or not math.isfinite(claimed.upper):
        return Check("epsilon", what, math.isfinite(claimed.upper), f"claimed {claimed.upper:.4g}; phases differ")
    phase, total = phases[0], sum(p.steps for p in phases)
    second = second_account.epsilon(phase.noise_multiplier, phase.sample_rate, total, claimed.delta)
    ok = claimed.upper >= second * (1 - _ACCOUNTS_DIFFER) - 1e-6 and total == empirical.steps
    return Check("epsilon", what, ok, f"claimed at most {claimed.upper:.4g}, estimated {second:.4g}, {total} steps")


@contextmanager
def _repeatable_randomness() -> Iterator[None]:
    """Torch's global generator, which the checks set, is put back."""
    with torch.random.fork_rng():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Steps without noise are warned of, and here they are meant."""
    log = logging.getLogger("dpcheck")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
