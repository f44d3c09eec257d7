"""``dpcheck.fix``: a new model in which what can be mended is mended, checked again, and rolled back where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import nn

from dpcheck.api import check
from dpcheck.capture import LossFn, first_line, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.diagnostic import BatchNormTo, Report
from dpcheck.errors import DpcheckError
from dpcheck.fixes import in_forward
from dpcheck.fixes.batch_norm import Statistics, freeze_batch_norm
from dpcheck.fixes.calibration import calibrate, evaluated
from dpcheck.fixes.copying import duplicate, replace_everywhere
from dpcheck.fixes.layers import is_frozen_batch_norm
from dpcheck.fixes.learning import why_not_learning
from dpcheck.fixes.optimizer import repoint
from dpcheck.fixes.plans import Change, Key, Plan, Subject, for_convolutions, for_findings, for_frozen
from dpcheck.fixes.trial import judge, observe, why_broken
from dpcheck.inputs import batch_size
from dpcheck.rehearsal import rehearse
from dpcheck.unit import Unit, adapted

__all__ = ["Change", "FixResult", "fix", "freeze_batch_norm", "repoint"]


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
            :func:`dpcheck.rehearsal.rehearse`), or why the new model does not learn as the given one does
            (:func:`dpcheck.fixes.learning.why_not_learning`); ``None`` if all is well. Both are held if something was
            fixed and the report is ok.
        calibrated: paths of the layers whose weights were fitted on the batch for calibration.
        calibration_losses: the mean loss of that batch in eval mode: of the given model, of the fixed one, and of that
            with fitted weights; ``None`` if nothing was fitted.
        removed_keys, added_keys: what the new model's ``state_dict`` lacks of the given one's, and has besides. All
            other keys are the same, with the same meaning, so that a checkpoint of before loads once these are left
            out of it.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    report: Report
    before: Report
    loss_change: float
    shared: tuple[str, ...] = ()
    problem: str | None = None
    calibrated: tuple[str, ...] = ()
    removed_keys: tuple[str, ...] = ()
    added_keys: tuple[str, ...] = ()
    calibration_losses: tuple[float, float, float] | None = None

    @property
    def ok(self) -> bool:
        """Whether the new model is proven private, without findings, and can be trained."""
        return self.report.ok and self.problem is None


Reasons = dict[Key, str]


def fix(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    unsafe: bool = False,
    batch_norm_to: BatchNormTo = "group",
    statistics: Statistics | None = None,
    calibration: Any = None,
    unit: Unit | None = None,
) -> FixResult:
    """Mend what can be mended, in a copy of the model.

    Args:
        model: in the train/eval state in which it will be trained; left untouched. ``.grad`` is not copied.
        loss_fn, batch: as for :func:`dpcheck.check`.
        unsafe: also apply fixes that change the function, such as batch norm to group norm.
        batch_norm_to: what batch norm becomes: ``group``; ``layer`` (one group); ``instance`` (a group a channel);
            ``standardised`` (group norm, after a convolution that computes with standardised filters: Qiao et al.
            2019); ``frozen`` (its running statistics for good: they must then come from public data).
        statistics: path of a batch norm -> (mean, variance), each [C], of public data: it becomes the affine map at
            these, whatever ``batch_norm_to`` says.
        calibration: a batch like ``batch``, of public or synthetic data, that is not trained on: the weights of the
            new norms are fitted so that they give there what the old ones gave in eval mode.
        unit: as for :func:`dpcheck.check`.

    Returns:
        The new model, what was changed and what was not, and the check of the new model. A fix is rolled back, and
        this is said, if its finding is still there or a new one comes at its layer, if the model no longer runs (in
        eval mode, too), if the layer's output is not finite or no longer tells samples apart, if a parameter loses
        its gradient, or if it is a safe one and the layer's output changes.

    Raises:
        DpcheckError: as :func:`dpcheck.check`; if the model cannot be copied; if ``batch_norm_to`` is unknown; if
            ``statistics`` do not fit a batch norm that mixes samples.
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
    subject = Subject(model, loss_fn, batch, before, seen, evaluates, rows)
    plans = for_findings(subject, unsafe, batch_norm_to, statistics or {})
    plans += for_convolutions(subject, plans) if batch_norm_to == "standardised" else []
    plans += [for_frozen(path, model.get_submodule(path)) for path in frozen]
    order = [path for path, _ in model.named_modules()]
    # A forward is rewritten before anything is put around it.
    plans.sort(key=lambda plan: (order.index(plan.path), plan.change.code not in in_forward.CODES))

    rolled_back: Reasons = {}
    while True:
        rolled_back |= {p.key: "the norm after it is not replaced" for p in plans if p.follows in rolled_back}
        active = [p for p in plans if p.change.applied and p.key not in rolled_back]
        copied = duplicate(model)
        fixed, measured, failures = _attempt(copied.model, active, subject)
        failures = failures or _broken(fixed, active, subject)
        report = None if failures else check(fixed, *given, unit=unit)
        failures = failures or _not_better(active, report, before)
        if report is not None and not failures:
            break
        rolled_back |= failures
    changes = tuple(_outcome(plan, rolled_back, measured) for plan in plans)
    fitted: tuple[str, ...] = ()
    gain: tuple[float, float, float] | None = None
    norms = [plan.path for plan in active if plan.change.code in ("DP101", "DP102")]
    if calibration is not None and norms:
        public = adapted(unit, given[0], calibration)
        plain = evaluated(model, *public), evaluated(fixed, *public)
        fitted = calibrate(model, fixed, *public, norms)
        gain = (*plain, evaluated(fixed, *public)) if fitted else None
    changed = _loss_change(model, fixed, loss_fn, batch)
    problem = None
    if report.ok and any(change.applied for change in changes):
        problem = rehearse(fixed, *given, unit=unit) or why_not_learning(model, fixed, loss_fn, batch)
    old, new = model.state_dict(), fixed.state_dict()
    removed, added = (tuple(k for k in a if k not in b) for a, b in ((old, new), (new, old)))
    return FixResult(fixed, changes, report, before, changed, copied.shared, problem, fitted, removed, added, gain)


