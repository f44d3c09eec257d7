"""What a step shows, and the progress bar that shows it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from dpcheck.engine.accounting import Bounds, Phase, at_most
from dpcheck.engine.ledger import spent
from dpcheck.engine.sampling import LogicalBatch
from dpcheck.engine.summing import Seen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor

# Seconds between two computations of epsilon.
_REFRESH = 2.0


@dataclass(frozen=True)
class Metrics:
    """What one step shows.

    Attributes:
        step: its number, from 0.
        loss: mean loss of the records drawn; None if none was. **Not private.**
        clipped_fraction: share of them whose gradient, or that of some group, was made shorter. **Not private.**
        drawn: how many were drawn. **Not private.**
        norms: L2 norms of their gradients before clipping, [drawn]. **Not private.**
        group_norms: the same by group of parameters, where groups are clipped apart. **Not private.**
        max_grad_norm: C in this step.
        delta: of the guarantee.
    """

    step: int
    loss: float | None
    clipped_fraction: float | None
    drawn: int
    norms: Tensor = field(repr=False)
    group_norms: dict[str, Tensor] = field(repr=False)
    max_grad_norm: float
    delta: float
    phases: tuple[Phase, ...] = field(repr=False)

    @property
    def epsilon(self) -> Bounds:
        """Spent up to and with this step; computed when asked for."""
        return spent(self.phases, self.delta)


def metrics_of(
    batch: LogicalBatch, seen: Seen, max_grad_norm: float, delta: float, phases: tuple[Phase, ...]
) -> Metrics:
    """Of a step with this clipping norm, after which the ledger has these phases."""
    return Metrics(
        step=batch.step,
        loss=seen.loss,
        clipped_fraction=seen.clipped_fraction,
        drawn=len(batch),
        norms=seen.norms,
        group_norms=seen.group_norms,
        max_grad_norm=max_grad_norm,
        delta=delta,
        phases=phases,
    )


class Bar:
    """A progress bar on stderr: steps, epsilon so far and, **not private**, loss and clipped share."""

    def __init__(self, total: int, done: int) -> None:
        # Only the bar gives way on a narrow terminal.
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
        columns = (bar, MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
        # With FORCE_COLOR rich would take a pipe for a terminal, and move the cursor in logs.
        console = Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)
        self._progress = Progress(*columns, console=console, expand=True)
        self._task = self._progress.add_task("training", total=total, completed=done, shown="")
        self._total, self._epsilon, self._due = total, "", 0.0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, metrics: Metrics) -> None:
        """Advances by the step of ``metrics``."""
        if time.monotonic() >= self._due or metrics.step + 1 == self._total:
            self._epsilon = f"epsilon <= {at_most(metrics.epsilon.upper)}"
            self._due = time.monotonic() + _REFRESH
        self._progress.update(self._task, completed=metrics.step + 1, shown=f"{self._epsilon}  {_not_private(metrics)}")


def _not_private(metrics: Metrics) -> str:
    if metrics.loss is None or metrics.clipped_fraction is None:
        return "not private: nothing drawn"
    return f"not private: loss {metrics.loss:.4f}, clipped {metrics.clipped_fraction:.0%}"
