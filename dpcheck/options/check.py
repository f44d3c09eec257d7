"""``dpcheck FILE``: check, and on request fix, verify and train."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from dpcheck import __version__
from dpcheck.diagnostic import BatchNormTo
from dpcheck.errors import DpcheckError
from dpcheck.options.base import Parser, add_format, add_input, add_output_file, add_timeout
from dpcheck.options.ignoring import add_ignoring, refuse_conflicts
from dpcheck.options.training import OUTCOME, SETTINGS, add_outcome, add_settings
from dpcheck.writing import refuse_unwritable

# Of the findings alone; each is a module of dpcheck.report.
FORMATS = ("concise", "github", "gitlab", "junit", "markdown", "sarif")

_DESCRIPTION = """\
Checks whether a PyTorch model can be trained with DP-SGD, fixes what it can, verifies per-sample gradients and trains.
The file is run: check only files that you trust.

  dpcheck model.py                              findings; exit 1 if there are any
  dpcheck model.py:make_model                   a certain model of the file
  dpcheck model.py --fix --unsafe-fixes --train fix, verify, train privately
  dpcheck train model.py --help                 train privately, with more to choose than --train has
  dpcheck plan model.py                         how norms and clipped sums are computed, and what they cost
  dpcheck verify model.py                       per-sample gradients against references, parameter by parameter
  dpcheck audit model.py                        attacks the engine with your model: sensitivity, noise, sampling
  dpcheck explain model.py [NAME]               why a parameter or value is mixing, step by step with source lines
  dpcheck budget --help                         plans noise and steps for an epsilon, or reads a ledger
  dpcheck rule DP101                            what a rule finds and why; `dpcheck rule --all` lists them"""
_TARGET = """\
model.py or model.py:SYMBOL: defines a model, loss_fn(model, batch) and sample_batch();
unit = dpcheck.Unit(...) if a record is not one index of axis 0; calibration_batch(), public or synthetic samples on
which --fix with --verify or --train fits the weights of new norms.
Also package.module:factory(8, deep=True), hf:DIR?num_hidden_layers=2 (a config.json), timm:NAME.
None: the targets of [tool.dpcheck] in pyproject.toml, else model.py"""
_INPUT = """\
random inputs in the place of sample_batch(), such as x:Bx3x32x32 or ids:BxT:int64<30522,
once for each; loss_fn gets the tensor, or a tuple of them. Without a loss_fn one is guessed, and called so"""
_BATCH_NORM = """\
what batch norm becomes (group, or what [tool.dpcheck] in pyproject.toml says);
standardised: group norm after a convolution with standardised filters;
frozen: its running statistics for good, which must come from public data"""
_EPILOG = "exit codes: 0 clean or all fixed, 1 findings, 2 usage or internal error"


def parser() -> argparse.ArgumentParser:
    """The options of ``dpcheck model.py``."""
    form = argparse.RawTextHelpFormatter
    p = Parser("dpcheck", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=form, allow_abbrev=False)
    p.add_argument("targets", nargs="*", metavar="TARGET", help=_TARGET)
    p.add_argument("--only", help=argparse.SUPPRESS)
    p.add_argument("--baseline-folder", help=argparse.SUPPRESS)
    add_input(p, _INPUT)
    p.add_argument("--version", action="version", version=f"dpcheck {__version__}")
    p.add_argument(
        "--fix", action="store_true", help="write fixes to your files; with --train or --verify, fix in memory"
    )
    p.add_argument("--unsafe-fixes", action="store_true", help="also fixes that change the function (BatchNorm)")
    p.add_argument("--diff", action="store_true", help="show what --fix would write, and stop")
    p.add_argument("--batch-norm-to", choices=get_args(BatchNormTo), help=_BATCH_NORM)
    p.add_argument("--verify", action="store_true", help="compare per-sample gradients with references")
    p.add_argument("--certificate", metavar="PATH", help="verify, and write what was found for training to demand")
    p.add_argument("--show", choices=["parameters"], help="also print a table of parameters and their gradients")
    add_format(p, *FORMATS, "html")
    add_output_file(p)
    p.add_argument("--traceback", action="store_true", help="print the traceback of errors")
    add_timeout(p)
    add_ignoring(p)
    t = p.add_argument_group("training", "defaults come from the file's `training` dictionary")
    t.add_argument("--train", action="store_true", help="train privately on the file's train_dataset()")
    add_settings(t, "{}")
    add_outcome(t)
    return p


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, once options without effect are refused.

    Raises:
        DpcheckError: for what cannot be parsed, and for options that exclude or need each other.
    """
    options = parser().parse_args(arguments)
    for name in (*SETTINGS, *OUTCOME):
        value = getattr(options, name)
        # 0 is given, and equals False.
        if not options.train and value is not None and value is not False:
            raise DpcheckError(f"--{name.replace('_', '-')} has no effect without --train", next="add --train")
    if options.unsafe_fixes and not (options.fix or options.diff):
        raise DpcheckError("--unsafe-fixes has no effect without --fix or --diff", next="add --fix")
    if options.batch_norm_to and not (options.fix or options.diff):
        raise DpcheckError("--batch-norm-to has no effect without --fix or --diff", next="add --fix --unsafe-fixes")
    if options.diff and (options.fix or options.train or options.verify or options.format in ("json", "html")):
        raise DpcheckError(
            "--diff only shows what would change; it excludes --fix, --train, --verify and --format json or html",
            next="leave --diff out, or leave the others out",
        )
    if options.format in FORMATS and (options.fix or options.diff or options.train or options.verify or options.show):
        raise DpcheckError(
            f"--format {options.format} is of the findings alone; no --fix, --diff, --verify, --train or --show",
            next="leave the others out, or use --format json",
        )
    if options.certificate and (options.fix or options.diff or options.train or options.format in FORMATS):
        raise DpcheckError(
            "--certificate is of the file as it is; no --fix, --diff, --train, nor a format of the findings alone",
            next="fix first; then certify; then dpcheck train FILE --certificate PATH",
        )
    if options.certificate:
        refuse_unwritable(options.certificate, "--certificate")
    if options.write_baseline:
        refuse_unwritable(options.write_baseline, "--write-baseline")
    if options.output_file and options.format == "full":
        raise DpcheckError("--output-file needs a format other than full", next="add --format json, say")
    refuse_conflicts(options)
    return options


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    options = parse(arguments)
    from dpcheck import several

    options.targets = several.chosen(options)
    if len(options.targets) > 1:
        if options.train or options.certificate or options.format == "html":
            raise DpcheckError("--train, --certificate and --format html are of one target", next="name that one")
        return several.run(options, arguments)
    (options.target,) = options.targets
    from dpcheck.commands import run

    return run(options)
