"""``dpcheck.fix``: a new model in which what can be mended is mended, checked again, and rolled back where it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import nn

from dpcheck.api import check
from dpcheck.capture import LossFn, first_line, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.diagnostic import Applicability, BatchNormTo, Diagnostic, Location, Report
from dpcheck.errors import DpcheckError
from dpcheck.fixes import batch_norm, in_forward
from dpcheck.fixes.batch_norm import freeze_batch_norm
from dpcheck.fixes.copying import duplicate, replace_everywhere
from dpcheck.fixes.layers import Refusal, Remedy, is_frozen_batch_norm, remedy, rewriting
from dpcheck.fixes.optimizer import repoint
from dpcheck.fixes.trial import Seen, judge, observe, why_broken
from dpcheck.inputs import batch_size
from dpcheck.rehearsal import rehearse
from dpcheck.unit import Unit, adapted

__all__ = ["Change", "FixResult", "fix", "freeze_batch_norm", "repoint"]


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
class FixResult:
    """The result of :func:`fix`.

    Attributes:
        model: a new model; the one given is untouched.
        changes: every fix, applied or not.
        report: the check of the new model.
        before: the check of the given model.
        loss_change: largest relative change of the losses of the batch; 0 when only safe fixes were applied, up to
            the rounding of the model's own dtype.
        shared: attributes that Python cannot copy, which the new model shares with the given one.
        problem: why the rehearsal of training failed (private steps, an empty batch, a checkpoint: see
            :func:`dpcheck.rehearsal.rehearse`); ``None`` if it passed. It is held if something was fixed and the
            report is ok.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    report: Report
    before: Report
    loss_change: float
    shared: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the new model is proven private, without findings, and can be trained."""
        return self.report.ok and self.problem is None


@dataclass(frozen=True)
class _Plan:
    change: Change
    apply: Callable[[nn.Module], nn.Module]

    @property
    def path(self) -> str:
        return self.change.module


Reasons = dict[tuple[str, str], str]


@dataclass(frozen=True)
class _Subject:
    """What is fixed, and what is known of it before any fix. ``rows`` is how many a layer sees of all samples."""

    model: nn.Module
    loss_fn: LossFn
    batch: Any
    before: Report
    seen: Mapping[str, Seen]
    evaluates: bool
    rows: int


def fix(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    unsafe: bool = False,
    batch_norm_to: BatchNormTo = "group",
    unit: Unit | None = None,
) -> FixResult:
    """Mend what can be mended, in a copy of the model.

    Args:
        model: in the train/eval state in which it will be trained; left untouched. ``.grad`` is not copied.
        loss_fn, batch: as for :func:`dpcheck.check`.
        unsafe: also apply fixes that change the function, such as batch norm to group norm.
        batch_norm_to: what batch norm becomes: ``group``; ``layer`` (one group); ``instance`` (a group a channel);
            ``frozen`` (its running statistics for good: they must then come from public data).
        unit: as for :func:`dpcheck.check`.

    Returns:
        The new model, what was changed and what was not, and the check of the new model. A fix is rolled back, and
        this is said, if its finding is still there or a new one comes at its layer, if the model no longer runs (in
        eval mode, too), if the layer's output is not finite or no longer tells samples apart, if a parameter loses
        its gradient, or if it is a safe one and the layer's output changes.

    Raises:
        DpcheckError: as :func:`dpcheck.check`; if the model cannot be copied; if ``batch_norm_to`` is unknown.
    """
    if batch_norm_to not in get_args(BatchNormTo):
        known = ", ".join(get_args(BatchNormTo))
        raise DpcheckError(f"batch norm cannot become {batch_norm_to!r}", "batch_norm_to", f"choose one of: {known}")
    given = loss_fn, batch
    loss_fn, batch = adapted(unit, *given)
    before = check(model, *given, unit=unit)
    frozen = [path for path, module in model.named_modules() if is_frozen_batch_norm(module)]
    paths = {*frozen, *(d.module for d in before.diagnostics if d.module is not None)}
    seen = observe(model, loss_fn, batch, paths)
    evaluates = not why_broken(duplicate(model).model, loss_fn, batch, (), evaluating=True)
    rows = batch_size(batch) * (unit.length if unit is not None else 1)
    subject = _Subject(model, loss_fn, batch, before, seen, evaluates, rows)
    plans = _for_findings(subject, unsafe, batch_norm_to)
    plans += [_for_frozen(path, model.get_submodule(path)) for path in frozen]
    order = [path for path, _ in model.named_modules()]
    # A forward is rewritten before anything is put around it.
    plans.sort(key=lambda plan: (order.index(plan.path), plan.change.code not in in_forward.CODES))

    rolled_back: Reasons = {}
    while True:
        active = [p for p in plans if p.change.applied and _key(p) not in rolled_back]
        copied = duplicate(model)
        fixed, measured, failures = _attempt(copied.model, active, subject)
        failures = failures or _broken(fixed, active, subject)
        report = None if failures else check(fixed, *given, unit=unit)
        failures = failures or _not_better(active, report, before)
        if report is not None and not failures:
            break
        rolled_back |= failures
    changes = tuple(_outcome(plan, rolled_back, measured) for plan in plans)
    changed = _loss_change(model, fixed, loss_fn, batch)
    problem = rehearse(fixed, *given, unit=unit) if report.ok and any(c.applied for c in changes) else None
    return FixResult(fixed, changes, report, before, changed, copied.shared, problem)


def _key(plan: _Plan) -> tuple[str, str]:
    return plan.change.code, plan.path


def _outcome(plan: _Plan, rolled_back: Reasons, measured: Mapping[tuple[str, str], float | None]) -> Change:
    if plan.change.applied and _key(plan) in rolled_back:
        return replace(plan.change, applied=False, reason=f"rolled back: {rolled_back[_key(plan)]}")
    return replace(plan.change, output_change=measured.get(_key(plan)))


def _for_findings(subject: _Subject, unsafe: bool, to: BatchNormTo) -> list[_Plan]:
    """What to do about every finding; findings of a rule at a layer that one remedy mends are one plan."""
    plans: dict[tuple[str, ...], _Plan] = {}
    for diagnostic in subject.before.diagnostics:
        path = diagnostic.module or ""
        seen = subject.seen.get(path)
        module = subject.model.get_submodule(path)
        found = remedy(diagnostic.code, module, seen, to, _own(subject, diagnostic))
        if diagnostic.code in in_forward.CODES and seen is not None and diagnostic.module is not None:
            found = rewriting(module, seen, _lines(subject, path), diagnostic)
        if isinstance(found, Remedy):
            plans.setdefault((diagnostic.code, path), _to_apply(diagnostic, found, unsafe))
            continue
        what, reason = diagnostic.message, _advice(diagnostic)
        if isinstance(found, Refusal):
            what, reason = found.what, found.reason
        change = Change(diagnostic.code, path, what, "display-only", False, reason, diagnostic.parameter)
        plans.setdefault((diagnostic.code, path, diagnostic.message), _Plan(change, lambda m: m))
    return list(plans.values())


def _lines(subject: _Subject, path: str) -> tuple[Location, ...]:
    """Where the forward of a module itself computes over the batch."""
    found = [d for d in subject.before.diagnostics if d.code in in_forward.CODES and d.module == path]
    return tuple(dict.fromkeys(at for d in found for at in (d.location, *d.related) if at is not None))


def _own(subject: _Subject, diagnostic: Diagnostic) -> tuple[str, ...]:
    """The parameters and buffers of the diagnostic's module of which its rule has findings."""
    same = [d for d in subject.before.diagnostics if (d.code, d.module) == (diagnostic.code, diagnostic.module)]
    names = [name.rpartition(".") for d in same if (name := d.parameter or d.buffer) is not None]
    return tuple(dict.fromkeys(name for owner, _, name in names if owner == (diagnostic.module or "")))


