"""Annotations of GitHub's workflow commands, shown at the lines of a pull request."""

from __future__ import annotations

from dpcheck.diagnostic import Report
from dpcheck.report import NOT_CHECKED, guess_of, ignored_in_words
from dpcheck.report.places import place_of_finding, told


def render(report: Report, target: str) -> str:
    """One ``::error`` command for each finding, and a ``::notice`` with the verdict."""
    lines = []
    for d in report.shown:
        at = place_of_finding(d, target)
        given = {"title": f"{d.code} {d.name}", "file": at.path, "line": at.line, "endLine": at.end_line}
        # Columns of a span over several lines are refused.
        if at.line == at.end_line and at.column is not None:
            given |= {"col": at.column} | ({"endColumn": at.end_column} if at.end_column is not None else {})
        properties = ",".join(f"{name}={_property(str(value))}" for name, value in given.items())
        lines.append(f"::error {properties}::{_data(told(d))}")
    by = "".join(f"\nignored: {line}" for line in ignored_in_words(report))
    by += f"\n{guess}" if (guess := guess_of(report)) else ""
    return "\n".join([*lines, f"::notice title=dpcheck::{_data(f'{target}: {report.verdict}{by}')}"])


def failed(target: str) -> str:
    """One ``::error`` command."""
    return f"::error title=dpcheck::{_data(f'{target} {NOT_CHECKED}')}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
