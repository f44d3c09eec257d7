"""Tables of parameters, changes, proofs and results."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpcheck.diagnostic import ParameterFact, Report

if TYPE_CHECKING:
    from dpcheck.fixer import Change, FixResult
    from dpcheck.private_run import Outcome
    from dpcheck.verification import Proof


def show_parameters(console: Console, report: Report) -> None:
    """Print a table of parameters, and the buffers that are written."""
    table = Table("parameter", "shape", "held by", "read by", "gradient", "summed over samples by", "also called")
    for p in report.parameters:
        sites = ", ".join(sorted({_op(site) for site in p.sites}))
        shape = "x".join(map(str, p.shape)) or "scalar"
        table.add_row(*map(escape, (p.name, shape, p.owner, _uses(p), _gradient(p), sites, ", ".join(p.tied))))
    console.print(table)
    for b in report.buffers:
        if b.kind in ("derived", "data"):
            console.print(f"buffer {b.name}: written, from {'data' if b.kind == 'data' else 'weights or constants'}")


def _uses(p: ParameterFact) -> str:
    """The first line that reads a parameter, and how many ops more."""
    if p.uses is None:
        return "?"
    if not p.uses:
        return "nothing"
    first = p.uses[0]
    more = f" and {len(p.uses) - 1} more" if len(p.uses) > 1 else ""
    return f"{os.path.basename(first.file)}:{first.line}{more}"


def _gradient(p: ParameterFact) -> str:
    unused = p.status == "no-gradient" and p.uses == ()
    return ("unused" if unused else p.status) + (", written by the forward" if p.written else "")


def show_changes(console: Console, result: FixResult, done: str = "fixed") -> None:
    """Print what the fixer changed, and what it did not and why."""
    for change in result.changes:
        mark = f"[green]{done}[/]" if change.applied else "[yellow]not fixed[/]"
        path = escape(repr(change.module or "(model)"))
        console.print(f"{mark} {change.code} {path}: {escape(change.what)} ({measured(change)})")
        if change.reason:
            console.print(f"      {escape(change.reason)}")
    show_trial(console, result)


def show_trial(console: Console, result: FixResult) -> None:
    """Print what the fixes did to the losses, and whether the fixed model can be trained."""
    if any(change.applied for change in result.changes):
        console.print(f"the losses of the sample batch change by at most {result.loss_change:.2g}, relative")
    if result.problem is not None:
        console.print(f"[bold red]cannot be trained[/]: {escape(result.problem)}", soft_wrap=True)
    elif result.report.ok and result.changes:
        console.print("rehearsed: private steps, an empty batch, a checkpoint saved and loaded; it learns")


def show_calibration(console: Console, result: FixResult) -> None:
    """Print what fitting the new norms on public data gained, and that it took from that data without noise."""
    if result.calibration_losses is None:
        return
    given, plain, fitted = result.calibration_losses
    console.print(
        f"the weights of {len(result.calibrated)} norms are fitted on calibration_batch(), whose mean loss "
        f"in eval mode is {given:.4g} as given, {plain:.4g} with new norms, {fitted:.4g} with fitted ones\n"
        "[bold]calibration_batch() must hold public or synthetic data[/]: what the weights take from it gets no noise",
        soft_wrap=True,
    )


def measured(change: Change) -> str:
    """Whether a fix is safe, and what it does to its layer's output."""
    by = change.output_change
    return change.applicability + ("" if by is None else f"; the layer's output changes by {100 * by:.2g} %")


def show_proof(console: Console, proof: Proof) -> None:
    """Print the largest relative error of each parameter's per-sample gradients, and what was compared."""
    own = any(p.error_own_dtype is not None for p in proof.parameters)
    dtype = str(proof.dtype).removeprefix("torch.")
    table = Table("parameter", "site", f"error vs vmap(grad), {dtype}", f"vs each sample alone, {dtype}")
    if own:
        table.add_column("in its own dtype")
    table.add_column("")
    for p in proof.parameters:
        errors = [p.error_vmap, p.error_single, *([p.error_own_dtype] if own else [])]
        shown = ["-" if error is None else f"{error:.1e}" for error in errors]
        sites = ", ".join(sorted({_op(site) for site in p.sites}))
        table.add_row(escape(p.name), sites, *shown, "[green]ok[/]" if p.ok else "[red]wrong[/]")
    console.print(table)
    methods = {"graph": "the graph's samplers", "vmap": "vmap(grad)", "single": "one sample at a time"}
    console.print(
        f"{methods[proof.method]}: {proof.cases} samples, {proof.seconds:.1f} s; norms and clipped sum are off by "
        f"{proof.error_norms:.1g} and {proof.error_clipped:.1g} of what rounding may do"
    )
    for note in proof.notes:
        console.print(f"[dim]note: {escape(note)}[/]")


def show_outcome(console: Console, outcome: Outcome) -> None:
    """Print what the evaluation says of the private model and of the one trained without privacy."""
    rows = [("private", outcome.private)]
    if outcome.baseline is not None:
        rows.append(("without privacy, same code", outcome.baseline))
    for name, metrics in rows:
        shown = ", ".join(f"{key} {_number(value)}" for key, value in metrics.items())
        nothing = "nothing to say: the file defines neither evaluate(model) nor test_dataset()"
        console.print(f"[bold]{name}[/]: {escape(shown or nothing)}")


def _op(site: str) -> str:
    return site.removeprefix("aten.").partition(".")[0]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
