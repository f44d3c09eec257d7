"""The plain statement of the guarantee that ``engine.report()`` returns."""

from __future__ import annotations

import math
from collections import Counter
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from dpcheck.engine.accounting import Bounds
from dpcheck.engine.kinds import AdaptiveQuantile, Automatic, Grouping, PerLayer
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.settings import Settings
from torch.utils import _pytree as pytree

from dpcheck.unit import Unit


def statement(settings: Settings, kind: str, ledger: Ledger, run: str, bounds: Bounds, method: str) -> str:
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
        f"Mechanism: DP-SGD. {kind}, once for each step, and is divided by {settings.expected_batch_size}.",
        f"Sampling: Poisson, each of {settings.dataset_size} {noun}s with probability "
        f"{settings.expected_batch_size}/{settings.dataset_size} = {settings.sample_rate:.6g} in each step.",
        f"Steps: {ledger.steps(run)} of {settings.steps} in this run, {ledger.steps()} in the whole ledger; all count.",
        *_other_settings(settings, ledger, run),
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


def describe(settings: Settings, grouping: Grouping, next_norm: float) -> str:
    """How a gradient is bounded, and what noise the sum gets."""
    s, kind = settings, settings.clipping
    noise, count = f"Gaussian noise of standard deviation {s.gradient_noise:g} x", ""
    bound = f"{s.max_grad_norm:g}"
    if isinstance(kind, AdaptiveQuantile):
        bound = "that norm"
        count = (
            f" (and with it, as one query, a count of the gradients within that norm, less half of those drawn, with "
            f"noise of standard deviation {s.count_noise:g}; together they have noise multiplier "
            f"{s.noise_multiplier:g})"
        )
    return (
        f"Each {s.unit.noun}'s gradient, over all trainable parameters, is {_clipped(s, grouping, next_norm)}; the sum "
        f"gets {noise} {bound}{count}"
    )


def _clipped(settings: Settings, grouping: Grouping, next_norm: float) -> str:
    c, kind = settings.max_grad_norm, settings.clipping
    if isinstance(kind, AdaptiveQuantile):
        return (
            f"clipped to an L2 norm that follows their {kind.quantile:g} quantile, first {c:g} and next {next_norm:g}"
        )
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


def _other_settings(settings: Settings, ledger: Ledger, run: str) -> list[str]:
    counts: Counter[tuple[float, float | None, float | None, int, str]] = Counter()
    for r, count in ledger.entries:
        # An adapted norm is another one at every step.
        norm = r.max_grad_norm if r.count_noise is None else None
        counts[r.noise_multiplier, norm, r.count_noise, r.expected_batch_size, r.run] += count
    s = settings
    norm = s.max_grad_norm if s.count_noise is None else None
    ours = s.gradient_noise, norm, s.count_noise, s.expected_batch_size
    others = [
        f"{count} with noise {noise:g} x {'an adapted norm' if norm is None else f'{norm:g}'} and rate "
        f"{batch}/{s.dataset_size} (run {name})"
        for (noise, norm, counted, batch, name), count in counts.items()
        if (noise, norm, counted, batch) != ours or (norm is None and name != run)
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
