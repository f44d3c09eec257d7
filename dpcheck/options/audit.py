"""``dpcheck audit FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpcheck.options.base import add_format, for_a_file
from dpcheck.options.training import OUTCOME, add_settings


def parser() -> argparse.ArgumentParser:
    """The options."""
    what = "Attacks the engine with the file's model and records, and compares what is released with what is claimed."
    p = for_a_file("audit", what)
    add_settings(p, "the file's, or {}", epsilon="of the claim", delta="of the claim")
    p.add_argument("--unsafe-fixes", action="store_true", help="audit what --fix --unsafe-fixes makes of the model")
    p.add_argument("--long", action="store_true", help="more of everything, and the whole run: for a release")
    add_format(p)
    p.set_defaults(**dict.fromkeys(OUTCOME))
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.audit_command import run

    return run(options)
