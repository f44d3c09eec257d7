"""JUnit's XML: a test case for the model, or one that failed for each finding."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from dpcheck.diagnostic import Report
from dpcheck.report import NOT_CHECKED, guess_of
from dpcheck.report.places import place_of_finding, told


def render(report: Report, target: str) -> str:
    """An XML document with one suite. A finding that is ignored is skipped, not passed; a guess is a property."""
    found, failed = len(report.diagnostics), len(report.shown)
    suite = _suite(target, max(1, found), failures=failed, skipped=found - failed, seconds=report.seconds)
    properties = ElementTree.SubElement(suite, "properties")
    guess = guess_of(report)
    for name, value in (("verdict", report.verdict), ("method", report.method), ("guess", guess)):
        if value is not None:
            ElementTree.SubElement(properties, "property", {"name": name, "value": _legal(value)})
    for d in report.diagnostics:
        at = place_of_finding(d, target)
        case = _case(suite, f"{d.code} {d.name} {at.path}:{at.line}", at.path)
        if d.ignored:
            ElementTree.SubElement(case, "skipped", {"message": _legal(f"ignored ({d.ignored}): {d.message}")})
            continue
        failure = ElementTree.SubElement(case, "failure", {"message": _legal(d.message), "type": d.code})
        failure.text = _legal(told(d) + (f" ({guess})" if guess else ""))
    if not found:
        _case(suite, "; ".join(filter(None, (report.verdict, guess))), target)
    return _document([suite])


def failed(target: str) -> str:
    """A suite whose one case is an error."""
    suite = _suite(target, 1, errors=1)
    ElementTree.SubElement(_case(suite, "check", target), "error", {"message": NOT_CHECKED, "type": "error"})
    return _document([suite])


def _suite(
    target: str, tests: int, *, failures: int = 0, errors: int = 0, skipped: int = 0, seconds: float = 0.0
) -> ElementTree.Element:
    count = {"tests": tests, "failures": failures, "errors": errors, "skipped": skipped}
    given = {name: str(value) for name, value in count.items()}
    return ElementTree.Element("testsuite", {"name": _legal(target), **given, "time": f"{seconds:.3f}"})


def _case(suite: ElementTree.Element, name: str, of: str) -> ElementTree.Element:
    # The first has it all: a reader adds them up.
    time = suite.get("time", "") if suite.find("testcase") is None else "0.000"
    return ElementTree.SubElement(suite, "testcase", {"name": _legal(name), "classname": _legal(of), "time": time})


def _document(suites: Sequence[ElementTree.Element]) -> str:
    total = {key: str(sum(int(s.get(key, "0")) for s in suites)) for key in ("tests", "failures", "errors")}
    seconds = sum(float(s.get("time", "0")) for s in suites)
    root = ElementTree.Element("testsuites", {"name": "dpcheck", **total, "time": f"{seconds:.3f}"})
    root.extend(suites)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _legal(text: str) -> str:
    """Without the control characters that XML has no way to write."""
    return "".join(c for c in text if c in "\t\n\r" or ord(c) >= 0x20)


def join(texts: Sequence[str]) -> str:
    """One document of several."""
    return _document([suite for text in texts for suite in ElementTree.fromstring(text)])
