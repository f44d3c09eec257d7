"""GitLab's code quality report."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dpcheck.diagnostic import Report
from dpcheck.report.places import place_of_finding, told
from dpcheck.report.prints import fingerprints


def render(report: Report, target: str) -> str:
    """A JSON list with an entry for each finding; all are critical, since each makes the guarantee false or unknown.

    One that is ignored is there as information.
    """
    found = []
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


def join(texts: Sequence[str]) -> str:
    """One document of several."""
    return json.dumps([entry for text in texts for entry in json.loads(text)], indent=2)
