"""``dpcheck budget``: plans a run, or reads a ledger."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpcheck.budget import Budget, planned, spent
from dpcheck.engine.ledger import Ledger
from dpcheck.errors import DpcheckError
from dpcheck.options.base import CLEAN
from dpcheck.report import budget as shown
from dpcheck.report import documents, terminal

_PLANS = ("dataset_size", "epochs", "steps", "target_epsilon", "noise_multiplier")


def run(options: argparse.Namespace) -> int:
    """Print the budget; write its curves with --svg."""
    budget = _budget(options)
    if options.svg:
        documents.write(Path(options.svg), shown.svg(budget), "--svg")
    if options.format == "json":
        with documents.printed() as document:
            document["budget"] = budget
    else:
        shown.show(terminal(), budget)
    return CLEAN


def _budget(options: argparse.Namespace) -> Budget:
    if options.ledger:
        given = [name for name in _PLANS if getattr(options, name) is not None]
        if given:
            raise DpcheckError(
                f"--{given[0].replace('_', '-')} has no effect with --ledger, which says what was spent",
                next="leave one of them out",
            )
        return spent(Ledger.read(options.ledger), options.delta)
    if options.dataset_size is None:
        raise DpcheckError("the number of records is missing", next="add --dataset-size N, or pass --ledger PATH")
    return planned(
        dataset_size=options.dataset_size,
        batch_size=min(256, options.dataset_size) if options.batch_size is None else options.batch_size,
        delta=options.delta,
        epochs=options.epochs,
        steps=options.steps,
        target_epsilon=options.target_epsilon,
        noise=options.noise_multiplier,
        records=options.records,
    )
