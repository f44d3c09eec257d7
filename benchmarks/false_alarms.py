"""Audits of an engine without a fault, again and again: are the p-values of every check uniform, or larger?

    python benchmarks/false_alarms.py [--audits 200] [--out docs]

Each audit has a new model and records, of a seed that counts up; noise and samples are the engine's own. The table goes
into OUT/audits.md. A check is "too eager" where as many p-values are below 0.01 or 0.1 as chance gives to one check in
ten thousand; it is "conservative" where so few are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audits_page import put
from dpcheck.engine.auditing.audit import audit
from dpcheck.engine.auditing.effort import Effort
from dpcheck.engine.auditing.exact import LEVEL
from scipy import special
from torch import Tensor, nn
from torch.utils.data import TensorDataset

# Small, for many audits.
EFFORT = Effort(
    records=2, canaries=60, coordinates=5_000, draws=60_000, draw_steps=100, run_steps=30, run_records=1_000
)
_STRANGE = 1e-4


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def one(seed: int) -> dict[str, tuple[bool, float | None]]:
    """Whether each check passed, and its p-value."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    data = TensorDataset(torch.randn(120, 6), torch.randint(0, 3, (120,)))
    found = audit(
        model, loss_fn, data, expected_batch_size=24, max_grad_norm=0.7, delta=1e-3, noise_multiplier=1.1, steps=30,
        check=False, _effort=EFFORT,
    )  # fmt: skip
    return {f"{check.part}: {check.name}": (check.ok, check.p_value) for check in found.checks}


def verdict(p: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """In a word, from the numbers of p-values at most 0.01 and 0.1."""
    counts = [(int((p <= level).sum()), level) for level in (0.01, 0.1)]
    if any(count and special.bdtrc(count - 1, len(p), level) < _STRANGE for count, level in counts):
        return "too eager"
    return "conservative" if special.bdtr(counts[1][0], len(p), 0.1) < _STRANGE else "uniform"


def table(runs: list[dict[str, tuple[bool, float | None]]]) -> str:
    """In Markdown."""
    failed = sum(any(not ok for ok, _ in run.values()) for run in runs)
    lines = [f"{len(runs)} audits, {failed} with a failed check; a check fails at p below {LEVEL:g}.", ""]
    lines += [
        "| check | failed | smallest p | p up to 0.01 | up to 0.1 | up to 0.5 | p-values are |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in runs[0]:
        failed = sum(not run[name][0] for run in runs)
        p = np.array([value for run in runs if (value := run[name][1]) is not None])
        if len(p):
            shares = [f"{(p <= level).mean():.1%}" for level in (0.01, 0.1, 0.5)]
            lines.append(f"| {name} | {failed} | {p.min():.2g} | {' | '.join(shares)} | {verdict(p)} |")
        else:
            lines.append(f"| {name} | {failed} |  |  |  |  | not random |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    start, runs = time.process_time(), []
    for seed in range(options.audits):
        runs.append(one(seed))
        if len(runs) % 20 == 0 or len(runs) == options.audits:
            print(f"{len(runs)} audits, {time.process_time() - start:.0f} s of processor time", flush=True)
            put(options.out / "audits.md", "false alarms", table(runs))


if __name__ == "__main__":
    main()
