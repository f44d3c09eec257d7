"""``dpcheck plan model.py``: how the engine will compute norms and clipped sums, site by site."""

from __future__ import annotations

import argparse
import time

from rich.markup import escape

from dpcheck import inputs
from dpcheck.api import check
from dpcheck.cli import CLEAN, FINDINGS
from dpcheck.engine.available import budget_of
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.estimates import estimates, measured_rate
from dpcheck.engine.memory import gradient_bytes, peak_bytes, room
from dpcheck.opening import opened
from dpcheck.report import full, terminal
from dpcheck.report.plan import show_memory, show_plan
from dpcheck.unit import adapted


def run(options: argparse.Namespace) -> int:
    """Print the plan for the file's sample batch; the findings instead, and exit code 1, if samples mix."""
    console = terminal()
    target = opened(options, {}, console)
    report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
    if report.method == "none":
        full.show(console, report, target.name)
        return FINDINGS
    start = time.perf_counter()
    loss_fn, batch = adapted(target.unit, target.loss_fn, target.batch)
    size = inputs.batch_size(batch)
    clipper = Clipper(target.model, loss_fn, max_grad_norm=1.0)
    plan = clipper.plan(batch if size > 1 else inputs.take(batch, [0, 0]))
    if plan is None:
        how = "vmap(grad) of the whole model, or one sample at a time where vmap cannot"
        console.print(f"no plan: {escape(clipper.reason)}\n  the engine uses {how}", soft_wrap=True)
        return CLEAN
    seconds, planned = time.perf_counter() - start, max(size, 2)
    show_plan(console, estimates(plan, measured_rate()), size, seconds, plan.backwards)
    budget = budget_of(None, None, next(target.model.parameters()).device)
    fits = None if budget is None else room(plan, planned, budget)
    show_memory(console, planned, peak_bytes(plan), gradient_bytes(plan), budget, fits)
    return CLEAN
