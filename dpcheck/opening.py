"""The target of ``plan``, ``verify``, ``explain`` and ``audit``: loaded, with a note on what was guessed of it."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from dpcheck.report import full
from dpcheck.target import Target, load


def opened(options: argparse.Namespace, document: dict[str, Any], console: Console) -> Target:
    """Load ``options.target`` with ``options.input``; the notes are printed, and in the document.

    Raises:
        DpcheckError: as :func:`dpcheck.target.load`.
    """
    target = load(options.target, options.input)
    full.show_notes(console, target.notes)
    document |= {"target": str(target.path), "symbol": target.symbol, "notes": target.notes, "guessed": target.guessed}
    return target
