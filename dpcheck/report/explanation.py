"""An explanation for people: the answer, then each way step by step with its source lines."""

from __future__ import annotations

import linecache

from rich.console import Console
from rich.markup import escape

from dpcheck.explanation import Explanation
from dpcheck.report.places import short
from dpcheck.walks import Stop, Walk

_COLOURS = {"separate": "green", "constant": "green", "mixing": "red", "written from data": "red"}


def show(console: Console, explanation: Explanation) -> None:
    """Print one answer."""
    e = explanation
    colour = _COLOURS.get(e.answer, "yellow")
    name = f"{e.kind} {e.name or '(the model)'}" if e.kind != "losses" else "losses"
    console.print(f"[bold]{escape(name)}[/]: [bold {colour}]{e.answer}[/]")
    for sentence in e.why:
        console.print(f"  {escape(sentence)}")
    for d in e.findings:
        console.print(f"  [bold red]{d.code}[/] {escape(d.message)}")
        if d.help:
            console.print(f"    [cyan]help[/]: {escape(d.help)}")
    for walk in e.walks:
        _show_walk(console, walk)


def _show_walk(console: Console, walk: Walk) -> None:
    console.print(f"\n[bold]{escape(walk.title)}[/]")
    line = ""
    for number, stop in enumerate(walk.stops, 1):
        text = _named(stop)
        console.print(f"{number:>4}. {escape(text)}  [dim]{_shape(stop)}: {stop.samples}[/]")
        if stop.ops and stop.what:
            console.print(f"      [red]^[/] {escape(stop.what)}")
        here = _line(stop)
        if here and here != line:
            console.print(f"      [blue]{escape(here)}[/]", soft_wrap=True)
        line = here or line


def _named(stop: Stop) -> str:
    if not stop.ops:
        return stop.what or "value"
    if stop.half == "own backward":
        return f"a backward of your own: {', '.join(stop.ops)}"
    where = "the loss function" if stop.module is None else stop.module or "the model"
    back = "backward of " if stop.half == "backward" else ""
    return f"{back}{where}: {', '.join(stop.ops)}"


def _shape(stop: Stop) -> str:
    return f"[{', '.join(map(str, stop.shape))}]".replace("[", "\\[")


def _line(stop: Stop) -> str:
    if stop.location is None:
        return ""
    source = linecache.getline(stop.location.file, stop.location.line).strip()
    return f"{short(stop.location.file)}:{stop.location.line} | {source}"
