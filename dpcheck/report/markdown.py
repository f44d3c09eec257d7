"""A table for a summary page or a comment."""

from __future__ import annotations

from dpcheck.diagnostic import Report
from dpcheck.report.full import METHOD, VERDICT
from dpcheck.report.places import place_of_finding, told


def render(report: Report, target: str) -> str:
    """A heading, the verdict, and a row for each finding."""
    lines = [
        f"## dpcheck: {_cell(target)}",
        "",
        f"**{report.verdict}**: {VERDICT[report.verdict]}; {METHOD[report.method]}.",
    ]
    if report.diagnostics:
        lines += ["", "| rule | where | what |", "|---|---|---|"]
    for d in report.diagnostics:
        at = place_of_finding(d, target)
        lines.append(f"| {d.code} {d.name} | `{at.path}:{at.line}` | {_cell(told(d))} |")
    return "\n".join([*lines, *(f"\n- {_cell(note)}" for note in report.notes)])


def _cell(text: str) -> str:
    for character in "\\|`*_<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
