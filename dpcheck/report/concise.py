"""One line for each finding, then the verdict."""

from __future__ import annotations

from dpcheck.diagnostic import Report
from dpcheck.report import NOT_CHECKED, guess_of, ignored_in_words, tally
from dpcheck.report.places import place_of_finding


def render(report: Report, target: str) -> str:
    """``path:line:column: CODE message`` for each finding."""
    lines = []
    for d in report.shown:
        at = place_of_finding(d, target)
        where = f"{at.path}:{at.line}" + (f":{at.column}" if at.column is not None else "")
        lines.append(f"{where}: {d.code} {_line(d.message)}")
    by = f": {', '.join(ignored_in_words(report))}" if report.ignored else ""
    by += f"; {guess}" if (guess := guess_of(report)) else ""
    return "\n".join([*lines, f"{report.verdict}, {tally(report)}{_line(by)}"])


def failed(target: str) -> str:
    """One line."""
    return f"{target} {NOT_CHECKED}"


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text).split())
