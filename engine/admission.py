"""What must hold before a run starts: a model that the check accepts, a ledger with room for the run."""

from __future__ import annotations

import os
from typing import Any

from dpcheck.engine.checkpoint import run_in
from dpcheck.engine.ledger import Ledger, new_run, phases_of, spent
from dpcheck.engine.ranks import Ranks
from dpcheck.engine.settings import Settings
from dpcheck.engine.step_record import StepRecord, adjacency_of
from torch import nn

from dpcheck.capture import LossFn
from dpcheck.errors import DpcheckError


def opened(
    ledger: str | os.PathLike[str] | None, ranks: Ranks, settings: Settings, resume: str | os.PathLike[str] | None
) -> tuple[Ledger, str]:
    """The ledger and the name of a run, alike on all ranks; only rank 0 reads and writes the file.

    Args:
        resume: a checkpoint, whose run it is, and whose settings must be these; a new run without one.
    """
    mine = Ledger()

    def open_file() -> tuple[dict[str, Any], str]:
        nonlocal mine
        mine = Ledger(ledger)
        if resume is None:
            return mine.state_dict(), new_run()
        return mine.state_dict(), run_in(resume, settings)

    kept, run = ranks.first(open_file)
    if ranks.rank:
        mine.absorb(kept)
    return mine, run


def checked_method(model: nn.Module, loss_fn: LossFn, few: Any) -> str:
    """The clipper's method after :func:`dpcheck.check` on a batch of a few records.

    Raises:
        DpcheckError: lists the findings. What is merely unproven (DP9xx) passes, one sample at a time.
    """
    from dpcheck.api import check  # an engine with check=False does not load the analysis and its rules

    report = check(model, loss_fn, few)
    findings = [d for d in report.diagnostics if not d.code.startswith("DP9")]
    if report.method == "none" or findings:
        shown = [
            f"{d.code} {d.name}{f' at {d.location}' if d.location else ''}: {d.message}"
            for d in findings or report.diagnostics
        ]
        raise DpcheckError(
            "\n  ".join([f"this model cannot be trained privately as it is ({report.verdict})", *shown]),
            next="run dpcheck on its file for the source lines, or dpcheck.fix(model, loss_fn, batch, unsafe=True)",
        )
    return "single" if report.method == "single" else "auto"


def refuse_ledger(ledger: Ledger, settings: Settings, next_record: StepRecord) -> None:
    """Refuses a ledger of other data or adjacency, and one with which the steps that are left would exceed the target.

    Args:
        next_record: what every further step of the run will add.

    Raises:
        DpcheckError: names both values.
    """
    sizes = {record.dataset_size for record, _ in ledger.entries} - {settings.dataset_size}
    if sizes:
        raise DpcheckError(
            f"the ledger is of a data set with {sizes.pop()} records; this one has {settings.dataset_size}",
            where="ledger",
            next="pass the ledger of this data set, or none for data that was never used before",
        )
    adjacency = adjacency_of([*(record for record, _ in ledger.entries[:1]), next_record])
    if settings.target_epsilon is None or not ledger.steps():
        return
    left = max(0, settings.steps - ledger.steps(next_record.run))
    upper = spent(phases_of((*ledger.entries, (next_record, left))), settings.delta, adjacency).upper
    if upper > settings.target_epsilon * (1 + 1e-9):
        raise DpcheckError(
            f"with the {ledger.steps()} steps in the ledger this run would spend epsilon {upper:.4g}, above "
            f"target_epsilon={settings.target_epsilon:g}",
            where="target_epsilon",
            next="plan fewer steps, pass a larger noise_multiplier, or accept a larger target_epsilon",
        )