def _to_apply(diagnostic: Diagnostic, found: Remedy, unsafe: bool) -> _Plan:
    allowed = unsafe or found.applicability == "safe"
    refused = None if allowed else "it changes the function: pass unsafe=True (--unsafe-fixes)"
    path, parameter = diagnostic.module or "", diagnostic.parameter
    change = Change(diagnostic.code, path, found.what, found.applicability, allowed, refused, parameter)
    return _Plan(change, found.apply)


def _advice(diagnostic: Diagnostic) -> str:
    """What the user can do where no layer can be swapped."""
    at = f" at {diagnostic.location}" if diagnostic.location else ""
    return f"no automatic fix{at}" + (f": {diagnostic.help}" if diagnostic.help else "")


def _for_frozen(path: str, module: nn.Module) -> _Plan:
    what = f"{batch_norm.describe(module)} -> the affine map that it is in eval mode, also after .train()"
    return _Plan(Change("DP101", path, what, "safe", True), batch_norm.to_frozen)


def _attempt(
    fixed: nn.Module, plans: list[_Plan], subject: _Subject
) -> tuple[nn.Module, dict[tuple[str, str], float | None], Reasons]:
    """Apply the plans to a copy; what each changes in its layer's output, and those that spoil it."""
    targets = [(plan, fixed.get_submodule(plan.path)) for plan in plans]
    current: dict[int, nn.Module] = {}
    measured: dict[tuple[str, str], float | None] = {}
    failures: Reasons = {}
    for plan, target in targets:
        now = current.get(id(target), target)
        old = duplicate(now).model if id(target) in current else subject.model.get_submodule(plan.path)
        try:
            new = plan.apply(now)
        except Exception as error:  # a class of the user's may refuse to be changed in any way
            failures[_key(plan)] = f"the layer cannot be changed: {type(error).__name__}: {first_line(error)}"
            continue
        current[id(target)] = new
        fixed = replace_everywhere(fixed, now, new)
        if plan.path in subject.seen:
            safe = plan.change.applicability == "safe"
            judgement = judge(old, new, subject.seen[plan.path], safe=safe, size=subject.rows)
            measured[_key(plan)] = judgement.output_change
            if judgement.failure:
                failures[_key(plan)] = judgement.failure
    return fixed, measured, failures