def _outcome(plan: Plan, rolled_back: Reasons, measured: Mapping[Key, float | None]) -> Change:
    if plan.change.applied and plan.key in rolled_back:
        return replace(plan.change, applied=False, reason=f"rolled back: {rolled_back[plan.key]}")
    return replace(plan.change, output_change=measured.get(plan.key))


def _attempt(
    fixed: nn.Module, plans: list[Plan], subject: Subject
) -> tuple[nn.Module, dict[Key, float | None], Reasons]:
    """Apply the plans to a copy; what each changes in its layer's output, and those that spoil it."""
    targets = [(plan, fixed.get_submodule(plan.path)) for plan in plans]
    current: dict[int, nn.Module] = {}
    measured: dict[Key, float | None] = {}
    failures: Reasons = {}
    for plan, target in targets:
        now = current.get(id(target), target)
        old = duplicate(now).model if id(target) in current else subject.model.get_submodule(plan.path)
        try:
            new = plan.apply(now)
        except Exception as error:  # a class of the user's may refuse to be changed in any way
            failures[plan.key] = f"the layer cannot be changed: {type(error).__name__}: {first_line(error)}"
            continue
        current[id(target)] = new
        fixed = replace_everywhere(fixed, now, new)
        if plan.path in subject.seen:
            safe = plan.change.applicability == "safe"
            judgement = judge(old, new, subject.seen[plan.path], safe=safe, size=subject.rows)
            measured[plan.key] = judgement.output_change
            if judgement.failure:
                failures[plan.key] = judgement.failure
    return fixed, measured, failures


def _broken(fixed: nn.Module, plans: list[Plan], subject: Subject) -> Reasons:
    """The fixes after which the model does not run any more; where it is not known which, all of them."""
    paths = {plan.path for plan in plans}
    for evaluating in (False, True) if subject.evaluates else (False,):
        broken = why_broken(fixed, subject.loss_fn, subject.batch, paths, evaluating=evaluating)
        mode = " in eval mode" if evaluating else ""
        for path, why in broken.items():
            guilty = [p for p in plans if p.path == path] or plans
            return {p.key: f"the model no longer runs{mode}: {why}" for p in guilty}
    return {}


def _not_better(plans: list[Plan], report: Report | None, before: Report) -> Reasons:
    """The fixes whose finding is still there, that brought another, or that cut off a gradient."""
    if report is None:
        return {}
    failures: Reasons = {}
    old, now = ({(d.code, d.module or "") for d in r.diagnostics} for r in (before, report))
    for plan in plans:
        fresh = sorted(code for code, path in now - old if path == plan.path)
        if plan.key in now:
            failures[plan.key] = "the finding is still there after the fix"
        elif fresh:
            failures[plan.key] = f"the fixed layer has another finding, {fresh[0]}"
    reached = {p.name for p in before.parameters if p.status in ("covered", "fallback", "mixed")}
    lost = [p.name for p in report.parameters if p.status == "no-gradient" and p.name in reached]
    for name in lost:
        guilty = [p for p in plans if name.rpartition(".")[0] == p.path] or plans
        failures |= {p.key: f"the gradient no longer reaches {name}" for p in guilty}
    return failures


def _loss_change(old: nn.Module, new: nn.Module, loss_fn: LossFn, batch: Any) -> float:
    with FixedChance():
        a, b = run_losses(old, loss_fn, batch), run_losses(new, loss_fn, batch)
    return float(((a - b).abs() / a.abs().clamp_min(1e-6)).max())
