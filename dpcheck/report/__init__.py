"""Output formats, one file each."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sized
from typing import Literal

from rich.console import Console

from dpcheck.diagnostic import Report

# Of a target among several that has no report.
NOT_CHECKED = "could not be checked: an error, see standard error"

# Of tables that go to a file or a pipe.
_WIDTH = 120


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would exit with 1, which says that there are findings."""
        raise BrokenPipeError


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console: words wrap on a terminal and not in a pipe, and nothing in a message is taken for markup of ours."""
    if (sys.stderr if stderr else sys.stdout).isatty():
        return _Console(stderr=stderr, quiet=quiet, highlight=False, emoji=False)
    width = None if "COLUMNS" in os.environ else _WIDTH
    # With FORCE_COLOR rich would take a pipe for a terminal, and draw progress into logs.
    colours: Literal["256"] | None = "256" if os.environ.get("FORCE_COLOR") else None
    return _Console(
        stderr=stderr, quiet=quiet, highlight=False, emoji=False, soft_wrap=True, width=width, force_terminal=False,
        color_system=colours,
    )  # fmt: skip


def counted(findings: Sized) -> str:
    """Such as ``2 findings``."""
    return f"{len(findings) or 'no'} finding{'s' * (len(findings) != 1)}"


def tally(report: Report) -> str:
    """Such as ``2 findings, 1 ignored``."""
    return counted(report.shown) + (f", {len(report.ignored)} ignored" if report.ignored else "")


def ignored_in_words(report: Report) -> list[str]:
    """Such as ``2 DP101 batch-norm (baseline known.json)``, a line for each rule and what ignores it."""
    groups = Counter((d.code, d.name, str(d.ignored)) for d in report.ignored)
    return [f"{count} {code} {name} ({by})" for (code, name, by), count in groups.items()]


def guess_of(report: Report) -> str | None:
    """What was guessed to come to the verdict, if anything was; every format says so."""
    return next((note for note in report.notes if note.startswith("GUESS")), None)
