"""GitLab's code quality report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from dpcheck.diagnostic import Report
from dpcheck.report import NOT_CHECKED, guess_of
from dpcheck.report.places import path_of, place_of_finding, told
from dpcheck.report.prints import fingerprints


def render(report: Report, target: str) -> str:
    """A JSON list with an entry for each finding; all are critical, since each makes the guarantee false or unknown.

    One that is ignored is there as information, and so is what was guessed.
    """
    guess = guess_of(report)
    found = [_of_target(target, "guess", f"{report.verdict}, by a guess: {guess}", "info")] if guess else []
    for d, fingerprint in zip(report.diagnostics, fingerprints(report, target), strict=True):
        at = place_of_finding(d, target)
        found.append(
            {
                "description": f"{d.code} {d.name}: {told(d)}" + (f" (ignored: {d.ignored})" if d.ignored else ""),
                "check_name": d.code,
                "fingerprint": fingerprint,
                "severity": "info" if d.ignored else "critical",
                "location": {"path": at.path, "lines": {"begin": at.line, "end": at.end_line}},
            }
        )
    return json.dumps(found, indent=2)


def failed(target: str) -> str:
    """An entry that says so, since an empty list would say that all is well."""
    return json.dumps([_of_target(target, "error", f"{target} {NOT_CHECKED}", "blocker")], indent=2)


def _of_target(target: str, name: str, text: str, severity: str) -> dict[str, Any]:
    path = path_of(target)
    return {
        "description": text,
        "check_name": f"dpcheck-{name}",
        "fingerprint": hashlib.sha256(f"{name}\0{path}".encode()).hexdigest(),
        "severity": severity,
        "location": {"path": path, "lines": {"begin": 1, "end": 1}},
    }


def join(texts: Sequence[str]) -> str:
    """One document of several."""
    return json.dumps([entry for text in texts for entry in json.loads(text)], indent=2)
