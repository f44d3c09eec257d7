"""The command. Nothing here imports torch before a model is loaded, so that help and rules come at once."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, get_args

from rich.console import Console

from dpcheck import __version__
from dpcheck.diagnostic import BatchNormTo
from dpcheck.errors import DpcheckError

if TYPE_CHECKING:
    from dpcheck.registry import Rule

CLEAN, FINDINGS, ERROR = 0, 1, 2
# Of the findings alone; each is a module of dpcheck.report.
FORMATS = ("concise", "github", "gitlab", "junit", "markdown", "sarif")

_DESCRIPTION = """\
Checks whether a PyTorch model can be trained with DP-SGD, fixes what it can, verifies per-sample gradients and trains.
The file is run: check only files that you trust.

  dpcheck model.py                              findings; exit 1 if there are any
  dpcheck model.py:make_model                   a certain model of the file
  dpcheck model.py --fix --unsafe-fixes --train fix, verify, train privately
  dpcheck plan model.py                         how norms and clipped sums are computed, and what they cost
  dpcheck verify model.py                       per-sample gradients against references, parameter by parameter
  dpcheck budget --help                         plans noise and steps for an epsilon, or reads a ledger
  dpcheck rule DP101                            what a rule finds and why; `dpcheck rule --all` lists them"""
_TARGET = """\
defines a model, loss_fn(model, batch) and sample_batch();
unit = dpcheck.Unit(...) if a record is not one index of axis 0"""
_BATCH_NORM = """\
what batch norm becomes (group, or what [tool.dpcheck] in pyproject.toml says);
frozen: its running statistics for good, which must come from public data"""
_EPILOG = "exit codes: 0 clean or all fixed, 1 findings, 2 usage or internal error"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DpcheckError(message, next=f"{self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The options of ``dpcheck model.py``."""
    form = argparse.RawTextHelpFormatter
    p = _Parser("dpcheck", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=form, allow_abbrev=False)
    p.add_argument("target", metavar="FILE[:SYMBOL]", help=_TARGET)
    p.add_argument("--version", action="version", version=f"dpcheck {__version__}")
    p.add_argument(
        "--fix", action="store_true", help="write fixes to your files; with --train or --verify, fix in memory"
    )
    p.add_argument("--unsafe-fixes", action="store_true", help="also fixes that change the function (BatchNorm)")
    p.add_argument("--diff", action="store_true", help="show what --fix would write, and stop")
    p.add_argument("--batch-norm-to", choices=get_args(BatchNormTo), help=_BATCH_NORM)
    p.add_argument("--verify", action="store_true", help="compare per-sample gradients with references")
    p.add_argument("--show", choices=["parameters"], help="also print a table of parameters and their gradients")
    _add_format(p, *FORMATS)
    p.add_argument("--output-file", metavar="PATH", help="write that to a file; not for --format full")
    p.add_argument("--exit-zero", action="store_true", help="exit 0 also with findings")
    p.add_argument("--quiet", "-q", action="store_true", help="print findings, results and errors only")
    p.add_argument("--traceback", action="store_true", help="print the traceback of errors")
    t = p.add_argument_group("training", "defaults come from the file's `training` dictionary")
    t.add_argument("--train", action="store_true", help="train privately on the file's train_dataset()")
    t.add_argument("--epsilon", type=float, metavar="E", help="target epsilon (8)")
    t.add_argument("--delta", type=float, metavar="D", help="delta (1e-5)")
    t.add_argument("--epochs", type=float, metavar="N", help="expected passes over the data (20)")
    t.add_argument("--batch-size", type=int, metavar="N", help="expected batch size of Poisson sampling (256)")
    t.add_argument("--max-grad-norm", type=float, metavar="C", help="clipping norm (1)")
    t.add_argument("--lr", type=float, metavar="LR", help="learning rate of every group of make_optimizer()")
    t.add_argument("--seed", type=int, metavar="N", help="repeatable, and NOT private")
    t.add_argument("--no-baseline", action="store_true", help="do not also train without privacy to show its cost")
    t.add_argument("--save", metavar="PATH", help="write the trained weights (a state_dict)")
    return p


