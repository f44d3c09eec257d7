"""SARIF 2.1.0, as GitHub's code scanning reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dpcheck import __version__
from dpcheck.diagnostic import Diagnostic, Report
from dpcheck.registry import Rule
from dpcheck.report import guess_of
from dpcheck.report.places import Place, place_of, place_of_finding, told
from dpcheck.report.prints import fingerprints
from dpcheck.rules import RULES

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(report: Report, target: str) -> str:
    """One run with every rule and a result for each finding. Columns are in characters, from 1."""
    rules = sorted(RULES, key=lambda rule: rule.code)
    index = {rule.code: i for i, rule in enumerate(rules)}
    results = []
    for d, fingerprint in zip(report.diagnostics, fingerprints(report, target), strict=True):
        results.append(
            {
                "ruleId": d.code,
                "ruleIndex": index[d.code],
                "level": "error",
                "message": {"text": told(d)},
                "locations": [_location(place_of_finding(d, target))],
                "relatedLocations": [_location(place_of(at)) for at in d.related],
                "partialFingerprints": {"dpcheck/v1": fingerprint},
                "suppressions": _suppressions(d),
                "properties": {"module": d.module, "parameter": d.parameter, "buffer": d.buffer, "op": d.op},
            }
        )
    driver = {"name": "dpcheck", "version": __version__, "rules": [_rule(rule) for rule in rules]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"ROOT": {"uri": Path.cwd().as_uri() + "/"}},
        "results": results,
        "properties": {"target": target, "verdict": report.verdict, "method": report.method, "guess": guess_of(report)},
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _suppressions(d: Diagnostic) -> list[dict[str, str]]:
    """Empty where nothing ignores the finding."""
    if d.ignored is None:
        return []
    kind = "inSource" if d.ignored.by == "comment" else "external"
    return [{"kind": kind, "status": "accepted", "justification": str(d.ignored)}]


def _rule(rule: Rule) -> dict[str, Any]:
    sections = rule.sections()
    text = "\n\n".join(f"{title}\n{body}" for title, body in sections.items())
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary()},
        "fullDescription": {"text": " ".join(sections["What it finds"].split())},
        "help": {"text": text, "markdown": "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["differential-privacy", "security"], "precision": "high", "security-severity": "8.0"},
    }


def _location(at: Place) -> dict[str, Any]:
    region = {"startLine": at.line, "startColumn": at.column, "endLine": at.end_line, "endColumn": at.end_column}
    outside = at.path.startswith("/") or at.path[1:2] == ":"
    artifact = {"uri": Path(at.path).as_uri()} if outside else {"uri": quote(at.path), "uriBaseId": "ROOT"}
    kept = {name: value for name, value in region.items() if value is not None}
    return {"physicalLocation": {"artifactLocation": artifact, "region": kept}}


def join(texts: Sequence[str]) -> str:
    """One document of several."""
    documents = [json.loads(text) for text in texts]
    whole = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run for d in documents for run in d["runs"]]}
    return json.dumps(whole, indent=2)
