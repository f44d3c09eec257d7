"""The accountant against others: a table made by ``benchmarks/accountants.py --golden``, and, on request, live.

    python -m pytest -m long tests/engine/accounting/test_golden.py

needs dp-accounting and prv-accountant.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TABLE = json.loads(Path(__file__).with_name("golden.json").read_text())
ROWS: list[dict[str, Any]] = TABLE["rows"]


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "benchmarks")
    return importlib.import_module("accountant_cases")


def test_the_table_is_large_and_complete(cases: ModuleType) -> None:
    assert [cases.case_of(row) for row in ROWS] == cases.cases()
    kinds = Counter(row["kind"] for row in ROWS)
    assert min(kinds.values()) >= 3
    assert sum(kinds.values()) >= 60
    assert sum(row["dp_accounting"] is not None for row in ROWS) >= 60
    assert sum(row["prv_accountant"] is not None for row in ROWS) >= 60
    # Whatever the kind, somebody else has an answer.
    assert all(any(row[peer] for peer in ("dp_accounting", "prv_accountant", "rdp", "exact")) for row in ROWS)
    assert TABLE["versions"].keys() >= {"dp-accounting", "prv-accountant"}


def test_no_bound_contradicts_the_table_and_none_is_looser_than_dp_accounting(cases: ModuleType) -> None:
    wrong = []
    for row in ROWS:
        bounds = cases.case_of(row).bounds()
        wrong += cases.faults({**row, "lower": bounds.lower, "upper": bounds.upper})
        # What was certified then still holds now.
        if not (bounds.lower <= row["upper"] and row["lower"] <= bounds.upper <= 1.002 * row["upper"] + 1e-3):
            wrong.append(f"{cases.case_of(row)}: {bounds}, was {row['lower']} to {row['upper']}")
    assert not wrong


@pytest.mark.parametrize(("name", "off"), [("upper", 0.98), ("lower", 1.03)])
def test_the_table_catches_bounds_that_are_wrong(cases: ModuleType, name: str, off: float) -> None:
    caught = Counter(row["kind"] for row in ROWS if cases.faults({**row, name: off * row[name]}))
    assert sum(caught.values()) > 60
    if name == "upper":
        # Nobody else has a lower bound for these.
        assert caught.keys() == {row["kind"] for row in ROWS} - {"fixed size", "cut to size"}
    else:
        # RDP is far above.
        assert caught.keys() == {row["kind"] for row in ROWS} - {"fixed size"}


@pytest.mark.long
def test_no_live_answer_of_another_accountant_is_contradicted(cases: ModuleType) -> None:
    for peer in ("dp_accounting", "prv_accountant"):
        assert importlib.util.find_spec(peer) is not None, f"this comparison needs {peer}"
    benchmark = importlib.import_module("accountants")
    rows = [benchmark.compare(case, 120) for case in cases.cases() if case.delta >= 1e-6]
    assert all(row["dp_accounting"] or row["rdp"] for row in rows)
    assert not [fault for row in rows for fault in cases.faults(row)]
