"""``dpcheck train FILE``: check, fix in memory on request, verify and train."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import get_args

from dpcheck.diagnostic import BatchNormTo
from dpcheck.errors import DpcheckError
from dpcheck.options import check
from dpcheck.options.base import for_a_file

# Options of the same name that ``dpcheck FILE --train`` has; the rest is of this command alone.
_SHARED = (
    "epsilon", "delta", "epochs", "batch_size", "max_grad_norm", "lr", "seed", "save", "report", "format",
    "output_file", "batch_norm_to", "timeout",
)  # fmt: skip
_SHARED_FLAGS = ("no_baseline", "quiet", "traceback")
_OWN = ("clipping", "secure", "ledger", "checkpoint", "resume", "certificate")


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = for_a_file("train", "Checks and verifies the model, and trains it privately on the file's train_dataset().")
    p.add_argument("--unsafe-fixes", action="store_true", help="train what --fix --unsafe-fixes makes of the model")
    p.add_argument("--fix", action="store_true", help="train what --fix makes of the model; the file stays as it is")
    p.add_argument("--batch-norm-to", choices=get_args(BatchNormTo), help="what a fix makes of batch norm (group)")
    p.add_argument("--epsilon", type=float, metavar="E", help="target epsilon (the file's, or 8)")
    p.add_argument("--delta", type=float, metavar="D", help="of the guarantee (the file's, or 1e-5)")
    p.add_argument("--epochs", type=float, metavar="N", help="expected passes over the data (the file's, or 20)")
    p.add_argument("--batch-size", type=int, metavar="N", help="expected, of Poisson sampling (the file's, or 256)")
    p.add_argument("--max-grad-norm", type=float, metavar="C", help="clipping norm (the file's, or 1)")
    kinds = "flat, per-layer, automatic, normalised or adaptive (the file's, or flat)"
    p.add_argument("--clipping", metavar="KIND", help=kinds)
    p.add_argument("--lr", type=float, metavar="LR", help="learning rate of every group of make_optimizer()")
    p.add_argument("--seed", type=int, metavar="N", help="repeatable, and NOT private")
    p.add_argument("--secure", action="store_true", help="the system's randomness, noise on a grid; slow")
    p.add_argument("--ledger", metavar="PATH", help="records every step before its data is read; its steps count")
    kept = "keep the run in it, every minute and on Ctrl-C, for --resume; steps go to PATH.ledger.jsonl or --ledger"
    p.add_argument("--checkpoint", metavar="PATH", help=kept)
    p.add_argument("--resume", metavar="PATH", help="go on with the run of this checkpoint, with the settings it had")
    p.add_argument("--certificate", metavar="PATH", help="train nothing but what this certificate is of")
    p.add_argument("--no-baseline", action="store_true", help="do not also train without privacy to show its cost")
    p.add_argument("--save", metavar="PATH", help="write the trained weights (a state_dict)")
    p.add_argument("--report", metavar="PATH", help="write the statement of the guarantee: .html, .json or .txt")
    p.add_argument("--format", choices=["full", "json", "html"], default="full", help="of what is printed (full)")
    p.add_argument("--output-file", metavar="PATH", help="write that to a file; not for --format full")
    p.add_argument("--quiet", "-q", action="store_true", help="print results and errors only")
    return p


def resuming(options: argparse.Namespace, checkpoint: str) -> str:
    """The command that goes on with a run that ``options``, of this command or of ``dpcheck FILE --train``, began."""
    words = ["dpcheck", "train", options.target]
    for action in parser()._actions:
        value = getattr(options, f"train_{action.dest}" if action.dest in _OWN else action.dest, None)
        if action.dest in ("target", "checkpoint", "resume") or value in (None, False, action.default):
            continue
        option = max(action.option_strings, key=len)
        texts = value if isinstance(value, list) else [value]
        words += [option] if value is True else [f"{option}={text}" for text in texts]
    return shlex.join([*words, "--resume", checkpoint])


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    own = parser().parse_args(arguments)
    if own.unsafe_fixes and not own.fix:
        raise DpcheckError("--unsafe-fixes has no effect without --fix", next="add --fix")
    same = [own.target, "--train"]
    for name in _SHARED:
        value = getattr(own, name)
        same += [] if value is None else [f"--{name.replace('_', '-')}={value}"]
    for name in (*_SHARED_FLAGS, "fix", "unsafe_fixes"):
        same += [f"--{name.replace('_', '-')}"] if getattr(own, name) else []
    same += [f"--input={text}" for text in own.input]
    options = check.parse(same)
    options.target = own.target
    for name in _OWN:
        setattr(options, f"train_{name}", getattr(own, name))
    from dpcheck.commands import run

    return run(options)
