"""``dpcheck completion SHELL``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dpcheck.completion import SHELLS, options_of
from dpcheck.options.base import CLEAN, command


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = command("completion", 'A script that completes the command in a shell: eval "$(dpcheck completion bash)".')
    p.add_argument("shell", choices=list(SHELLS))
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(arguments)
    from dpcheck.cli import COMMANDS

    sys.stdout.write(SHELLS[options.shell](options_of(COMMANDS)))
    return CLEAN
