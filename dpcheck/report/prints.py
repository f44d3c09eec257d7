"""Names for findings that stay the same when lines move."""

from __future__ import annotations

import hashlib
from collections import Counter

from dpcheck.diagnostic import Report
from dpcheck.report.places import place_of_finding


def fingerprints(report: Report, target: str) -> list[str]:
    """One for each finding, all different: of rule, file, module, parameter, buffer, op and message, but no line."""
    seen: Counter[str] = Counter()
    found = []
    for d in report.diagnostics:
        path = place_of_finding(d, target).path
        text = "\0".join(map(str, (d.code, path, d.module, d.parameter, d.buffer, d.op, d.message)))
        found.append(hashlib.sha256(f"{text}\0{seen[text]}".encode()).hexdigest())
        seen[text] += 1
    return found
