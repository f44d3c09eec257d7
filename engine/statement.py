"""The plain statement of the guarantee that ``engine.report()`` returns."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from dpcheck.engine.accounting import Bounds
from dpcheck.engine.kinds import Automatic, Grouping, PerLayer
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.settings import Settings
from torch.utils import _pytree as pytree

from dpcheck.unit import Unit


def statement(settings: Settings, grouping: Grouping, ledger: Ledger, run: str, bounds: Bounds, method: str) -> str:
    """What may be claimed now, and what may not. After the advice of Ponomareva et al. 2023."""
    private = settings.seed is None and all(record.private for record, _ in ledger.entries)
    if not private:
        claim = "No guarantee: steps in the ledger drew their noise from a seed, so this run is not private."
    elif math.isinf(bounds.upper):
        claim = "No guarantee: steps in the ledger had no noise, so epsilon is infinite."
    else:
        claim = f"({at_most(bounds.upper)}, {settings.delta:g})-differential privacy."
    noun = settings.unit.noun
    lines = [
        *(f"! {note}" for note in settings.notes()),
        claim,
        f"Epsilon: at most {at_most(bounds.upper, 6)} and at least {at_least(bounds.lower, 6)}, "
        f"at delta = {settings.delta:g} (accountant: {bounds.method}).",
        f"Unit and adjacency: {_unit(settings.unit)}",
        f"Mechanism: DP-SGD. Each {noun}'s gradient, over all trainable parameters, is "
        f"{_clipped(settings, grouping)}; the sum gets Gaussian noise of standard deviation "
        f"{settings.noise_multiplier:g} x {settings.max_grad_norm:g}, once for each step, and is divided by "
        f"{settings.expected_batch_size}.",
        f"Sampling: Poisson, each of {settings.dataset_size} {noun}s with probability "
        f"{settings.expected_batch_size}/{settings.dataset_size} = {settings.sample_rate:.6g} in each step.",
        f"Steps: {ledger.steps(run)} of {settings.steps} in this run, {ledger.steps()} in the whole ledger; all count.",
        *_other_settings(settings, ledger),
        f"Per-sample gradients: {method}.",
        f"Randomness: {randomness(settings)}.",
        f"Treated as public: the number of {noun}s, {_constants(settings.unit)}all settings above, the model and the "
        "code.",
        "Not private, not to be published: the loss, the norms, the clipped fraction, the drawn batches, errors naming "
        "samples.",
        "Not accounted for: choosing hyper-parameters, decisions taken from validation data or from the values above, "
        "runs that are not in this ledger, and anything else computed from the same records.",
    ]
    return "\n".join(lines)


def _clipped(settings: Settings, grouping: Grouping) -> str:
    c, kind = settings.max_grad_norm, settings.clipping
    if isinstance(kind, Automatic):
        return f"multiplied by {c:g} / (its L2 norm + {kind.gamma:g}), so that its L2 norm is at most {c:g}"
    if len(grouping.names) == 1:
        return f"clipped to L2 norm {c:g}"
    if isinstance(kind, PerLayer):
        each = f"layer by layer, {len(grouping.names)} layers to L2 norm {grouping.shares[0] * c:g} each"
    else:
        norms = [f"{name or 'the rest'} to {s * c:g}" for name, s in zip(grouping.names, grouping.shares, strict=True)]
        each = f"by groups, {', '.join(norms)}"
    return f"clipped {each}, so that its L2 norm is at most {c:g} in all"


def _unit(unit: Unit) -> str:
    change = f"one {unit.noun} of the data set is added or removed"
    if unit.max_rows is not None:
        change += f" with all of their records, at most {unit.max_rows} of which are used"
    return f"{change}." if unit.is_default else f"{change}; a record is {unit.record}."


def _constants(unit: Unit) -> str:
    has_some = any(axis is None for axis in pytree.tree_leaves(unit.axes))
    return "the tensors of a batch that are declared to have no record axis, " if has_some else ""


def at_most(value: float, digits: int = 4) -> str:
    """``value`` rounded up to significant digits: an upper bound stays one in print."""
    return _rounded(value, digits, ROUND_CEILING)


def at_least(value: float, digits: int = 4) -> str:
    """``value`` rounded down to significant digits."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{float(Context(prec=digits, rounding=rounding).plus(Decimal(value))):g}"


def _other_settings(settings: Settings, ledger: Ledger) -> list[str]:
    ours = settings.noise_multiplier, settings.max_grad_norm, settings.expected_batch_size
    others = [
        f"{count} with noise {r.noise_multiplier:g} x {r.max_grad_norm:g} and rate "
        f"{r.expected_batch_size}/{r.dataset_size} (run {r.run})"
        for r, count in ledger.entries
        if (r.noise_multiplier, r.max_grad_norm, r.expected_batch_size) != ours
    ]
    return [f"Steps with other settings: {'; '.join(others)}."] if others else []


def randomness(settings: Settings) -> str:
    """Where samples and noise come from."""
    if settings.secure:
        return (
            "the operating system's cryptographic generator; noise and sums on an integer grid, so that floating-point "
            "rounding does not leak; timing is not protected"
        )
    if settings.seed is not None:
        return f"seed={settings.seed}, NOT PRIVATE"
    return (
        "float64 noise from a private generator under a 256-bit key from the operating system; it is no cipher, and "
        "the low bits of floats are not protected (secure=True does both)"
    )
