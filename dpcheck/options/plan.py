"""``dpcheck plan FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpcheck.options.base import add_format, for_a_file


def parser() -> argparse.ArgumentParser:
    """The options."""
    what = "How the engine computes norms and clipped sums of the sample batch, site by site, and what it costs."
    p = for_a_file("plan", what)
    add_format(p)
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.plan_command import run

    return run(options)
