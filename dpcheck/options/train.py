"""``dpcheck train FILE``: check, fix in memory on request, verify and train."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from dpcheck.diagnostic import BatchNormTo
from dpcheck.errors import DpcheckError
from dpcheck.options import check
from dpcheck.options.base import add_format, add_output_file, for_a_file
from dpcheck.options.training import add_outcome, add_settings

# The rest, ``dpcheck FILE --train`` has under the same names.
_OWN = ("clipping", "secure", "ledger", "checkpoint", "resume", "certificate")


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = for_a_file("train", "Checks and verifies the model, and trains it privately on the file's train_dataset().")
    p.add_argument("--unsafe-fixes", action="store_true", help="train what --fix --unsafe-fixes makes of the model")
    p.add_argument("--fix", action="store_true", help="train what --fix makes of the model; the file stays as it is")
    p.add_argument("--batch-norm-to", choices=get_args(BatchNormTo), help="what a fix makes of batch norm (group)")
    add_settings(p, "the file's, or {}")
    kinds = "flat, per-layer, automatic, normalised or adaptive (the file's, or flat)"
    p.add_argument("--clipping", metavar="KIND", help=kinds)
    p.add_argument("--secure", action="store_true", help="the system's randomness, noise on a grid; slow")
    p.add_argument("--ledger", metavar="PATH", help="records every step before its data is read; its steps count")
    kept = "keep the run in it, every minute and on Ctrl-C, for --resume; steps go to PATH.ledger.jsonl or --ledger"
    p.add_argument("--checkpoint", metavar="PATH", help=kept)
    p.add_argument("--resume", metavar="PATH", help="go on with the run of this checkpoint, with the settings it had")
    p.add_argument("--certificate", metavar="PATH", help="train nothing but what this certificate is of")
    add_outcome(p)
    add_format(p, "html")
    add_output_file(p)
    p.add_argument("--quiet", "-q", action="store_true", help="print results and errors only")
    return p


def resuming(options: argparse.Namespace, checkpoint: str) -> str:
    """The command that goes on with a run that ``options``, of this command or of ``dpcheck FILE --train``, began."""
    # A run that began without this command has none of its own options.
    own = {name: getattr(options, f"train_{name}", None) for name in _OWN}
    words = _words({**vars(options), **own, "checkpoint": None, "resume": None})
    return shlex.join(["dpcheck", "train", options.target, *words, "--resume", checkpoint])


def _words(values: Mapping[str, Any]) -> list[str]:
    """The options of this command with these values, but for the target."""
    words = []
    for action in parser()._actions:
        value = values.get(action.dest)
        # 0 is given, and equals False.
        if not action.option_strings or value is None or value is False or value == action.default:
            continue
        option = max(action.option_strings, key=len)
        texts = value if isinstance(value, list) else [value]
        words += [option] if value is True else [f"{option}={text}" for text in texts]
    return words


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    own = parser().parse_args(arguments)
    if own.unsafe_fixes and not own.fix:
        raise DpcheckError("--unsafe-fixes has no effect without --fix", next="add --fix")
    same = {name: value for name, value in vars(own).items() if name not in _OWN}
    options = check.parse([own.target, "--train", *_words(same)])
    options.target = own.target
    for name in _OWN:
        setattr(options, f"train_{name}", getattr(own, name))
    from dpcheck.commands import run

    return run(options)
