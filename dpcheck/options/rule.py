"""``dpcheck rule CODE``."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from dpcheck.errors import DpcheckError
from dpcheck.options.base import CLEAN, command
from dpcheck.report import terminal

if TYPE_CHECKING:
    from dpcheck.registry import Rule


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = command("rule", "What a rule finds, why, and what to use instead.")
    p.add_argument("code", nargs="?", help="such as DP101 or batch-norm")
    p.add_argument("--all", action="store_true", help="list all rules")
    p.add_argument("--markdown", metavar="DIR", help="with --all: write a page for each into this folder")
    return p


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    from dpcheck.rules import RULES, by_code

    options = parser().parse_args(arguments)
    if options.markdown is not None and not options.all:
        raise DpcheckError("--markdown has no effect without --all", next="dpcheck rule --all --markdown DIR")
    console = terminal()
    if options.markdown is not None:
        from dpcheck.rule_pages import write_pages

        console.print(f"{len(write_pages(RULES, options.markdown))} pages written to {options.markdown}", markup=False)
        return CLEAN
    if options.all:
        for rule in sorted(RULES, key=lambda r: r.code):
            console.print(f"[bold]{rule.code}[/] {rule.name}: {rule.summary()}", soft_wrap=True)
        return CLEAN
    if options.code is None:
        raise DpcheckError("no rule was named", next="dpcheck rule DP101, or dpcheck rule --all")
    _explain(console, by_code(options.code))
    return CLEAN


def _explain(console: Console, rule: Rule) -> None:
    console.print(f"[bold]{rule.code} {rule.name}[/]\n")
    for title, text in rule.sections().items():
        console.print(f"[bold]{title}[/]")
        console.print(textwrap.indent(text, "  "), markup=False, soft_wrap=True)
        console.print()
