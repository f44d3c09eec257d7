"""Audits of both examples at several epsilons: what attacks show, beside what is certified.

    python benchmarks/audits.py [--epsilons 0.5 1 2 4 8 16] [--canaries 5000] [--out docs]

Each example is audited twice at each epsilon, calibrated for its own data, epochs, batch size and delta: as
``dpcheck audit`` does it, and once more with more canaries over the whole run. The table goes into OUT/audits.md
and the curves to OUT/audits.svg. Seconds are processor time of one process.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from audits_page import drawn, put
from dpcheck.engine.auditing import second_account
from dpcheck.engine.auditing.audit import Audit, audit
from dpcheck.engine.auditing.effort import SHORT, Effort

import dpcheck

EXAMPLES = {"digits": "digits_cnn", "text": "text_embedding"}


@dataclass(frozen=True)
class Row:
    """One example at one epsilon.

    Attributes:
        target: epsilon that the noise was calibrated for.
        noise: its noise multiplier.
        certified, second: epsilon of the run that was attacked, by the accountant and by the second account.
        short, large: the audit as the command does it, and the one with more canaries.
        seconds: of both.
    """

    target: float
    noise: float
    certified: float
    second: float
    short: Audit
    large: Audit
    seconds: tuple[float, float]


def example(name: str) -> ModuleType:
    """The module of an example."""
    path = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(module: ModuleType, epsilon: float, large: Effort) -> Row:
    """Both audits, of the model as ``dpcheck.fix`` makes it where it has findings."""
    torch.manual_seed(0)
    model, t = (
        dpcheck.fix(module.make_model(), module.loss_fn, module.sample_batch(), unsafe=True).model,
        module.training,
    )
    data, found, seconds = module.train_dataset(), [], []
    for effort in (SHORT, large):
        start = time.process_time()
        found.append(
            audit(
                model,
                module.loss_fn,
                data,
                expected_batch_size=t["batch_size"],
                max_grad_norm=t["max_grad_norm"],
                delta=t["delta"],
                target_epsilon=epsilon,
                epochs=t["epochs"],
                _effort=effort,
            )
        )
        seconds.append(time.process_time() - start)
    claim, run = found[1].claim, found[1].empirical
    # The rate of the run: a whole number of its canaries is expected.
    rate = round(claim.expected_batch_size / claim.dataset_size * run.canaries) / run.canaries
    second = second_account.epsilon(claim.noise_multiplier, rate, run.steps, claim.delta)
    return Row(epsilon, claim.noise_multiplier, run.claimed.upper, second, *found, (seconds[0], seconds[1]))


_HEAD = """\
| example | target | noise multiplier | certified | second account | canaries | any mechanism | Gaussian-like \
| canaries | any mechanism | Gaussian-like | right guesses | audits | processor seconds |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def table(rows: dict[str, Sequence[Row]]) -> str:
    """In Markdown."""
    lines = [_HEAD]
    for name, found in rows.items():
        for r in found:
            a, b = r.short.empirical, r.large.empirical
            failed = [check.name for one in (r.short, r.large) for check in one.checks if not check.ok]
            cells = [
                name, f"{r.target:g}", f"{r.noise:.4g}", f"{r.certified:.3f}", f"{r.second:.3f}",
                f"{a.canaries}", f"{a.lower:.2f}", f"{a.gaussian:.2f}",
                f"{b.canaries}", f"{b.lower:.2f}", f"{b.gaussian:.2f}", f"{b.right:.1%}",
                "failed: " + ", ".join(failed) if failed else "no fault", f"{r.seconds[0]:.0f}, {r.seconds[1]:.0f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16])
    parser.add_argument("--canaries", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    large = replace(SHORT, canaries=options.canaries, run_steps=10**6, run_records=10**9, draws=10**5)
    rows: dict[str, list[Row]] = {}
    for name, file in EXAMPLES.items():
        module = example(file)
        for epsilon in options.epsilons:
            rows.setdefault(name, []).append(row(module, epsilon, large))
            print(table({name: rows[name][-1:]}).splitlines()[-1], flush=True)
    put(options.out / "audits.md", "curve", table(rows))
    points = {
        name: [(r.certified, r.large.empirical.lower, r.large.empirical.gaussian, r.second) for r in found]
        for name, found in rows.items()
    }
    (options.out / "audits.svg").write_text(drawn(points, options.canaries))


if __name__ == "__main__":
    main()
