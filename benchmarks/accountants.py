"""Compares dpcheck's accountant with dp-accounting and prv-accountant, and makes the golden table of the tests.

    python benchmarks/accountants.py [--golden PATH] [--match PATTERN] [--limit SECONDS]

For each setting (rate, sigma, steps) and delta: our interval, dp-accounting's optimistic and pessimistic epsilon (by a
privacy loss distribution with intervals of 1e-4) and prv-accountant's lower and upper bound (with an error of 0.5 %),
each with its time. A peer that takes longer than the limit has no entry. Needs dp-accounting and prv-accountant, of
which dpcheck itself needs none. Exit code 1 when our upper bound is below a bound that a peer certifies from below,
our lower one above one that a peer certifies from above, or ours is more than 1 % above dp-accounting's.

Two claims of peers are not believed, for others refute them; where that matters it is said. prv-accountant's lower
bound, where it is above dp-accounting's upper one (at epsilon above 100). And dp-accounting's upper bound below
delta = 1e-8, where the absolute error of its Fourier transform shows: at rate 0.001, sigma 0.7, 100000 steps, delta
1e-10 it says 5.9600, while prv-accountant with a smaller error certifies at least 5.9677.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpcheck.engine.accounting import epsilon

# rate, sigma, steps
SETTINGS: list[tuple[float, float, int]] = [
    (256 / 60000, 1.1, 14062), (0.01, 1.0, 10_000), (0.01, 1.0, 1_000), (0.01, 0.6, 100), (0.1, 0.5, 1_000),
    (1e-3, 4.0, 100_000), (1e-3, 1.0, 10_000), (1e-3, 0.7, 100_000), (0.05, 2.0, 2_000), (0.2, 5.0, 1_000),
    (0.5, 10.0, 500), (0.5, 2.0, 20), (0.3, 1.0, 5), (0.02, 0.8, 300), (1e-4, 0.6, 100_000),
    (0.9, 20.0, 3_000), (0.1, 1.0, 1), (0.1, 1.0, 2), (0.05, 0.7, 3), (0.25, 1.5, 50),
    (0.01, 8.0, 100_000), (0.004, 0.9, 5_000), (0.02, 3.0, 30_000), (1.0, 5.0, 30),
]  # fmt: skip
DELTAS = (1e-5, 1e-7, 1e-10)


class _TooLong(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="write the table here, as JSON")
    parser.add_argument("--match", default="", help="only settings whose line contains this")
    parser.add_argument("--limit", type=int, default=60, help="seconds for each peer and setting")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    rows = []
    for rate, sigma, steps in SETTINGS:
        for delta in DELTAS:
            row = compare(rate, sigma, steps, delta, options.limit)
            if options.match in _line(row):
                print(_line(row), flush=True)
                rows.append(row)
    wrong = [f"{_line(row)}: {fault}" for row in rows for fault in faults(row)]
    print(f"\n{len(rows)} settings, {len(wrong)} faults", *wrong, sep="\n")
    print("claims of peers that others refute:")
    print(*(f"  {_line(row)}: {fault}" for row in rows for fault in faults(row, believed=False)), sep="\n")
    for name in ("ours", "dp_accounting", "prv_accountant"):
        seconds = sorted(row["seconds"][name] for row in rows if row["seconds"][name] is not None)
        print(f"{name}: {len(seconds)} answers, median {seconds[len(seconds) // 2]:.3f} s, most {seconds[-1]:.3f} s")
    if options.golden:
        lines = ",\n".join(json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows)
        options.golden.write_text(f"[\n{lines}\n]\n")
    return 1 if wrong else 0


def compare(rate: float, sigma: float, steps: int, delta: float, limit: int) -> dict[str, Any]:
    """One row."""
    bounds, ours = _timed(lambda: epsilon(sigma, rate, steps, delta), limit)
    google, google_time = _timed(lambda: dp_accounting(rate, sigma, steps, delta), limit)
    prv, prv_time = _timed(lambda: prv_accountant(rate, sigma, steps, delta, 0.005 * bounds.upper), limit)
    return {
        "rate": rate, "sigma": sigma, "steps": steps, "delta": delta, "lower": bounds.lower, "upper": bounds.upper,
        "dp_accounting": google, "prv_accountant": prv,
        "seconds": {"ours": ours, "dp_accounting": google_time, "prv_accountant": prv_time},
    }  # fmt: skip


def dp_accounting(rate: float, sigma: float, steps: int, delta: float) -> tuple[float, float]:
    """Its optimistic and its pessimistic epsilon."""
    from dp_accounting.pld import privacy_loss_distribution

    found = []
    for pessimistic in (False, True):
        one = privacy_loss_distribution.from_gaussian_mechanism(
            sigma,
            sampling_prob=rate,
            value_discretization_interval=1e-4,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        found.append(float(one.self_compose(steps).get_epsilon_for_delta(delta)))
    return found[0], found[1]


def prv_accountant(rate: float, sigma: float, steps: int, delta: float, error: float) -> tuple[float, float]:
    """Its lower and its upper bound."""
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    accountant = PRVAccountant(
        prvs=[PoissonSubsampledGaussianMechanism(sampling_probability=rate, noise_multiplier=sigma)],
        max_self_compositions=[steps],
        eps_error=error,
        delta_error=delta / 1000,
    )
    lower, _, upper = accountant.compute_epsilon(delta, [steps])
    return float(lower), float(upper)


def faults(row: dict[str, Any], believed: bool = True) -> list[str]:
    """What contradicts a peer, and where ours is looser; with ``believed=False`` from claims that others refute."""
    google, prv = row["dp_accounting"] or (0.0, math.inf), row["prv_accountant"] or (0.0, math.inf)
    trust_google, trust_prv = row["delta"] >= 1e-8, prv[0] <= google[1]
    found = []
    if trust_prv == believed:
        if row["upper"] < prv[0]:
            found.append(f"upper {row['upper']:.5f} is below prv-accountant's lower {prv[0]:.5f}")
        if row["lower"] > prv[1]:
            found.append(f"lower {row['lower']:.5f} is above prv-accountant's upper {prv[1]:.5f}")
    if trust_google == believed and row["lower"] > google[1]:
        found.append(f"lower {row['lower']:.5f} is above dp-accounting's upper {google[1]:.5f}")
    if believed and row["upper"] < google[0]:
        found.append(f"upper {row['upper']:.5f} is below dp-accounting's lower {google[0]:.5f}")
    if believed and row["upper"] > 1.01 * google[1]:
        found.append(f"upper {row['upper']:.5f} is more than 1 % above dp-accounting's {google[1]:.5f}")
    return found


def _timed(function: Callable[[], Any], limit: int) -> tuple[Any, float | None]:
    """What it returns and how long it took; nothing if it failed or took longer than the limit."""

    def stop(*_: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    start = time.perf_counter()
    try:
        return function(), time.perf_counter() - start
    except (_TooLong, ValueError, RuntimeError, ArithmeticError, MemoryError):
        return None, None
    finally:
        signal.alarm(0)


def _line(row: dict[str, Any]) -> str:
    shown = [
        f"{name} {'-' if row[name] is None else '{:.5f} {:.5f}'.format(*row[name])}"
        for name in ("dp_accounting", "prv_accountant")
    ]
    return (
        f"rate={row['rate']:.5g} sigma={row['sigma']:g} steps={row['steps']} delta={row['delta']:g}: "
        f"{row['lower']:.5f} {row['upper']:.5f}; {'; '.join(shown)}"
    )


if __name__ == "__main__":
    sys.exit(main())
