"""``dpcheck explain FILE [NAME]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpcheck.options.base import add_format, for_a_file


def parser() -> argparse.ArgumentParser:
    """The options."""
    what = "Why a value is mixing, unproven or separate: the way of a sample, step by step, with source lines."
    p = for_a_file("explain", what)
    p.add_argument("name", nargs="?", help="a parameter, buffer or module, or `losses` (the default)")
    add_format(p)
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.explain_command import run

    return run(options)
