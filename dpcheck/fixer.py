"""``dpcheck.fix``: a new model in which what can be mended is mended, checked again, and rolled back where it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpcheck.api import check
from dpcheck.capture import LossFn, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.diagnostic import Applicability, Diagnostic, Report
from dpcheck.errors import DpcheckError
from dpcheck.fixes import batch_norm, layers
from dpcheck.fixes.copying import duplicate, replace_everywhere


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
    """

    code: str
    module: str
    what: str
    applicability: Applicability
    applied: bool
    reason: str | None = None


@dataclass(frozen=True)
class FixResult:
    """The result of :func:`fix`.

    Attributes:
        model: a new model; the one given is untouched.
        changes: every fix, applied or not.
        report: the check of the new model.
        before: the check of the given model.
        loss_change: largest relative change of the losses of the batch; 0 when only safe fixes were applied.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    report: Report
    before: Report
    loss_change: float


@dataclass(frozen=True)
class _Plan:
    change: Change
    apply: Callable[[nn.Module], nn.Module]


def fix(model: nn.Module, loss_fn: LossFn, batch: Any, *, unsafe: bool = False) -> FixResult:
    """Mend what can be mended, in a copy of the model.

    Args:
        model: left untouched.
        loss_fn, batch: as for :func:`dpcheck.check`.
        unsafe: also apply fixes that change the function, such as batch norm to group norm.

    Returns:
        The new model, what was changed and what was not, and the check of the new model. A fix after which its
        finding is still there, or which makes a layer's output constant or not finite, is rolled back.

    Raises:
        DpcheckError: as :func:`dpcheck.check`; if the model cannot be copied.
    """
    before = check(model, loss_fn, batch)
    plans = _plans(model, before, unsafe)
    rolled_back: dict[tuple[str, str], str] = {}
    while True:
        active = [p for p in plans if p.change.applied and _key(p) not in rolled_back]
        fixed, failures = _attempt(model, loss_fn, batch, active)
        report = None if failures else check(fixed, loss_fn, batch)
        if report is not None:
            failures = {_key(p): "the finding is still there after the fix" for p in active if _still(p, report)}
        if not failures:
            break
        rolled_back |= failures
    assert report is not None
    changes = []
    for plan in plans:
        reason = rolled_back.get(_key(plan))
        failed = replace(plan.change, applied=False, reason=f"rolled back: {reason}")
        changes.append(plan.change if reason is None else failed)
    return FixResult(fixed, tuple(changes), report, before, _loss_change(model, fixed, loss_fn, batch))


def _key(plan: _Plan) -> tuple[str, str]:
    return plan.change.code, plan.change.module


def _still(plan: _Plan, report: Report) -> bool:
    return any((d.code, d.module) == _key(plan) for d in report.diagnostics)


def _plans(model: nn.Module, report: Report, unsafe: bool) -> list[_Plan]:
    """What to do, in the order of the modules; one plan for a module and code."""
    plans: dict[tuple[str, str], _Plan] = {}
    for diagnostic in report.diagnostics:
        plan = _plan_for(model, diagnostic, unsafe)
        plans.setdefault(_key(plan), plan)
    for path, module in model.named_modules():
        if layers.is_frozen_batch_norm(module):
            what = f"{batch_norm.describe(module)} -> the affine map that it is in eval mode, also after .train()"
            plans[("DP101", path)] = _Plan(Change("DP101", path, what, "safe", True), batch_norm.to_frozen)
    return list(plans.values())


def _plan_for(model: nn.Module, diagnostic: Diagnostic, unsafe: bool) -> _Plan:
    path = diagnostic.module or ""
    module = model.get_submodule(path)
    remedy = layers.remedy(diagnostic.code, module)
    if remedy is None:
        reason = f"no automatic fix; {diagnostic.help}" if diagnostic.help else "no automatic fix"
        change = Change(diagnostic.code, path, diagnostic.message, "display-only", False, reason)
        return _Plan(change, lambda m: m)
    allowed = unsafe or remedy.applicability == "safe"
    refused = None if allowed else "it changes the function: pass unsafe=True (--unsafe-fixes)"
    return _Plan(Change(diagnostic.code, path, remedy.what, remedy.applicability, allowed, refused), remedy.apply)


def _attempt(
    model: nn.Module, loss_fn: LossFn, batch: Any, plans: list[_Plan]
) -> tuple[nn.Module, dict[tuple[str, str], str]]:
    """A copy with the fixes, and those that break it."""
    fixed = duplicate(model)
    targets = [(plan, fixed.get_submodule(plan.change.module)) for plan in plans]
    made: dict[int, nn.Module] = {}
    placed: list[tuple[_Plan, nn.Module]] = []
    for plan, target in targets:
        current = made.get(id(target), target)
        new = plan.apply(current)
        made[id(target)] = new
        fixed = replace_everywhere(fixed, current, new)
        placed.append((plan, new))
    return fixed, _broken(fixed, loss_fn, batch, placed)


def _broken(
    fixed: nn.Module, loss_fn: LossFn, batch: Any, placed: list[tuple[_Plan, nn.Module]]
) -> dict[tuple[str, str], str]:
    """The collapse test: every new layer is finite and normalises over more than one value.

    That the layer's output differs between samples is no test: weights that start at zero make any layer constant.
    """
    failures: dict[tuple[str, str], str] = {}
    handles = []

    def watch(plan: _Plan) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            before = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if not isinstance(output, Tensor) or before is None or not output.is_floating_point():
                return
            if not bool(torch.isfinite(output).all()) and bool(torch.isfinite(before).all()):
                failures[_key(plan)] = "the new layer's output is not finite"
            elif batch_norm.values_per_group(module, before) == 1:
                failures[_key(plan)] = "the new layer would normalise over one value: its output is a constant"

        return hook

    for plan, module in placed:
        handles.append(module.register_forward_hook(watch(plan)))
    try:
        run_losses(fixed, loss_fn, batch)
    except DpcheckError as error:
        failures.update({_key(plan): error.what for plan, _ in placed if not failures})
    finally:
        for handle in handles:
            handle.remove()
    return failures


def _loss_change(old: nn.Module, new: nn.Module, loss_fn: LossFn, batch: Any) -> float:
    with FixedChance():
        a, b = run_losses(old, loss_fn, batch), run_losses(new, loss_fn, batch)
    return float(((a - b).abs() / a.abs().clamp_min(1e-6)).max())


def repoint(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> None:
    """Points ``optimizer`` from the parameters of ``old`` to those of the same name in ``new``; its state moves along.

    Raises:
        DpcheckError: if it holds a parameter that ``old`` does not, or whose name or shape ``new`` does not have.
    """
    names = {id(p): name for name, p in old.named_parameters()}
    targets = dict(new.named_parameters())
    moved: list[tuple[list[Any], int, nn.Parameter, nn.Parameter]] = []
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            name = names.get(id(p))
            target = targets.get(name or "")
            if target is None or target.shape != p.shape:
                raise DpcheckError(
                    f"the optimizer holds a parameter of shape {list(p.shape)} that the fixed model does not have",
                    where=name,
                    next="build a new optimizer from result.model.parameters()",
                )
            moved.append((group["params"], i, p, target))
    for held, i, p, target in moved:
        held[i] = target
        if p in optimizer.state:
            optimizer.state[target] = optimizer.state.pop(p)
