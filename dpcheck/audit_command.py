"""``dpcheck audit model.py``: attacks on the engine, with the file's model and records."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from dpcheck.api import check
from dpcheck.config import settings_of
from dpcheck.engine.auditing.audit import audit
from dpcheck.errors import DpcheckError
from dpcheck.fixer import fix
from dpcheck.opening import opened
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.report import audit as shown
from dpcheck.report import documents, full, terminal
from dpcheck.target import Target


def run(options: argparse.Namespace) -> int:
    """Print the audit, as a table or as JSON.

    Returns:
        0 if no check failed; 1 if one did, or if the model cannot be trained: its findings are then printed instead.
    """
    return documents.in_form(options.format, lambda document, quiet: _run(options, document, quiet=quiet))


def _run(options: argparse.Namespace, document: dict[str, Any], *, quiet: bool) -> int:
    console = terminal(quiet=quiet)
    target = opened(options, document, console)
    if target.guessed:
        raise DpcheckError("nothing is audited on a guessed loss", target.name, "write loss_fn(model, batch) in a file")
    settings = settings_of(target, options)
    model = _model(target, unsafe=options.unsafe_fixes)
    report = check(model, target.loss_fn, target.batch, unit=target.unit)
    document |= {"ok": False}
    if any(not d.code.startswith("DP9") for d in report.diagnostics) or report.method == "none":
        document["check"] = report
        full.show(console, report, target.name)
        return FINDINGS
    found = audit(
        model,
        target.loss_fn,
        settings.dataset,
        expected_batch_size=settings.batch_size,
        max_grad_norm=settings.max_grad_norm,
        delta=settings.delta,
        target_epsilon=settings.epsilon,
        epochs=settings.epochs,
        collate_fn=settings.collate,
        unit=settings.unit,
        clipping=settings.clipping,
        secure=settings.secure,
        thorough=options.long,
    )
    document |= {"ok": found.ok, "audit": found}
    shown.show(console, found)
    if not found.ok:
        terminal(stderr=True).print(
            "[bold red]not as claimed[/]: what the engine releases is not what its epsilon is for\n"
            "  next: do not train; report the failed checks: this is a bug in dpcheck"
        )
    return CLEAN if found.ok else FINDINGS


def _model(target: Target, *, unsafe: bool) -> nn.Module:
    if not unsafe:
        return target.model
    return fix(target.model, target.loss_fn, target.batch, unsafe=True, unit=target.unit).model
