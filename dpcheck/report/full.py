"""The report for people: each finding at its source line, then the verdict."""

from __future__ import annotations

import linecache
import os

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpcheck.diagnostic import Diagnostic, Location, Report

_COLOURS = {"independent": "green", "mixing": "red", "unproven": "yellow"}
_MEANING = {
    "independent": "proven: the loss and gradient of every sample depend on that sample alone",
    "mixing": "samples depend on each other: DP-SGD's guarantee would be false",
    "unproven": "nothing was found and nothing was proven: not a guarantee",
}


def show(console: Console, report: Report) -> None:
    """Print findings, notes and the verdict."""
    for diagnostic in report.diagnostics:
        show_diagnostic(console, diagnostic)
    for note in report.notes:
        console.print(f"[dim]note: {escape(note)}[/]")
    count = len(report.diagnostics)
    found = "no findings" if count == 0 else f"{count} finding{'s' * (count != 1)}"
    colour = _COLOURS[report.verdict]
    console.print(f"[bold {colour}]{report.verdict}[/]: {_MEANING[report.verdict]}")
    console.print(f"{found}; gradients by {_method(report)}; {report.seconds:.1f} s")


def _method(report: Report) -> str:
    names = {
        "graph": "the graph's samplers",
        "vmap": "vmap(grad) of the model",
        "single": "one sample at a time",
        "none": "nothing: the engine refuses this model",
    }
    return names[report.method]


def show_diagnostic(console: Console, d: Diagnostic) -> None:
    """Print one finding with its source line and a marker under the expression."""
    console.print(f"[bold red]{d.code}[/] [bold]{d.name}[/]: {escape(d.message)}", highlight=False)
    if d.location is not None:
        _source(console, d.location)
    elif d.module:
        console.print(f"  [blue]-->[/] module {escape(repr(d.module))}", highlight=False)
    for place in d.related:
        console.print(f"  [blue]in[/]  {escape(_where(place))}", highlight=False)
    if d.help:
        console.print(f"  [cyan]help[/]: {escape(d.help)}", highlight=False)
    if d.fix in ("safe", "unsafe"):
        option = "--fix" if d.fix == "safe" else "--fix --unsafe-fixes"
        console.print(f"  [cyan]fix[/]: {option}", highlight=False)
    console.print()


def _where(at: Location) -> str:
    path = os.path.relpath(at.file)
    path = at.file if path.startswith("..") else path
    return f"{path}:{at.line}" + (f":{at.column + 1}" if at.column is not None else "")


def _source(console: Console, at: Location) -> None:
    console.print(f"  [blue]-->[/] {escape(_where(at))}", highlight=False)
    line = linecache.getline(at.file, at.line).rstrip("\n")
    if not line:
        return
    gutter = f"{at.line:>5}"
    console.print(f"[blue]{gutter} |[/] {escape(line)}", highlight=False)
    if at.column is None:
        return
    # Columns count UTF-8 bytes.
    raw = line.encode()
    start = len(raw[: at.column].decode(errors="ignore"))
    end = len(raw[: at.end_column].decode(errors="ignore")) if at.end_line == at.line and at.end_column else len(line)
    console.print(f"[blue]{' ' * len(gutter)} |[/] {' ' * start}[red]{'^' * max(end - start, 1)}[/]", highlight=False)


def show_parameters(console: Console, report: Report) -> None:
    """Print a table of parameters, and one of buffers that are written."""
    table = Table("parameter", "shape", "gradient", "summed over samples by", "also")
    for p in report.parameters:
        sites = ", ".join(sorted({site.removeprefix("aten.") for site in p.sites}))
        table.add_row(p.name, "x".join(map(str, p.shape)) or "scalar", p.status, sites, ", ".join(p.tied))
    console.print(table)
    written = [b for b in report.buffers if b.kind not in ("constant", "unknown")]
    for b in written:
        console.print(f"buffer {b.name}: written, from {'data' if b.kind == 'data' else 'weights or constants'}")
