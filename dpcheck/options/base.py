"""What the subcommands' options have in common."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dpcheck.errors import DpcheckError

CLEAN, FINDINGS, ERROR = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Usage errors are errors of ours."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise DpcheckError(message, next=f"{self.prog} --help")


def command(name: str, what: str) -> Parser:
    """The parser of ``dpcheck NAME``."""
    p = Parser(f"dpcheck {name}", description=what)
    p.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    return p


def for_a_file(name: str, what: str) -> Parser:
    """The parser of ``dpcheck NAME FILE``."""
    p = command(name, what)
    p.add_argument("target", metavar="FILE[:SYMBOL]", help="as for dpcheck FILE")
    return p


def add_format(p: argparse.ArgumentParser, *others: str) -> None:
    """``--format``: full, json and ``others``."""
    p.add_argument("--format", choices=["full", "json", *others], default="full", help="of what is printed (full)")
