"""The command. Nothing here imports torch before a model is loaded, so that help and rules come at once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from dpcheck.errors import DpcheckError
from dpcheck.options import COMMANDS as COMMANDS
from dpcheck.options.base import CLEAN, ERROR, FINDINGS, complain, time_limit
from dpcheck.supervise import supervised

__all__ = ["CLEAN", "ERROR", "FINDINGS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 clean or all fixed, 1 findings, 2 usage or internal error.

    Without ``argv`` it is the command of a shell: what runs a target runs in a process of its own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv is None and not _runs_no_target(arguments):
            return supervised(arguments, time_limit(arguments))
        named = bool(arguments) and arguments[0] in COMMANDS
        command = import_module(f"dpcheck.options.{arguments[0] if named else 'check'}")
        return int(command.main(arguments[named:]))
    except DpcheckError as error:
        complain(error, arguments)
    except BrokenPipeError:
        # The reader has gone; without this the interpreter complains again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        internal = DpcheckError(
            f"internal error: {type(error).__name__}: {error}",
            where=f"{frame.filename}:{frame.lineno}",
            next="run it again with --traceback and report what it prints",
        )
        complain(internal, arguments)
    return ERROR


def _runs_no_target(arguments: Sequence[str]) -> bool:
    asks = any(a in ("-h", "--help", "--version") for a in arguments)
    return asks or (bool(arguments) and arguments[0] in ("rule", "budget", "completion"))
