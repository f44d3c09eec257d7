"""``dpcheck explain model.py [NAME]``: why a parameter or value is mixing, unproven or separate."""

from __future__ import annotations

import argparse
from typing import Any

from dpcheck.api import report_of
from dpcheck.cli import CLEAN
from dpcheck.explanation import explain
from dpcheck.opening import opened
from dpcheck.passes import find_facts
from dpcheck.report import documents, explanation, terminal
from dpcheck.samplesets import analyse
from dpcheck.unit import adapted


def run(options: argparse.Namespace) -> int:
    """Print the explanation of ``options.name``, or of the losses; 0 whatever the answer is."""
    return documents.in_form(options.format, lambda document, quiet: _run(options, document, quiet=quiet))


def _run(options: argparse.Namespace, document: dict[str, Any], *, quiet: bool) -> int:
    console, name = terminal(quiet=quiet), options.name
    target = opened(options, document, console)
    loss_fn, batch = adapted(target.unit, target.loss_fn, target.batch)
    facts = find_facts(target.model, loss_fn, batch)
    analysis = analyse(facts.capture) if facts.capture is not None else None
    found = explain(facts, analysis, report_of(facts), name)
    document |= {"explain": found}
    explanation.show(console, found)
    if name is None:
        names = [p.name for p in facts.parameters]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        console.print(f"\nor name a parameter, a buffer or a module: {', '.join(names[:6])}{more}", markup=False)
    return CLEAN
