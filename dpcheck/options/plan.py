"""``dpcheck plan FILE``."""

from __future__ import annotations

from collections.abc import Sequence

from dpcheck.options.base import for_a_file


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    what = "How the engine computes norms and clipped sums of the sample batch, site by site, and what it costs."
    options = for_a_file("plan", what).parse_args(arguments)
    from dpcheck.plan_command import run

    return run(options.target)
