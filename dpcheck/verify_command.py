"""``dpcheck verify model.py``: the engine's per-sample gradients against references, parameter by parameter."""

from __future__ import annotations

import argparse
from typing import Any

from dpcheck.api import check
from dpcheck.opening import opened
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.report import documents, full, tables, terminal
from dpcheck.verification import verify


def run(options: argparse.Namespace) -> int:
    """Print the proof for the file's sample batch, as a table or as JSON.

    Returns:
        0 if all gradients are right; 1 if one is wrong, or if samples mix, so that there is none to verify: the
        findings are then printed instead.
    """
    return documents.in_form(options.format, lambda document, quiet: _run(options, document, quiet=quiet))


def _run(options: argparse.Namespace, document: dict[str, Any], *, quiet: bool) -> int:
    console = terminal(quiet=quiet)
    target = opened(options, document, console)
    report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
    document |= {"ok": False}
    if report.method == "none":
        document["check"] = report
        full.show(console, report, target.name)
        return FINDINGS
    proof = verify(target.model, target.loss_fn, target.batch, unit=target.unit)
    document |= {"ok": proof.ok, "verify": proof}
    tables.show_proof(console, proof)
    if not proof.ok:
        terminal(stderr=True).print(
            "[bold red]wrong[/]: per-sample gradients differ from the references\n"
            "  next: do not train this model: this is a bug in dpcheck or in a backward of your own"
        )
    return CLEAN if proof.ok else FINDINGS
