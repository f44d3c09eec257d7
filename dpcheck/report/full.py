"""The report for people: each finding at its source line, then the verdict."""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from dpcheck.diagnostic import Diagnostic, Location, Report
from dpcheck.report import guess_of, ignored_in_words, tally
from dpcheck.report.places import short

_COLOURS = {"independent": "green", "mixing": "red", "unproven": "yellow"}
VERDICT = {
    "independent": "proven: the loss and gradient of every sample depend on that sample alone",
    "mixing": "samples depend on each other: DP-SGD's guarantee would be false",
    "unproven": "nothing was refuted and nothing was proven: not a guarantee",
}
METHOD = {
    "graph": "gradients by the graph's samplers",
    "vmap": "gradients by vmap(grad) of the model",
    "single": "gradients one sample at a time",
    "none": "the engine refuses this model",
}
_TAB = 4


def show(
    console: Console, report: Report, subject: str, *, brief: bool = False, counts: bool = False, all: bool = False
) -> None:
    """Print findings, notes and the verdict on ``subject``.

    Args:
        console: where to.
        report: what was found.
        subject: what it is about.
        brief: the findings only, unless one is ignored: then the verdict, too.
        counts: how many findings each rule has, in the place of the findings.
        all: also the findings that are ignored.
    """
    if counts:
        show_counts(console, report)
    for diagnostic in () if counts else report.diagnostics if all else report.shown:
        show_diagnostic(console, diagnostic)
    if brief and not report.ignored and guess_of(report) is None:
        return
    show_notes(console, report.notes if not brief else filter(None, [guess_of(report)]))
    colour = _COLOURS[report.verdict] if report.ok or report.verdict != "independent" else "yellow"
    console.print(f"{escape(subject)}: [bold {colour}]{report.verdict}[/]: {verdict_of(report)}")
    console.print(f"{tally(report)}{_fixable(report)}; {METHOD[report.method]}; {report.seconds:.1f} s")
    for line in ignored_in_words(report):
        console.print(f"[yellow]ignored[/] {escape(line)}")


def show_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what a reader of a verdict must know; a guess cannot be overlooked."""
    for note in notes:
        console.print(f"[{'yellow' if note.startswith('GUESS') else 'dim'}]note: {escape(note)}[/]")


def verdict_of(report: Report) -> str:
    """The verdict in words. Findings that are ignored count."""
    if report.verdict == "independent" and report.ignored:
        return "samples do not depend on each other, but findings are ignored: the guarantee is NOT shown"
    return VERDICT[report.verdict]


def show_counts(console: Console, report: Report) -> None:
    """Print how many findings each rule has, and how many of them are ignored."""
    found = Counter((d.code, d.name) for d in report.diagnostics)
    ignored = Counter(d.code for d in report.ignored)
    for (code, name), count in sorted(found.items()):
        but = f" ({ignored[code]} ignored)" if ignored[code] else ""
        console.print(f"{count:>5}  [bold red]{code}[/] [bold]{name}[/]{but}")


def _fixable(report: Report) -> str:
    safe = sum(d.fix == "safe" for d in report.shown)
    unsafe = sum(d.fix == "unsafe" for d in report.shown)
    parts = [f"{safe} fixable with --fix"] * bool(safe) + [f"{unsafe} with --fix --unsafe-fixes"] * bool(unsafe)
    return f" ({', '.join(parts)})" if parts else ""


def show_diagnostic(console: Console, d: Diagnostic) -> None:
    """Print one finding with its source line and carets under the expression."""
    mark = f"[yellow]ignored[/] ({escape(str(d.ignored))}) " if d.ignored else ""
    console.print(f"{mark}[bold red]{d.code}[/] [bold]{d.name}[/]: {escape(d.message)}")
    if d.location is not None:
        _source(console, d.location)
    elif d.module:
        console.print(f"  [blue]-->[/] module {escape(repr(d.module))}")
    for place in d.related:
        console.print(f"  [blue]in[/]  {escape(_where(place))}")
    if d.help:
        console.print(f"  [cyan]help[/]: {escape(d.help)}")
    if d.fix in ("safe", "unsafe"):
        console.print(f"  [cyan]fix[/]: {'--fix' if d.fix == 'safe' else '--fix --unsafe-fixes'}")
    console.print()


def _where(at: Location) -> str:
    return f"{short(at.file)}:{at.line}" + (f":{at.column + 1}" if at.column is not None else "")


def _source(console: Console, at: Location) -> None:
    console.print(f"  [blue]-->[/] {escape(_where(at))}")
    line = linecache.getline(at.file, at.line).rstrip("\n")
    if not line:
        return
    gutter = f"{at.line:>5}"
    console.print(f"[blue]{gutter} |[/] {escape(line.expandtabs(_TAB))}", soft_wrap=True)
    if at.column is None:
        return
    one_line = at.end_line in (None, at.line) and at.end_column is not None
    start = _cells(line, at.column)
    width = (_cells(line, at.end_column) if one_line else _cells(line.rstrip(), None)) - start
    console.print(f"[blue]{' ' * len(gutter)} |[/] {' ' * start}[red]{'^' * max(width, 1)}[/]", soft_wrap=True)


def _cells(line: str, column: int | None) -> int:
    """Terminal cells before ``column``, which counts UTF-8 bytes as :mod:`ast` does."""
    return cell_len(line.encode()[:column].decode(errors="ignore").expandtabs(_TAB))
