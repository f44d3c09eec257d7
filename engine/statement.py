"""What ``engine.report()`` says: the guarantee, what it rests on, and what it leaves out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from dpcheck.engine.accounting import Bounds, at_least, at_most
from dpcheck.engine.kinds import AdaptiveQuantile, Automatic, Grouping, PerLayer
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.publishing import Statement
from dpcheck.engine.settings import Settings
from torch.utils import _pytree as pytree

from dpcheck.unit import Unit


def statement(settings: Settings, kind: str, ledger: Ledger, run: str, bounds: Bounds, method: str) -> Statement:
    """What may be claimed now, and what may not. After the advice of Ponomareva et al. 2023, section 5.3.3."""
    s, seeded = settings, settings.seed is not None or not all(record.private for record, _ in ledger.entries)
    if seeded:
        claim = "No guarantee: steps in the ledger drew their noise from a seed, so this run is not private."
    elif math.isinf(bounds.upper):
        claim = "No guarantee: steps in the ledger had no noise, so epsilon is infinite."
    else:
        claim = f"({at_most(bounds.upper)}, {s.delta:g})-differential privacy."
    noun = s.unit.noun
    sentences = (
        ("Epsilon", _epsilon(bounds, seeded, s.delta)),
        ("Unit and adjacency", _unit(s.unit)),
        (
            "Setting",
            f"central: who trains reads the {noun}s. The guarantee is for what all steps release together: the weights "
            "after each of them, and what the optimizer makes of the same gradients.",
        ),
        ("Mechanism", f"DP-SGD. {kind}, once for each step, and is divided by {s.expected_batch_size}."),
        (
            "Sampling",
            f"Poisson, each of {s.dataset_size} {noun}s with probability {s.expected_batch_size}/{s.dataset_size} = "
            f"{s.sample_rate:.6g} in each step.",
        ),
        ("Steps", f"{ledger.steps(run)} of {s.steps} in this run, {ledger.steps()} in the whole ledger; all count."),
        *_other_settings(s, ledger, run),
        ("Per-sample gradients", f"{method}."),
        ("Randomness", f"{randomness(s)}."),
        (
            "Treated as public",
            f"the number of {noun}s, {_constants(s.unit)}all settings above, the model and the code.",
        ),
        (
            "Not private, not to be published",
            "the loss, the norms, the clipped fraction, the drawn batches, errors naming samples.",
        ),
        (
            "Not accounted for",
            "choosing hyper-parameters, decisions taken from validation data or from the values above, runs that are "
            "not in this ledger, and anything else computed from the same records.",
        ),
    )
    guaranteed = not seeded and math.isfinite(bounds.upper)
    return Statement(claim, guaranteed, s.notes(), sentences, _values(s, ledger, run, bounds, guaranteed))


def _epsilon(bounds: Bounds, seeded: bool, delta: float) -> str:
    interval = f"at most {at_most(bounds.upper, 6)} and at least {at_least(bounds.lower, 6)}, at delta = {delta:g}"
    if seeded:
        return f"none; if nobody could know the seed it would be {interval} (accountant: {bounds.method})."
    return f"{interval} (accountant: {bounds.method})."


def _values(settings: Settings, ledger: Ledger, run: str, bounds: Bounds, guaranteed: bool) -> dict[str, Any]:
    s = settings
    return {
        "epsilon": {"lower": bounds.lower if guaranteed else 0.0, "upper": bounds.upper if guaranteed else math.inf},
        "delta": s.delta,
        "accountant": bounds.method,
        "unit": {"is": s.unit.noun, "largest_number_of_records": s.unit.max_rows},
        "adjacency": "add-remove",
        "mechanism": {
            "is": "DP-SGD with Gaussian noise",
            "noise_multiplier": s.noise_multiplier,
            "max_grad_norm": s.max_grad_norm,
            "clipping": repr(s.clipping),
            "divisor": s.expected_batch_size,
            "secure": s.secure,
        },
        "sampling": {
            "is": "poisson",
            "dataset_size": s.dataset_size,
            "expected_batch_size": s.expected_batch_size,
            "rate": s.sample_rate,
        },
        "steps": {"planned": s.steps, "of_this_run": ledger.steps(run), "in_the_ledger": ledger.steps()},
        "phases": [asdict(phase) for phase in ledger.phases()],
    }


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


def _other_settings(settings: Settings, ledger: Ledger, run: str) -> list[tuple[str, str]]:
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
    return [("Steps with other settings", f"{'; '.join(others)}.")] if others else []


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
