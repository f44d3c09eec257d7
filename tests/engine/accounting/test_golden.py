"""The accountant against others: a table made by ``benchmarks/accountants.py --golden``, and, on request, live.

    python -m pytest -m long tests/engine/accounting/test_golden.py

needs dp-accounting and prv-accountant.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dpcheck.engine.accounting import epsilon

_ROOT = Path(__file__).resolve().parents[3]
ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("golden.json").read_text())


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accountants", _ROOT / "benchmarks" / "accountants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _setting(row: dict[str, Any]) -> tuple[float, float, int, float]:
    return row["sigma"], row["rate"], row["steps"], row["delta"]


def test_the_table_is_large_and_complete() -> None:
    assert len({_setting(row) for row in ROWS}) >= 60
    assert sum(row["dp_accounting"] is not None for row in ROWS) >= 60
    assert sum(row["prv_accountant"] is not None for row in ROWS) >= 60


def test_no_bound_contradicts_the_table_and_none_is_looser_than_dp_accounting() -> None:
    benchmark = _benchmark()
    wrong = []
    for row in ROWS:
        bounds = epsilon(*_setting(row))
        now = {**row, "lower": bounds.lower, "upper": bounds.upper}
        wrong += benchmark.faults(now)
        # What was certified then still holds now.
        if not (bounds.lower <= row["upper"] and row["lower"] <= bounds.upper <= 1.002 * row["upper"] + 1e-3):
            wrong.append(f"{_setting(row)}: {bounds}, was {row['lower']} to {row['upper']}")
    assert not wrong


@pytest.mark.parametrize(("name", "off"), [("upper", 0.98), ("lower", 1.03)])
def test_the_table_catches_bounds_that_are_wrong(name: str, off: float) -> None:
    benchmark = _benchmark()
    caught = sum(bool(benchmark.faults({**row, name: off * row[name]})) for row in ROWS)
    assert caught > 30


@pytest.mark.long
def test_no_live_answer_of_another_accountant_is_contradicted() -> None:
    for peer in ("dp_accounting", "prv_accountant"):
        assert importlib.util.find_spec(peer) is not None, f"this comparison needs {peer}"
    benchmark = _benchmark()
    rows = [benchmark.compare(rate, sigma, steps, 1e-5, 60) for rate, sigma, steps in benchmark.SETTINGS]
    assert all(row["dp_accounting"] for row in rows)
    assert not [fault for row in rows for fault in benchmark.faults(row)]
