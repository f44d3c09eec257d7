"""The command. Nothing here imports torch before a model is loaded, so that help and rules come at once."""

from __future__ import annotations

import argparse
import sys
import textwrap
import traceback
from collections.abc import Sequence

from rich.console import Console

from dpcheck import __version__
from dpcheck.errors import DpcheckError
from dpcheck.registry import SECTIONS, Rule

CLEAN, FINDINGS, ERROR = 0, 1, 2

_DESCRIPTION = """\
Checks whether a PyTorch model can be trained with DP-SGD, fixes what it can, verifies per-sample gradients and trains.
The file is run: check only files that you trust.

  dpcheck model.py                              findings; exit 1 if there are any
  dpcheck model.py:make_model                   a certain model of the file
  dpcheck model.py --fix --unsafe-fixes --train fix, verify, train privately
  dpcheck rule DP101                            what a rule finds and why; `dpcheck rule --all` lists them"""


def parser() -> argparse.ArgumentParser:
    """The options of ``dpcheck model.py``."""
    p = argparse.ArgumentParser("dpcheck", description=_DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("target", metavar="FILE[:SYMBOL]", help="defines a model, loss_fn(model, batch) and sample_batch()")
    p.add_argument("--version", action="version", version=f"dpcheck {__version__}")
    p.add_argument("--fix", action="store_true", help="fix a copy of the model; the file is not changed")
    p.add_argument("--unsafe-fixes", action="store_true", help="also fixes that change the function (BatchNorm)")
    p.add_argument("--verify", action="store_true", help="compare per-sample gradients with references")
    p.add_argument("--show", choices=["parameters"], help="also print a table of parameters and their gradients")
    p.add_argument("--format", choices=["full", "json"], default="full", help="of the findings")
    p.add_argument("--exit-zero", action="store_true", help="exit 0 also with findings")
    p.add_argument("--quiet", "-q", action="store_true", help="print findings and errors only")
    p.add_argument("--traceback", action="store_true", help="print the traceback of errors")
    t = p.add_argument_group("training", "defaults come from the file's `training` dictionary")
    t.add_argument("--train", action="store_true", help="train privately on the file's train_dataset()")
    t.add_argument("--epsilon", type=float, help="target epsilon (8)")
    t.add_argument("--delta", type=float, help="delta (1e-5)")
    t.add_argument("--epochs", type=float, help="expected passes over the data (20)")
    t.add_argument("--batch-size", type=int, help="expected batch size of Poisson sampling (256)")
    t.add_argument("--max-grad-norm", type=float, help="clipping norm (1)")
    t.add_argument("--seed", type=int, help="repeatable, and NOT private")
    t.add_argument("--no-baseline", action="store_true", help="do not also train without privacy to show its cost")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 clean or all fixed, 1 findings, 2 usage or internal error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, highlight=False)
    try:
        if arguments[:1] == ["rule"]:
            return _rule(arguments[1:])
        options = parser().parse_args(arguments)
        from dpcheck.commands import run

        return run(options)
    except DpcheckError as error:
        if "--traceback" in arguments:
            errors.print(traceback.format_exc(), markup=False)
        errors.print("error:", style="bold red", end=" ")
        errors.print("\n".join(error.lines()), markup=False, soft_wrap=True)
        return ERROR
    except BrokenPipeError:
        return ERROR
    except KeyboardInterrupt:
        errors.print("interrupted")
        return ERROR


def _rule(arguments: list[str]) -> int:
    from dpcheck.rules import RULES, by_code

    p = argparse.ArgumentParser("dpcheck rule", description="What a rule finds, why, and what to use instead.")
    p.add_argument("code", nargs="?", help="such as DP101 or batch-norm")
    p.add_argument("--all", action="store_true", help="list all rules")
    options = p.parse_args(arguments)
    console = Console(highlight=False)
    if options.all:
        for rule in sorted(RULES, key=lambda r: r.code):
            summary = (type(rule).__doc__ or "").strip().splitlines()[0]
            console.print(f"[bold]{rule.code}[/] {rule.name}: {summary}", soft_wrap=True)
        return CLEAN
    if options.code is None:
        raise DpcheckError("no rule was named", next="dpcheck rule DP101, or dpcheck rule --all")
    _explain(console, by_code(options.code))
    return CLEAN


def _explain(console: Console, rule: Rule) -> None:
    console.print(f"[bold]{rule.code} {rule.name}[/]\n")
    for title in SECTIONS:
        console.print(f"[bold]{title}[/]")
        console.print(textwrap.indent(type(rule).sections()[title], "  "), markup=False, soft_wrap=True)
        console.print()
