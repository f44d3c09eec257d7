"""What the subcommands' options have in common."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence
from typing import NoReturn

from dpcheck.errors import DpcheckError
from dpcheck.report import terminal
from dpcheck.supervise import TIME_LIMIT

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
    p.add_argument("target", metavar="FILE[:SYMBOL]", help="as for dpcheck FILE: also package.module:f(8), hf:, timm:")
    add_input(p, "inputs in the place of sample_batch(), such as x:Bx3x32x32 or ids:BxT:int64<30522; once for each")
    add_timeout(p)
    return p


def add_input(p: argparse.ArgumentParser, help: str) -> None:
    """``--input``: once for each tensor, as :func:`dpcheck.samples.of_options` reads it."""
    p.add_argument("--input", action="append", default=[], metavar="NAME:SHAPE", help=help)


def add_timeout(p: argparse.ArgumentParser) -> None:
    """``--timeout``: of the process in which the target runs."""
    p.add_argument("--timeout", type=float, metavar="S", help="seconds until it is stopped (600; none to train)")


def time_limit(arguments: Sequence[str]) -> float | None:
    """``--timeout`` among the arguments of any command, or what it is without.

    Raises:
        DpcheckError: for one that is no number above 0.
    """
    p = Parser("dpcheck", add_help=False, allow_abbrev=False)
    p.add_argument("--timeout", type=float)
    p.add_argument("--train", action="store_true")
    options, others = p.parse_known_args(arguments)
    if options.timeout is not None and not options.timeout > 0:
        raise DpcheckError(f"--timeout {options.timeout:g} is not above 0", next="pass seconds, --timeout 600")
    unlimited = options.train or others[:1] in (["train"], ["audit"])
    return options.timeout if options.timeout is not None or unlimited else TIME_LIMIT


def add_format(p: argparse.ArgumentParser, *others: str) -> None:
    """``--format``: full, json and ``others``."""
    p.add_argument("--format", choices=["full", "json", *others], default="full", help="of what is printed (full)")


def add_output_file(p: argparse.ArgumentParser) -> None:
    """``--output-file``, for what ``--format`` makes."""
    p.add_argument("--output-file", metavar="PATH", help="write that to a file; not for --format full")


def complain(error: DpcheckError, arguments: Sequence[str]) -> None:
    """Print an error, with the traceback of the one that is handled if ``--traceback`` is among the arguments."""
    console = terminal(stderr=True)
    if "--traceback" in arguments:
        console.print(traceback.format_exc(), markup=False, soft_wrap=True)
    console.print("[bold red]error:[/]", end=" ")
    console.print("\n".join(error.lines()), markup=False, soft_wrap=True)
