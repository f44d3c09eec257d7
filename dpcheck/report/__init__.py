"""Output formats, one file each."""

from __future__ import annotations

import os
from collections.abc import Sized

from rich.console import Console

# Of tables that go to a file or a pipe.
_WIDTH = 120


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console: words wrap on a terminal and not in a pipe, and nothing in a message is taken for markup of ours."""
    console = Console(stderr=stderr, quiet=quiet, highlight=False, emoji=False)
    if console.is_terminal:
        return console
    width = None if "COLUMNS" in os.environ else _WIDTH
    return Console(stderr=stderr, quiet=quiet, highlight=False, emoji=False, soft_wrap=True, width=width)


def counted(findings: Sized) -> str:
    """Such as ``2 findings``."""
    return f"{len(findings) or 'no'} finding{'s' * (len(findings) != 1)}"
