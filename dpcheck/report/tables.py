"""Tables of changes and of proofs."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpcheck.fixer import FixResult
from dpcheck.verification import Proof


def show_changes(console: Console, result: FixResult) -> None:
    """Print what the fixer changed, and what it did not and why."""
    for change in result.changes:
        mark = "[green]fixed[/]" if change.applied else "[yellow]not fixed[/]"
        path = escape(repr(change.module or "(model)"))
        console.print(f"{mark} {change.code} {path}: {escape(change.what)} ({change.applicability})", highlight=False)
        if change.reason:
            console.print(f"      {escape(change.reason)}", highlight=False)
    if any(change.applied for change in result.changes):
        console.print(
            f"the losses of the sample batch changed by at most {result.loss_change:.2g}, relative", highlight=False
        )


def show_proof(console: Console, proof: Proof) -> None:
    """Print the largest error of each parameter's per-sample gradients."""
    table = Table("parameter", "site", "error vs vmap(grad)", "vs each sample alone", "")
    for p in proof.parameters:
        vmap = "-" if p.error_vmap is None else f"{p.error_vmap:.1e}"
        sites = ", ".join(sorted({site.removeprefix("aten.").partition(".")[0] for site in p.sites}))
        table.add_row(p.name, sites, vmap, f"{p.error_single:.1e}", "[green]ok[/]" if p.ok else "[red]wrong[/]")
    console.print(table)
    for note in proof.notes:
        console.print(f"[dim]note: {escape(note)}[/]")
