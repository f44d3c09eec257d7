"""What ``dpcheck model.py`` does: check, fix, verify, train, each printed as it happens."""

from __future__ import annotations

import argparse
import math
from typing import Any

from rich.console import Console
from torch import nn

from dpcheck.api import check
from dpcheck.cli import CLEAN, ERROR, FINDINGS
from dpcheck.diagnostic import Report
from dpcheck.errors import DpcheckError
from dpcheck.fixer import fix
from dpcheck.private_run import Outcome, settings_of, train
from dpcheck.report import full, json
from dpcheck.report.tables import show_changes, show_proof
from dpcheck.target import Target, load
from dpcheck.verification import verify


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; returns the exit code."""
    target = load(options.target)
    quiet = options.quiet or options.format == "json"
    console = Console(quiet=quiet, highlight=False, stderr=options.format == "json")
    settings = settings_of(target, options) if options.train else None
    model, report = target.model, _check(target, options)
    if options.fix and not report.ok:
        model, report = _fix(target, options, console)
    if options.verify or options.train:
        _refuse_unless_trainable(report, options)
        _verify(model, target, console)
    if settings is not None:
        _show(train(target, model, settings, console), console)
    return CLEAN if report.ok or options.exit_zero else FINDINGS


def _check(target: Target, options: argparse.Namespace) -> Report:
    report = check(target.model, target.loss_fn, target.batch)
    out = Console(highlight=False)
    if options.format == "json":
        print(json.render(report))
    elif not options.quiet:
        full.show(out, report)
    else:
        for diagnostic in report.diagnostics:
            full.show_diagnostic(out, diagnostic)
    if options.show == "parameters" and options.format == "full":
        full.show_parameters(out, report)
    return report


def _fix(target: Target, options: argparse.Namespace, console: Console) -> tuple[nn.Module, Report]:
    console.rule("fix", style="dim")
    result = fix(target.model, target.loss_fn, target.batch, unsafe=options.unsafe_fixes)
    show_changes(console, result)
    console.print("after the fixes:")
    full.show(console, result.report)
    return result.model, result.report


def _refuse_unless_trainable(report: Report, options: argparse.Namespace) -> None:
    findings = [d for d in report.diagnostics if not d.code.startswith("DP9")]
    if findings or report.method == "none":
        option = "" if options.fix else ", or try --fix" if options.unsafe_fixes else ", or try --fix --unsafe-fixes"
        raise DpcheckError(
            f"this model cannot be trained privately as it is: {len(findings)} finding{'s' * (len(findings) != 1)}",
            next=f"mend what is listed above{option}",
        )


def _verify(model: nn.Module, target: Target, console: Console) -> None:
    console.rule("verify", style="dim")
    proof = verify(model, target.loss_fn, target.batch)
    show_proof(console, proof)
    if not proof.ok:
        raise DpcheckError(
            "per-sample gradients differ from the references: this is a bug in dpcheck or in a custom backward",
            next="do not train this model; report it with the table above",
        )


def _show(outcome: Outcome, console: Console) -> None:
    console.rule("result", style="dim")
    console.print(outcome.statement, soft_wrap=True)
    rows: list[tuple[str, dict[str, Any]]] = [("private", outcome.private)]
    if outcome.baseline is not None:
        rows.append(("without privacy, same code", outcome.baseline))
    for name, metrics in rows:
        shown = ", ".join(f"{key} {_number(value)}" for key, value in metrics.items())
        console.print(f"[bold]{name}[/]: {shown or 'no evaluate(model) in the file'}")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


__all__ = ["CLEAN", "ERROR", "FINDINGS", "run"]