_ONLY_TRAINING = ("epsilon", "delta", "epochs", "batch_size", "max_grad_norm", "lr", "seed", "no_baseline", "save")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, once options without effect are refused.

    Raises:
        DpcheckError: for what cannot be parsed, and for options that exclude or need each other.
    """
    options = parser().parse_args(arguments)
    for name in _ONLY_TRAINING:
        if not options.train and getattr(options, name) not in (None, False):
            raise DpcheckError(f"--{name.replace('_', '-')} has no effect without --train", next="add --train")
    if options.unsafe_fixes and not (options.fix or options.diff):
        raise DpcheckError("--unsafe-fixes has no effect without --fix or --diff", next="add --fix")
    if options.batch_norm_to and not (options.fix or options.diff):
        raise DpcheckError("--batch-norm-to has no effect without --fix or --diff", next="add --fix --unsafe-fixes")
    if options.diff and (options.fix or options.train or options.verify or options.format == "json"):
        raise DpcheckError(
            "--diff only shows what would change; it excludes --fix, --train, --verify and --format json",
            next="leave --diff out, or leave the others out",
        )
    if options.format in FORMATS and (options.fix or options.diff or options.train or options.verify or options.show):
        raise DpcheckError(
            f"--format {options.format} is of the findings alone; no --fix, --diff, --verify, --train or --show",
            next="leave the others out, or use --format json",
        )
    if options.output_file and options.format == "full":
        raise DpcheckError("--output-file needs a format other than full", next="add --format json, say")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 clean or all fixed, 1 findings, 2 usage or internal error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _COMMANDS.get(arguments[0]) if arguments else None
        if command is not None:
            return command(arguments[1:])
        options = parse(arguments)
        from dpcheck.commands import run

        return run(options)
    except DpcheckError as error:
        _complain(error, arguments)
    except BrokenPipeError:
        # The reader has gone; without this the interpreter complains again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        internal = DpcheckError(
            f"internal error: {type(error).__name__}: {error}",
            where=f"{frame.filename}:{frame.lineno}",
            next="run it again with --traceback and report what it prints",
        )
        _complain(internal, arguments)
    return ERROR


def _complain(error: DpcheckError, arguments: list[str]) -> None:
    console = Console(stderr=True, highlight=False, emoji=False)
    if "--traceback" in arguments:
        console.print(traceback.format_exc(), markup=False, soft_wrap=True)
    console.print("[bold red]error:[/]", end=" ")
    console.print("\n".join(error.lines()), markup=False, soft_wrap=True)


def _rule(arguments: list[str]) -> int:
    from dpcheck.rules import RULES, by_code

    p = _command("rule", "What a rule finds, why, and what to use instead.")
    p.add_argument("code", nargs="?", help="such as DP101 or batch-norm")
    p.add_argument("--all", action="store_true", help="list all rules")
    options = p.parse_args(arguments)
    console = Console(highlight=False, emoji=False)
    if options.all:
        for rule in sorted(RULES, key=lambda r: r.code):
            console.print(f"[bold]{rule.code}[/] {rule.name}: {rule.summary()}", soft_wrap=True)
        return CLEAN
    if options.code is None:
        raise DpcheckError("no rule was named", next="dpcheck rule DP101, or dpcheck rule --all")
    _explain(console, by_code(options.code))
    return CLEAN


def _command(name: str, what: str) -> _Parser:
    p = _Parser(f"dpcheck {name}", description=what)
    p.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    return p


def _for_a_file(name: str, what: str) -> _Parser:
    p = _command(name, what)
    p.add_argument("target", metavar="FILE[:SYMBOL]", help="as for dpcheck FILE")
    return p


def _add_format(p: argparse.ArgumentParser, *others: str) -> None:
    p.add_argument("--format", choices=["full", "json", *others], default="full", help="of what is printed (full)")


def _plan(arguments: list[str]) -> int:
    what = "How the engine computes norms and clipped sums of the sample batch, site by site, and what it costs."
    options = _for_a_file("plan", what).parse_args(arguments)
    from dpcheck.plan_command import run

    return run(options.target)


def _verify(arguments: list[str]) -> int:
    what = "Compares the engine's per-sample gradients, norms and clipped sum with vmap(grad) and each sample alone."
    p = _for_a_file("verify", what)
    _add_format(p)
    options = p.parse_args(arguments)
    from dpcheck.verify_command import run

    return run(options.target, options.format)


def _budget(arguments: list[str]) -> int:
    p = _command("budget", "What a run would spend, or what a ledger's steps have spent.")
    p.add_argument("--dataset-size", type=int, metavar="N", help="records, or users")
    p.add_argument("--batch-size", type=int, metavar="B", help="expected; a record is drawn at rate B / N (256)")
    p.add_argument("--epochs", type=float, metavar="E", help="expected passes over the data")
    p.add_argument("--steps", type=int, metavar="T", help="instead of --epochs")
    p.add_argument("--target-epsilon", type=float, metavar="E", help="the noise is calibrated for it")
    p.add_argument("--noise-multiplier", type=float, metavar="S", help="instead of --target-epsilon")
    p.add_argument("--delta", type=float, metavar="D", help="1e-5, or 1 / (10 N) if that is less")
    p.add_argument("--records", type=int, default=1, metavar="K", help="of a user, at most (1)")
    p.add_argument("--ledger", metavar="PATH", help="what its steps have spent, in the place of a plan")
    p.add_argument("--svg", metavar="PATH", help="write both curves")
    _add_format(p)
    options = p.parse_args(arguments)
    from dpcheck.budget_command import run

    return run(options)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {"rule": _rule, "plan": _plan, "verify": _verify, "budget": _budget}


def _explain(console: Console, rule: Rule) -> None:
    console.print(f"[bold]{rule.code} {rule.name}[/]\n")
    for title, text in rule.sections().items():
        console.print(f"[bold]{title}[/]")
        console.print(textwrap.indent(text, "  "), markup=False, soft_wrap=True)
        console.print()
