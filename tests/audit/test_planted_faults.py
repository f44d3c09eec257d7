"""Every planted fault is caught, and docs/planted-bugs.md says by what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectors import DETECTORS, part_sees, seen_by
from faults import account, checking, clipping, drawing, noise
from faults.base import Fault

PAGE = Path(__file__).parents[2] / "docs" / "planted-bugs.md"
AREAS = {
    "Noise": noise.FAULTS, "Clipping": clipping.FAULTS, "Sampling": drawing.FAULTS,
    "Ledger and account": account.FAULTS, "Check, fixer and guards": checking.FAULTS,
}  # fmt: skip
FAULTS = {fault.what: fault for faults in AREAS.values() for fault in faults}
# The cheapest first.
ORDER = ("suite", "check", "audit", "verify")
_COLUMNS = ("check", "verify", "audit", "suite")
_HEAD = """\
# Planted bugs, and what catches them

Each line is a fault that was put into the engine, the account, the analysis or the fixer on purpose
(`tests/audit/faults`), and what said so: `check` and `verify` on a few models, `audit` with the parts that failed
("refused": the engine refused to take the step), and `suite`, a few invariants of the test suite
(`tests/audit/detectors.py`). None says anything without a fault. A dash: it was not run on this fault.
`pytest -m long tests/audit/test_planted_faults.py` runs all and writes this page; the ordinary run plants every fault
again and runs one detector that caught it.
"""


def page(found: dict[str, dict[str, str]]) -> str:
    """The table; ``found`` has what each detector said of each fault."""
    lines = [_HEAD]
    for area, faults in AREAS.items():
        lines += [f"## {area}\n", f"| fault | really happened | {' | '.join(_COLUMNS)} |", f"|{'---|' * 6}"]
        for fault in faults:
            said = [found[fault.what].get(detector, "–") for detector in _COLUMNS]
            shown = [s if s in ("", "–") or d == "audit" else "yes" for d, s in zip(_COLUMNS, said, strict=True)]
            lines.append(f"| {fault.what} | {fault.happened} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def _table() -> dict[str, dict[str, str]]:
    rows = re.findall(r"^\| (.*?) \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$", PAGE.read_text(), re.MULTILINE)
    return {
        row[0]: {d: cell.strip(" –") for d, cell in zip(_COLUMNS, row[2:], strict=True)}
        for row in rows
        if row[0] != "fault"
    }


def test_the_page_has_every_fault_and_each_is_caught() -> None:
    table = _table()
    assert list(table) == list(FAULTS)
    assert len(FAULTS) >= 40
    assert all(any(cells.values()) for cells in table.values())


@pytest.mark.parametrize("detector", DETECTORS)
def test_nothing_is_said_without_a_fault(detector: str) -> None:
    assert DETECTORS[detector]({}) == ""


@pytest.mark.parametrize("part", ["clipping", "noise", "sampling"])
def test_no_part_says_anything_without_a_fault(part: str) -> None:
    assert part_sees(part, {}) == ""


@pytest.mark.parametrize("what", FAULTS)
def test_the_fault_is_caught(what: str) -> None:
    fault, said = FAULTS[what], _table()[what]
    detector = next(d for d in ORDER if said[d])
    with fault.planted():
        if detector == "audit":
            assert part_sees(said["audit"].split(", ")[0], fault.settings)
        else:
            assert DETECTORS[detector](fault.settings)


@pytest.mark.long
def test_write_the_page() -> None:
    found = {what: {d: seen_by(fault, d) for d in DETECTORS} for what, fault in FAULTS.items()}
    assert all(any(cells.values()) for cells in found.values())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found))


def test_faults_are_put_back() -> None:
    for fault in (*noise.FAULTS, *account.FAULTS):
        before = _current(fault)
        with fault.planted():
            assert _current(fault) is not before
        assert _current(fault) == before


def _current(fault: Fault) -> object:
    return fault.owner[fault.name] if isinstance(fault.owner, dict) else vars(fault.owner)[fault.name]
