"""A table for a summary page or a comment."""

from __future__ import annotations

from dpcheck.diagnostic import Report
from dpcheck.report import NOT_CHECKED, ignored_in_words
from dpcheck.report.full import METHOD, verdict_of
from dpcheck.report.places import place_of_finding, told


def render(report: Report, target: str) -> str:
    """A heading, the verdict, and a row for each finding."""
    lines = [
        f"## dpcheck: {_cell(target)}",
        "",
        f"**{report.verdict}**: {verdict_of(report)}; {METHOD[report.method]}.",
    ]
    if report.shown:
        lines += ["", "| rule | where | what |", "|---|---|---|"]
    for d in report.shown:
        at = place_of_finding(d, target)
        lines.append(f"| {d.code} {d.name} | `{at.path}:{at.line}` | {_cell(told(d))} |")
    lines += [f"\n- ignored: {_cell(line)}" for line in ignored_in_words(report)]
    return "\n".join([*lines, *(f"\n- {_cell(note)}" for note in report.notes)])


def failed(target: str) -> str:
    """A heading, and that there is no verdict."""
    return f"## dpcheck: {_cell(target)}\n\n**error**: {NOT_CHECKED}."


def _cell(text: str) -> str:
    for character in "\\|`*_<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