def _broken(fixed: nn.Module, plans: list[_Plan], subject: _Subject) -> Reasons:
    """The fixes after which the model does not run any more; where it is not known which, all of them."""
    paths = {plan.path for plan in plans}
    for evaluating in (False, True) if subject.evaluates else (False,):
        broken = why_broken(fixed, subject.loss_fn, subject.batch, paths, evaluating=evaluating)
        mode = " in eval mode" if evaluating else ""
        for path, why in broken.items():
            guilty = [p for p in plans if p.path == path] or plans
            return {_key(p): f"the model no longer runs{mode}: {why}" for p in guilty}
    return {}


def _not_better(plans: list[_Plan], report: Report | None, before: Report) -> Reasons:
    """The fixes whose finding is still there, that brought another, or that cut off a gradient."""
    if report is None:
        return {}
    failures: Reasons = {}
    old, now = ({(d.code, d.module or "") for d in r.diagnostics} for r in (before, report))
    for plan in plans:
        fresh = sorted(code for code, path in now - old if path == plan.path)
        if _key(plan) in now:
            failures[_key(plan)] = "the finding is still there after the fix"
        elif fresh:
            failures[_key(plan)] = f"the fixed layer has another finding, {fresh[0]}"
    reached = {p.name for p in before.parameters if p.status in ("covered", "fallback", "mixed")}
    lost = [p.name for p in report.parameters if p.status == "no-gradient" and p.name in reached]
    for name in lost:
        guilty = [p for p in plans if name.rpartition(".")[0] == p.path] or plans
        failures |= {_key(p): f"the gradient no longer reaches {name}" for p in guilty}
    return failures


def _loss_change(old: nn.Module, new: nn.Module, loss_fn: LossFn, batch: Any) -> float:
    with FixedChance():
        a, b = run_losses(old, loss_fn, batch), run_losses(new, loss_fn, batch)
    return float(((a - b).abs() / a.abs().clamp_min(1e-6)).max())
