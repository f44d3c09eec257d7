"""``dpcheck explain model.py [NAME]``: why a parameter or value is mixing, unproven or separate."""

from __future__ import annotations

from typing import Any

from dpcheck.api import report_of
from dpcheck.cli import CLEAN
from dpcheck.explanation import explain
from dpcheck.passes import find_facts
from dpcheck.report import documents, explanation, terminal
from dpcheck.samplesets import analyse
from dpcheck.target import Target, load
from dpcheck.unit import adapted


def run(text: str, name: str | None, form: str) -> int:
    """Print the explanation of ``name``, or of the losses; 0 whatever the answer is."""
    return documents.in_form(form, lambda document, quiet: _run(load(text), name, document, quiet=quiet))


def _run(target: Target, name: str | None, document: dict[str, Any], *, quiet: bool) -> int:
    loss_fn, batch = adapted(target.unit, target.loss_fn, target.batch)
    facts = find_facts(target.model, loss_fn, batch)
    analysis = analyse(facts.capture) if facts.capture is not None else None
    found = explain(facts, analysis, report_of(facts), name)
    document |= {"target": str(target.path), "symbol": target.symbol, "explain": found}
    console = terminal(quiet=quiet)
    explanation.show(console, found)
    if name is None:
        names = [p.name for p in facts.parameters]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        console.print(f"\nor name a parameter, a buffer or a module: {', '.join(names[:6])}{more}", markup=False)
    return CLEAN
