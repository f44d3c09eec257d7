"""An audit for people: a table of checks, and what the numbers mean."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpcheck.engine.accounting import at_least, at_most
from dpcheck.engine.auditing.audit import Audit


def show(console: Console, audit: Audit) -> None:
    """Print every check, the records that make a failure repeatable, and the bounds of epsilon."""
    claim, found = audit.claim, audit.empirical
    console.print(
        f"audited: {claim.steps} steps of expected batch size {claim.expected_batch_size} of {claim.dataset_size}, "
        f"noise multiplier {claim.noise_multiplier:.4g}, clipping norm {claim.max_grad_norm:g}"
    )
    table = Table("", "what", "found", "p")
    for check in audit.checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]FAILED[/]"
        p = "" if check.p_value is None else f"{check.p_value:.2g}"
        table.add_row(mark, f"{check.part}: {escape(check.name)}", escape(check.measured), p)
    console.print(table)
    for check in audit.checks:
        if check.record:
            console.print(f"{check.part}: {escape(check.name)}; worst case: {escape(check.record)}")
    console.print(
        f"epsilon of {found.steps} steps with {found.canaries} canaries, at delta = {found.claimed.delta:g}: claimed "
        f"at most {at_most(found.claimed.upper)}; an attack shows at least {at_least(found.lower)}, and at least "
        f"{at_least(found.gaussian)} of a mechanism like a Gaussian one (95 % confidence)"
    )
    failed = sum(not check.ok for check in audit.checks)
    verdict = f"[bold red]{failed} of {len(audit.checks)} checks failed[/]" if failed else "[green]no fault found[/]"
    console.print(f"{verdict}. An audit finds faults; it proves nothing: what proves is the check of the model.")
