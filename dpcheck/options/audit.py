"""``dpcheck audit FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpcheck.options.base import add_format, for_a_file


def parser() -> argparse.ArgumentParser:
    """The options."""
    what = "Attacks the engine with the file's model and records, and compares what is released with what is claimed."
    p = for_a_file("audit", what)
    p.add_argument("--epsilon", type=float, metavar="E", help="of the claim (the file's, or 8)")
    p.add_argument("--delta", type=float, metavar="D", help="of the claim (the file's, or 1e-5)")
    p.add_argument("--epochs", type=float, metavar="N", help="expected passes over the data (the file's, or 20)")
    p.add_argument("--batch-size", type=int, metavar="N", help="expected (the file's, or 256)")
    p.add_argument("--max-grad-norm", type=float, metavar="C", help="clipping norm (the file's, or 1)")
    p.add_argument("--unsafe-fixes", action="store_true", help="audit what --fix --unsafe-fixes makes of the model")
    p.add_argument("--long", action="store_true", help="more of everything, and the whole run: for a release")
    add_format(p)
    p.set_defaults(lr=None, seed=None, no_baseline=True, save=None, report=None)
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.audit_command import run

    return run(options)
