"""``dpcheck verify model.py``: the engine's per-sample gradients against references, parameter by parameter."""

from __future__ import annotations

from typing import Any

from dpcheck.api import check
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.report import documents, full, tables, terminal
from dpcheck.target import Target, load
from dpcheck.verification import verify


def run(text: str, form: str) -> int:
    """Print the proof for the file's sample batch, as a table or as JSON.

    Returns:
        0 if all gradients are right; 1 if one is wrong, or if samples mix, so that there is none to verify: the
        findings are then printed instead.
    """
    return documents.in_form(form, lambda document, quiet: _run(load(text), document, quiet=quiet))


def _run(target: Target, document: dict[str, Any], *, quiet: bool) -> int:
    console = terminal(quiet=quiet)
    report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
    document |= {"target": str(target.path), "symbol": target.symbol, "ok": False}
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
