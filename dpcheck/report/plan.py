"""The plan of the engine for one model, as a table."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dpcheck.engine.estimates import SiteEstimate


def show_plan(
    console: Console, sites: tuple[SiteEstimate, ...], batch_size: int, seconds: float, backwards: int
) -> None:
    """Print a row for each site, dearest first, and what all of them take together."""
    table = Table(Column("parameter", overflow="fold"), "summed over samples by", "at", "method")
    for name in ("Mflop", "ms", "MiB held"):
        table.add_column(name, justify="right")
    for site in sorted(sites, key=lambda s: -s.seconds):
        where = f"{os.path.basename(site.location.file)}:{site.location.line}" if site.location else "-"
        numbers = f"{site.flops / 1e6:.4g}", f"{site.seconds * 1e3:.3g}", f"{site.held / 2**20:.3g}"
        method = site.method if site.kind != "joint" else f"{site.method}, several uses"
        table.add_row(escape(", ".join(site.parameters)), site.op, escape(where), method, *numbers)
    console.print(table)
    total = sum(site.seconds for site in sites)
    console.print(
        f"{len(sites)} sites at a batch of {batch_size}: about {total * 1e3:.3g} ms for norms and clipped sums, which "
        f"take the place of the unclipped sums; planned in {seconds:.1f} s"
    )
    if backwards == 2:
        console.print(
            "two backwards: the model computes activations again (checkpointing), and nothing is held for the clipped "
            "sum, which is the gradient of the losses times their clip factors"
        )
    console.print(
        "ghost: norms without the gradients, then one weighted sum; instantiate: every sample's gradient is kept; "
        "recompute: is computed twice; "
        "direct: small"
    )


def show_memory(
    console: Console, batch_size: int, peak: int, gradients: int, budget: int | None, fits: int | None
) -> None:
    """Print the estimate of what one forward and backward take, and how many samples that leaves room for."""
    text = (
        f"memory: about {peak / 2**20:.3g} MiB at once for {batch_size} samples beyond weights and batch, "
        f"{gradients / 2**20:.3g} MiB of them the gradient"
    )
    if budget is not None and fits is not None:
        text += (
            f"; half of what is free, {budget / 2**20:.4g} MiB, holds {fits} samples like these (an engine computes "
            "at most 256 at once unless told otherwise)"
        )
    console.print(text)
