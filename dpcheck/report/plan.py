"""The plan of the engine for one model, as a table."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dpcheck.engine.estimates import PlanEstimate


def show_plan(console: Console, plan: PlanEstimate) -> None:
    """Print a row for each site, dearest first, and what all of them take together."""
    table = Table(Column("parameter", overflow="fold"), "summed over samples by", "at", "method")
    for name in ("Mflop", "ms", "MiB held"):
        table.add_column(name, justify="right")
    for site in sorted(plan.sites, key=lambda s: -s.seconds):
        where = f"{os.path.basename(site.location.file)}:{site.location.line}" if site.location else "-"
        numbers = f"{site.flops / 1e6:.4g}", f"{site.seconds * 1e3:.3g}", f"{site.held / 2**20:.3g}"
        method = site.method if site.kind != "joint" else f"{site.method}, several uses"
        table.add_row(escape(", ".join(site.parameters)), site.op, escape(where), method, *numbers)
    console.print(table)
    console.print(
        f"{len(plan.sites)} sites at a batch of {plan.batch_size}: about {plan.seconds * 1e3:.3g} ms for norms and "
        f"clipped sums, which take the place of the unclipped sums; planned in {plan.planning_seconds:.1f} s"
    )
    if plan.backwards == 2:
        console.print(
            "two backwards: the model computes activations again (checkpointing), and nothing is held for the clipped "
            "sum, which is the gradient of the losses times their clip factors"
        )
    console.print(
        "ghost: norms without the gradients, then one weighted sum; instantiate: every sample's gradient is kept; "
        "recompute: is computed twice; "
        "direct: small"
    )
    _show_memory(console, plan)


def _show_memory(console: Console, plan: PlanEstimate) -> None:
    text = (
        f"memory: about {plan.peak_bytes / 2**20:.3g} MiB at once for {plan.batch_size} samples beyond weights and "
        f"batch, {plan.gradient_bytes / 2**20:.3g} MiB of them the gradient"
    )
    if plan.budget_bytes is not None and plan.samples_within_budget is not None:
        text += (
            f"; half of what is free, {plan.budget_bytes / 2**20:.4g} MiB, holds {plan.samples_within_budget} samples "
            "like these (an engine computes at most 256 at once unless told otherwise)"
        )
    console.print(text)
