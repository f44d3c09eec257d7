"""What to do about every finding: the changes that may be made, before any is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dpcheck.capture import LossFn
from dpcheck.diagnostic import Applicability, BatchNormTo, Diagnostic, Location, Report
from dpcheck.errors import DpcheckError
from dpcheck.fixes import batch_norm, in_forward, standardised
from dpcheck.fixes.advice import advice
from dpcheck.fixes.batch_norm import Statistics
from dpcheck.fixes.layers import CHANGES, Refusal, Remedy, remedy, rewriting
from dpcheck.fixes.trial import Seen

# The rule, and the path of the module.
Key = tuple[str, str]


@dataclass(frozen=True)
class Change:
    """One fix, applied or not.

    Attributes:
        code: the rule whose finding it mends.
        module: path of the module.
        what: what was changed, or would be.
        applicability: ``safe`` (the function stays), ``unsafe`` (it changes) or ``display-only``.
        applied: whether the returned model has it.
        reason: why not, if not.
        parameter: the parameter concerned, if it is one.
        output_change: |new - old| / |old| of the layer's output on the sample batch, in float64 where it runs in it;
            ``None`` where the fix was not tried or the two could not be compared.
    """

    code: str
    module: str
    what: str
    applicability: Applicability
    applied: bool
    reason: str | None = None
    parameter: str | None = None
    output_change: float | None = None


@dataclass(frozen=True)
class Plan:
    """A change, and how it is made; ``follows`` is the key of a plan without which this one is not applied."""

    change: Change
    apply: Callable[[nn.Module], nn.Module]
    follows: Key | None = None

    @property
    def path(self) -> str:
        return self.change.module

    @property
    def key(self) -> Key:
        return self.change.code, self.change.module


@dataclass(frozen=True)
class Subject:
    """What is fixed, and what is known of it before any fix. ``rows`` is how many a layer sees of all samples."""

    model: nn.Module
    loss_fn: LossFn
    batch: Any
    before: Report
    seen: Mapping[str, Seen]
    evaluates: bool
    rows: int


def for_findings(subject: Subject, unsafe: bool, to: BatchNormTo, statistics: Statistics) -> list[Plan]:
    """What to do about every finding; findings of a rule at a layer that one remedy mends are one plan.

    Raises:
        DpcheckError: if ``statistics`` do not fit a batch norm that mixes samples.
    """
    _refuse_others(subject, statistics)
    plans: dict[tuple[str, ...], Plan] = {}
    for diagnostic in subject.before.diagnostics:
        path = diagnostic.module or ""
        seen = subject.seen.get(path)
        module = subject.model.get_submodule(path)
        found = remedy(diagnostic.code, module, seen, to, _own(subject, diagnostic), statistics.get(path))
        if diagnostic.code in in_forward.CODES and seen is not None and diagnostic.module is not None:
            found = rewriting(module, seen, lines_of(subject.before, path), diagnostic)
        if isinstance(found, Remedy):
            plans.setdefault((diagnostic.code, path), _to_apply(diagnostic, found, unsafe))
            continue
        what, reason = diagnostic.message, advice(diagnostic)
        if isinstance(found, Refusal):
            what, reason = found.what, found.reason
        change = Change(diagnostic.code, path, what, "display-only", False, reason, diagnostic.parameter)
        plans.setdefault((diagnostic.code, path, diagnostic.message), Plan(change, lambda m: m))
    return list(plans.values())


def _refuse_others(subject: Subject, statistics: Statistics) -> None:
    mixing = {d.module: batch_norm.channels_of(subject.model.get_submodule(d.module or ""))
              for d in subject.before.diagnostics if d.code == "DP101"}  # fmt: skip
    for path, (mean, variance) in statistics.items():
        if path not in mixing:
            known = ", ".join(repr(name) for name in mixing) or "none"
            raise DpcheckError(f"{path!r} is no batch norm that mixes samples", "statistics", f"these are: {known}")
        if not mean.shape == variance.shape == (mixing[path],):
            shapes = f"{list(mean.shape)} and {list(variance.shape)}"
            raise DpcheckError(
                f"the statistics of {path!r} have shapes {shapes}, not [{mixing[path]}]",
                "statistics",
                "pass the mean and the variance of every channel",
            )


def lines_of(report: Report, path: str) -> tuple[Location, ...]:
    """Where the forward of a module itself computes over the batch."""
    found = [d for d in report.diagnostics if d.code in in_forward.CODES and d.module == path]
    return tuple(dict.fromkeys(at for d in found for at in (d.location, *d.related) if at is not None))


def _own(subject: Subject, diagnostic: Diagnostic) -> tuple[str, ...]:
    """The parameters and buffers of the diagnostic's module of which its rule has findings."""
    same = [d for d in subject.before.diagnostics if (d.code, d.module) == (diagnostic.code, diagnostic.module)]
    names = [name.rpartition(".") for d in same if (name := d.parameter or d.buffer) is not None]
    return tuple(dict.fromkeys(name for owner, _, name in names if owner == (diagnostic.module or "")))


def _to_apply(diagnostic: Diagnostic, found: Remedy, unsafe: bool) -> Plan:
    allowed = unsafe or found.applicability == "safe"
    refused = None if allowed else "it changes the function: pass unsafe=True (--unsafe-fixes)"
    path, parameter = diagnostic.module or "", diagnostic.parameter
    change = Change(diagnostic.code, path, found.what, found.applicability, allowed, refused, parameter)
    return Plan(change, found.apply)


def for_frozen(path: str, module: nn.Module) -> Plan:
    what = f"{batch_norm.describe(module)} -> the affine map that it is in eval mode, also after .train()"
    return Plan(Change("DP101", path, what, "safe", True), batch_norm.to_frozen)


def for_convolutions(subject: Subject, plans: list[Plan]) -> list[Plan]:
    """The convolutions whose filters are standardised before the group norms of ``plans``."""
    norms = {p.path: p for p in plans if p.change.applied and p.change.code == "DP101"}
    pairs = standardised.convolutions_before(subject.model, subject.loss_fn, subject.batch, list(norms))
    made: dict[str, Plan] = {}
    for norm, path in pairs.items():
        name = type(subject.model.get_submodule(path)).__name__
        what = f"{name} computes with standardised filters, for the group norm at {norm!r} after it. {CHANGES}"
        change = Change("DP101", path, what, "unsafe", True)
        made.setdefault(path, Plan(change, standardised.standardise, norms[norm].key))
    return list(made.values())
