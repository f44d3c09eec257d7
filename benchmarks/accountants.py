"""Compares dpcheck's accountant with dp-accounting and prv-accountant, and makes the golden table of the tests.

    python benchmarks/accountants.py [--golden PATH] [--match PATTERN] [--limit SECONDS]

For each of some 110 cases (:mod:`accountant_cases`: Poisson samples under both adjacencies, samples of fixed size, cut
samples, no sampling, Laplace noise, changing settings, joint queries, users): our interval, dp-accounting's optimistic
and pessimistic epsilon (by a privacy loss distribution with intervals of 1e-4; by RDP for samples of fixed size),
prv-accountant's lower and upper bound (with an error of 0.5 %) and closed forms, each with its time. A peer that has no
such mechanism, fails, or takes longer than the limit, has no entry. Needs dp-accounting, prv-accountant and mpmath, of
which dpcheck itself needs none. Exit code 1 when our upper bound is below a bound that a peer certifies from below,
our lower one above one that a peer certifies from above, or ours is more than 1 % above dp-accounting's.

Two claims of peers are not believed, for others refute them; where that matters it is said. prv-accountant's lower
bound, where it is above dp-accounting's upper one (at epsilon above 100). And dp-accounting's bounds below delta =
1e-8, where absolute errors of its Fourier transform and its windows show: without sampling, at sigma 1, delta 1e-12,
its lower bound is 7.23859, while the closed form is 7.23849; at rate 0.001, sigma 0.7, 100000 steps, delta 1e-10 its
upper bound is 5.9600, while prv-accountant with a smaller error certifies at least 5.9677.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accountant_peers as peers
from accountant_cases import Case, cases, faults

_TIMED = ("ours", "dp_accounting", "prv_accountant")


class _TooLong(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="write the table here, as JSON")
    parser.add_argument("--match", default="", help="only cases whose line contains this")
    parser.add_argument("--limit", type=int, default=60, help="seconds for each peer and case")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    rows = []
    for case in cases():
        if options.match in _name(case):
            rows.append(compare(case, options.limit))
            print(_line(rows[-1]), flush=True)
    wrong = [f"{_line(row)}: {fault}" for row in rows for fault in faults(row)]
    print(f"\n{len(rows)} cases, {len(wrong)} faults", *wrong, sep="\n")
    print("claims of peers that others refute:")
    print(*(f"  {_line(row)}: {fault}" for row in rows for fault in faults(row, believed=False)), sep="\n")
    for name in _TIMED:
        seconds = sorted(row["seconds"][name] for row in rows if row["seconds"][name] is not None)
        if seconds:
            print(
                f"{name}: {len(seconds)} answers, median {seconds[len(seconds) // 2]:.3f} s, most {seconds[-1]:.3f} s"
            )
    if options.golden:
        versions = {name: version(name) for name in ("dp-accounting", "prv-accountant", "mpmath")}
        kept = [{k: v for k, v in row.items() if k not in ("seconds", "name")} for row in rows]
        lines = ",\n".join(map(json.dumps, kept))
        options.golden.write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')
    return 1 if wrong else 0


def compare(case: Case, limit: int) -> dict[str, Any]:
    """One row."""
    bounds, ours = _timed(case.bounds, limit)
    google, google_time = _timed(lambda: peers.dp_accounting(case), limit)
    prv, prv_time = _timed(lambda: peers.prv_accountant(case, 0.005 * bounds.upper), limit)
    return {
        "name": _name(case), **case.as_row(), "lower": bounds.lower, "upper": bounds.upper,
        "dp_accounting": google, "rdp": peers.rdp(case), "prv_accountant": prv, "exact": peers.exact(case),
        "seconds": dict(zip(_TIMED, (ours, google_time, prv_time), strict=True)),
    }  # fmt: skip


def _timed(function: Callable[[], Any], limit: int) -> tuple[Any, float | None]:
    """What it returns and how long it took; nothing if it failed or took longer than the limit."""

    def stop(*_: object) -> None:
        raise _TooLong

    # Of the processor, so that a busy machine changes neither the times nor who answers.
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    start = time.process_time()
    try:
        value = function()
        return value, None if value is None else time.process_time() - start
    except (_TooLong, ValueError, RuntimeError, ArithmeticError, MemoryError):
        return None, None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _name(case: Case) -> str:
    phases = " + ".join(f"{p.steps} at rate {p.sample_rate:.4g}, sigma {p.noise_multiplier:.4g}" for p in case.phases)
    return f"{case.kind}: {phases}, delta {case.delta:g}{f', of {case.records} records' if case.records > 1 else ''}"


def _line(row: dict[str, Any]) -> str:
    shown = [
        f"{name} {'-' if row[name] is None else '{:.5f} {:.5f}'.format(*row[name])}"
        for name in ("dp_accounting", "prv_accountant")
    ]
    shown += [f"{name} {row[name]:.5f}" for name in ("rdp", "exact") if row[name] is not None]
    return f"{row['name']}: {row['lower']:.5f} {row['upper']:.5f}; {'; '.join(shown)}"


if __name__ == "__main__":
    sys.exit(main())
