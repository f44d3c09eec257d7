"""JUnit's XML: a test case for the model, or one that failed for each finding."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from dpcheck.diagnostic import Report
from dpcheck.report import guess_of
from dpcheck.report.places import place_of_finding, told


def render(report: Report, target: str) -> str:
    """An XML document with one suite. A finding that is ignored is skipped, not passed."""
    found, failed = len(report.diagnostics), len(report.shown)
    count = {"tests": str(max(1, found)), "failures": str(failed), "errors": "0", "skipped": str(found - failed)}
    seconds = f"{report.seconds:.3f}"
    root = ElementTree.Element("testsuites", {"name": "dpcheck", **count, "time": seconds})
    suite = ElementTree.SubElement(root, "testsuite", {"name": target, **count, "time": seconds})
    for d in report.diagnostics:
        at = place_of_finding(d, target)
        name = f"{d.code} {d.name} {at.path}:{at.line}"
        case = ElementTree.SubElement(suite, "testcase", {"name": name, "classname": at.path, "line": str(at.line)})
        if d.ignored:
            ElementTree.SubElement(case, "skipped", {"message": _legal(f"ignored ({d.ignored}): {d.message}")})
            continue
        failure = ElementTree.SubElement(case, "failure", {"message": _legal(d.message), "type": d.code})
        failure.text = _legal(told(d))
    if not found:
        name = "; ".join(filter(None, (report.verdict, guess_of(report))))
        ElementTree.SubElement(suite, "testcase", {"name": name, "classname": target, "time": seconds})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _legal(text: str) -> str:
    """Without the control characters that XML has no way to write."""
    return "".join(c for c in text if c in "\t\n\r" or ord(c) >= 0x20)


def join(texts: Sequence[str]) -> str:
    """One document of several."""
    roots = [ElementTree.fromstring(text) for text in texts]
    total = {key: str(sum(int(r.get(key, "0")) for r in roots)) for key in ("tests", "failures", "errors", "skipped")}
    seconds = sum(float(r.get("time", "0")) for r in roots)
    whole = ElementTree.Element("testsuites", {"name": "dpcheck", **total, "time": f"{seconds:.3f}"})
    whole.extend(suite for root in roots for suite in root)
    ElementTree.indent(whole)
    return ElementTree.tostring(whole, encoding="unicode", xml_declaration=True)
