"""``dpcheck verify FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpcheck.options.base import add_format, for_a_file


def parser() -> argparse.ArgumentParser:
    """The options."""
    what = "Compares the engine's per-sample gradients, norms and clipped sum with vmap(grad) and each sample alone."
    p = for_a_file("verify", what)
    add_format(p)
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.verify_command import run

    return run(options)
