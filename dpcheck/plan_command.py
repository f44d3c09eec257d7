"""``dpcheck plan model.py``: how the engine will compute norms and clipped sums, site by site."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.markup import escape

from dpcheck import inputs
from dpcheck.api import check
from dpcheck.engine.available import budget_of
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.estimates import estimate
from dpcheck.opening import opened
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.report import documents, full, terminal
from dpcheck.report.plan import show_plan
from dpcheck.unit import adapted


def run(options: argparse.Namespace) -> int:
    """Print the plan for the file's sample batch, as a table or as JSON.

    Returns:
        0 with a plan, or with the reason why the engine uses vmap; 1 if samples mix: the findings are then printed
        instead.
    """
    return documents.in_form(options.format, lambda document, quiet: _run(options, document, quiet=quiet))


def _run(options: argparse.Namespace, document: dict[str, Any], *, quiet: bool) -> int:
    console = terminal(quiet=quiet)
    target = opened(options, document, console)
    report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
    if report.method == "none":
        document["check"] = report
        full.show(console, report, target.name)
        return FINDINGS
    start = time.perf_counter()
    loss_fn, batch = adapted(target.unit, target.loss_fn, target.batch)
    size = inputs.batch_size(batch)
    clipper = Clipper(target.model, loss_fn, max_grad_norm=1.0)
    plan = clipper.plan(batch if size > 1 else inputs.take(batch, [0, 0]))
    document |= {"plan": None, "reason": ""}
    if plan is None:
        document["reason"] = clipper.reason
        how = "vmap(grad) of the whole model, or one sample at a time where vmap cannot"
        console.print(f"no plan: {escape(clipper.reason)}\n  the engine uses {how}", soft_wrap=True)
        return CLEAN
    budget = budget_of(None, None, next(target.model.parameters()).device)
    found = estimate(plan, max(size, 2), planning_seconds=time.perf_counter() - start, budget=budget)
    document["plan"] = found
    show_plan(console, found)
    return CLEAN
