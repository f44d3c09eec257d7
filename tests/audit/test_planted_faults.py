"""Every planted fault is caught, and docs/planted-bugs.md says by what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import two_ranks
from detectors import DETECTORS, part_sees, seen_by
from faults import account, checking, clipping, drawing, noise, several
from faults.base import Fault

PAGE = Path(__file__).parents[2] / "docs" / "planted-bugs.md"
AREAS = {
    "Noise": noise.FAULTS, "Clipping": clipping.FAULTS, "Sampling": drawing.FAULTS,
    "Ledger and account": account.FAULTS, "Check, fixer and guards": checking.FAULTS,
    "Several ranks": several.FAULTS,
}  # fmt: skip
FAULTS = {fault.what: fault for faults in AREAS.values() for fault in faults}
# Run on two ranks, all in one go.
OF_RANKS = [fault.what for fault in several.FAULTS]
# The cheapest first.
ORDER = ("suite", "check", "audit", "verify")
_COLUMNS = ("check", "verify", "audit", "suite")
_HEAD = """\
# Planted bugs, and what catches them

Each line is a fault that was put into the engine, the account, the analysis or the fixer on purpose
(`tests/audit/faults`), and what said so: `check` and `verify` on a few models, `audit` with the parts that failed
("refused": the engine refused to take the step), and `suite`, a few invariants of the test suite
(`tests/audit/detectors.py`). Faults of several ranks are audited on two ranks of torch.distributed. None says anything
without a fault. A dash: it was run on this fault and did not catch it. An empty cell: it was not run.
`pytest -m long tests/audit/test_planted_faults.py` runs all and writes this page; the ordinary run plants every fault
again and runs one detector that caught it.
"""


def page(found: dict[str, dict[str, str]]) -> str:
    """The table; ``found`` has what each detector said of each fault, "–" for nothing, "" if it was not run."""
    lines = [_HEAD]
    for area, faults in AREAS.items():
        lines += [f"## {area}\n", f"| fault | really happened | {' | '.join(_COLUMNS)} |", f"|{'---|' * 6}"]
        for fault in (fault for fault in faults if fault.what in found):
            said = [found[fault.what][detector] for detector in _COLUMNS]
            shown = [s if s in ("", "–") or d == "audit" else "yes" for d, s in zip(_COLUMNS, said, strict=True)]
            lines.append(f"| {fault.what} | {fault.happened} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def _caught(cells: dict[str, str]) -> list[str]:
    """By which detectors, the cheapest first."""
    return [detector for detector in ORDER if cells[detector].strip("–")]


def _table() -> dict[str, dict[str, str]]:
    rows = re.findall(r"^\| (.*?) \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$", PAGE.read_text(), re.MULTILINE)
    return {
        row[0]: {d: cell.strip() for d, cell in zip(_COLUMNS, row[2:], strict=True)}
        for row in rows
        if row[0] != "fault"
    }


def test_the_page_has_every_fault_and_each_is_caught() -> None:
    table = _table()
    assert list(table) == list(FAULTS)
    assert len(FAULTS) >= 40
    assert all(map(_caught, table.values()))


@pytest.mark.parametrize("detector", DETECTORS)
def test_nothing_is_said_without_a_fault(detector: str) -> None:
    assert DETECTORS[detector]({}) == ""


@pytest.mark.parametrize("part", ["clipping", "noise", "sampling"])
def test_no_part_says_anything_without_a_fault(part: str) -> None:
    assert part_sees(part, {}) == ""


@pytest.mark.parametrize("what", [what for what in FAULTS if what not in OF_RANKS])
def test_the_fault_is_caught(what: str) -> None:
    fault, said = FAULTS[what], _table()[what]

    def catches(detector: str) -> str:
        if detector == "audit":
            return part_sees(said["audit"].split(", ")[0], fault.settings)
        return DETECTORS[detector](fault.settings)

    with fault.planted():
        # Faults of random draws are seen with a chance that is not 1, by some invariants with a small one.
        assert any(map(catches, _caught(said) * 3))


def test_the_faults_of_ranks_are_caught_and_nothing_else(tmp_path: Path) -> None:
    table, silent = _table(), [("", part) for part in ("suite", "clipping", "noise", "sampling")]
    cases = [(w, "suite" if "suite" in _caught(said) else said["audit"].split(", ")[0]) for w, said in table.items()]
    found = two_ranks.trial(tmp_path, [*silent, *(case for case in cases if case[0] in OF_RANKS)])
    assert {case for case, said in found.items() if not said} == set(silent)


def _on_ranks(folder: Path) -> dict[str, dict[str, str]]:
    said = two_ranks.trial(folder, [(what, d) for what in OF_RANKS for d in ("suite", *two_ranks.AUDIT)])
    return {
        what: {
            "suite": said[what, "suite"],
            "audit": ", ".join(part for part in two_ranks.AUDIT if said[what, part]),
            **{d: seen_by(FAULTS[what], d) for d in ("check", "verify")},
        }
        for what in OF_RANKS
    }


@pytest.mark.long
@pytest.mark.parametrize("area", AREAS)
def test_write_the_page(area: str, tmp_path: Path) -> None:
    """Every detector on every fault of an area; the lines of the others stay."""
    if AREAS[area] is several.FAULTS:
        found = _on_ranks(tmp_path)
    else:
        found = {fault.what: {d: seen_by(fault, d) for d in DETECTORS} for fault in AREAS[area]}
    shown = {what: {d: said or "–" for d, said in cells.items()} for what, cells in found.items()}
    assert all(map(_caught, shown.values()))
    PAGE.write_text(page({**_table(), **shown}))


def test_faults_are_put_back() -> None:
    for fault in (*noise.FAULTS, *account.FAULTS):
        before = _current(fault)
        with fault.planted():
            assert _current(fault) is not before
        assert _current(fault) == before


def _current(fault: Fault) -> object:
    return fault.owner[fault.name] if isinstance(fault.owner, dict) else vars(fault.owner)[fault.name]
