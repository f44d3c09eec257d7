"""``dpcheck budget``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpcheck.options.base import add_format, command


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = command("budget", "What a run would spend, or what a ledger's steps have spent.")
    p.add_argument("--dataset-size", type=int, metavar="N", help="records, or users")
    p.add_argument("--batch-size", type=int, metavar="B", help="expected; a record is drawn at rate B / N (256)")
    p.add_argument("--epochs", type=float, metavar="E", help="expected passes over the data")
    p.add_argument("--steps", type=int, metavar="T", help="instead of --epochs")
    p.add_argument("--target-epsilon", type=float, metavar="E", help="the noise is calibrated for it")
    p.add_argument("--noise-multiplier", type=float, metavar="S", help="instead of --target-epsilon")
    p.add_argument("--delta", type=float, metavar="D", help="1e-5, or 1 / (10 N) if that is less")
    p.add_argument("--records", type=int, default=1, metavar="K", help="of a user, at most (1)")
    p.add_argument("--ledger", metavar="PATH", help="what its steps have spent, in the place of a plan")
    p.add_argument("--svg", metavar="PATH", help="write both curves")
    add_format(p)
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.budget_command import run

    return run(options)
