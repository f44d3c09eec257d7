"""Source fixes for people: a diff, and what was written and what was not."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from dpcheck.report import counted, tables
from dpcheck.report.places import short

if TYPE_CHECKING:
    from dpcheck.fixer import FixResult
    from dpcheck.rewrite.apply import Outcome
    from dpcheck.rewrite.plan import SourceFix

_COLOURS = {"-": "red", "+": "green", "@": "cyan"}


def show_diff(console: Console, fix: SourceFix) -> None:
    """Print a unified diff of every file that is to be written."""
    for path, (old, new) in fix.contents.items():
        name = short(path)
        before, after = (data.decode("utf-8", errors="replace").splitlines() for data in (old, new))
        for line in difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm=""):
            colour = _COLOURS.get(line[:1])
            console.print(f"[{colour}]{escape(line)}[/]" if colour else escape(line), soft_wrap=True)


def show_plan(console: Console, fix: SourceFix, result: FixResult, done: str = "would fix") -> None:
    """Print what has an edit, what has none and why, and what else a reader must know."""
    for m in fix.mended:
        where = f"{m.change.code} {m.change.module or '(model)'!r} at {short(m.file)}:{m.line}"
        console.print(f"[green]{done}[/] {escape(where)} ({tables.measured(m.change)})", soft_wrap=True)
    unmended = [*((c, c.reason) for c in result.changes if not c.applied), *fix.refused]
    for change, reason in unmended:
        what = f"{change.code} {change.module or '(model)'!r}: {change.what} ({tables.measured(change)})"
        console.print(f"[yellow]not fixed[/] {escape(what)}\n      {escape(reason or '')}", soft_wrap=True)
    for note in fix.notes:
        console.print(f"[dim]note: {escape(note)}[/]", soft_wrap=True)
    if fix.mended:
        console.print("[dim]tried in memory first:[/]")
        tables.show_trial(console, result)


def show_outcome(console: Console, outcome: Outcome) -> None:
    """Print what was written, and what a new process says of it."""
    if outcome.put_back is not None:
        files = ", ".join(short(path) for path in outcome.fix.contents)
        console.print(f"[yellow]put back[/] {escape(files)}: {escape(outcome.put_back)}", soft_wrap=True)
        return
    if outcome.fresh is None:
        console.print("nothing was written")
        return
    files = ", ".join(short(path) for path in outcome.fix.contents)
    console.print(f"[bold green]written[/] {escape(files)}", soft_wrap=True)
    found = counted(outcome.fresh.findings) + " left" * bool(outcome.fresh.findings)
    console.print(f"loaded in a new process: {outcome.fresh.verdict}, {found}")


def as_document(outcome: Outcome) -> dict[str, Any]:
    """The same for machines."""
    fix = outcome.fix
    return {
        "files": [str(path) for path in fix.contents],
        "mended": [{"code": m.change.code, "module": m.change.module, "at": f"{m.file}:{m.line}"} for m in fix.mended],
        "refused": [{"code": c.code, "module": c.module, "reason": reason} for c, reason in fix.refused],
        "notes": fix.notes,
        "written": outcome.fresh is not None,
        "put_back": outcome.put_back,
        "fresh": outcome.fresh,
    }
