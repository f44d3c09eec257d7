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
from dpcheck.report import NOT_CHECKED, guess_of
from dpcheck.report.places import Place, place_of, place_of_finding, told
from dpcheck.report.prints import fingerprints
from dpcheck.rules import RULES

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(report: Report, target: str) -> str:
    """One run with every rule and a result for each finding. Columns are in characters, from 1."""
    rules = sorted(RULES, key=lambda rule: rule.code)
    index = {rule.code: i for i, rule in enumerate(rules)}
    guess, results = guess_of(report), []
    for d, fingerprint in zip(report.diagnostics, fingerprints(report, target), strict=True):
        results.append(
            {
                "ruleId": d.code,
                "ruleIndex": index[d.code],
                "level": "error",
                "message": {"text": told(d) + (f" ({guess})" if guess else "")},
                "locations": [_location(place_of_finding(d, target))],
                "relatedLocations": [_location(place_of(at)) for at in d.related],
                "partialFingerprints": {"dpcheck/v1": fingerprint},
                "suppressions": _suppressions(d),
                "properties": {"module": d.module, "parameter": d.parameter, "buffer": d.buffer, "op": d.op},
            }
        )
    told_too = [_notification("note", f"{target}: {guess}")] if guess else []
    about = {"target": target, "verdict": report.verdict, "method": report.method, "guess": guess}
    return _document(rules, results, {"executionSuccessful": True, "toolExecutionNotifications": told_too}, about)


def failed(target: str) -> str:
    """A run without results, of which it is said that it was not a success."""
    rules = sorted(RULES, key=lambda rule: rule.code)
    told_too = [_notification("error", f"{target} {NOT_CHECKED}")]
    invocation = {"executionSuccessful": False, "toolExecutionNotifications": told_too}
    return _document(rules, [], invocation, {"target": target, "error": NOT_CHECKED})


def _notification(level: str, text: str) -> dict[str, Any]:
    return {"level": level, "message": {"text": text}}


def _document(
    rules: Sequence[Rule], results: Sequence[dict[str, Any]], invocation: dict[str, Any], about: dict[str, Any]
) -> str:
    run = {
        "tool": {"driver": {"name": "dpcheck", "version": __version__, "rules": [_rule(rule) for rule in rules]}},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"ROOT": {"uri": Path.cwd().as_uri() + "/"}},
        "results": results,
        "properties": {"targets": [about]},
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
    # The whole line where no column is known: by the standard the same as none, but code scanning wants them.
    start, end = at.column or 1, at.end_column or at.width + 1
    region = {"startLine": at.line, "startColumn": start, "endLine": at.end_line, "endColumn": end}
    outside = at.path.startswith("/") or at.path[1:2] == ":"
    artifact = {"uri": Path(at.path).as_uri()} if outside else {"uri": quote(at.path), "uriBaseId": "ROOT"}
    return {"physicalLocation": {"artifactLocation": artifact, "region": region}}


def join(texts: Sequence[str]) -> str:
    """One document of several, with one run: code scanning refuses several runs of one tool in a file."""
    first, *others = (json.loads(text) for text in texts)
    run = first["runs"][0]
    for more in (document["runs"][0] for document in others):
        run["results"] += more["results"]
        run["invocations"] += more["invocations"]
        run["properties"]["targets"] += more["properties"]["targets"]
    return json.dumps(first, indent=2)
