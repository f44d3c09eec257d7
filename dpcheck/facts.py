"""What the passes found out about a model: the input of the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dpcheck.capture import Capture, CaptureFailure
from dpcheck.diagnostic import BufferFact, ParameterFact
from dpcheck.history import History
from dpcheck.sandbox import Touched
from dpcheck.source import Origin

EventKind = Literal["forward", "backward", "batch-size", "state", "unproven", "not-captured"]
# Kinds that refute independence; the others leave it open.
MIXES = frozenset({"forward", "backward", "batch-size", "state"})


@dataclass(frozen=True)
class Event:
    """A place where samples meet, or where nothing could be proven.

    Attributes:
        kind: ``forward`` / ``backward``: two samples meet in this half, in a way that DP-SGD cannot bound;
            ``batch-size``: the value depends on how many samples there are; ``state``: it depends on samples of earlier
            batches; ``unproven``: an op without a transfer rule, or one whose result depends on indices in the data;
            ``not-captured``: there is no graph.
        op: the ATen op, such as ``aten.mean.dim`` (empty for ``not-captured``).
        origin: source lines and module path.
        reaches: what it falsifies: ``losses``, ``gradient:NAME``.
        reason: one clause for the message, such as ``reduces over the sample axis``.
        sized: whether the graphs of two batch sizes differ from here on.
        refuted: for ``unproven`` and ``not-captured``: whether the oracle saw samples meet; the verdict is then mixing.
    """

    kind: EventKind
    op: str
    origin: Origin | None
    reaches: tuple[str, ...]
    reason: str = ""
    sized: bool = False
    refuted: bool = False


@dataclass(frozen=True)
class Write:
    """A parameter or buffer that the forward overwrites.

    Attributes:
        name: its name.
        op: the ATen op that writes; empty for a write past autograd (``.data = ``), which no graph shows.
        origin: source lines and module path.
    """

    name: str
    op: str
    origin: Origin | None


@dataclass(frozen=True)
class OracleResult:
    """Each sample alone against the sample in the batch, in float64.

    Attributes:
        mixing: whether any comparison differed by more than the tolerance.
        worst: the largest relative difference.
        compared: what differed most: ``losses`` or ``gradients``.
        comparisons: how many comparisons were made.
        failed: why the oracle could not run, if so.
    """

    mixing: bool
    worst: float
    compared: str
    comparisons: int
    failed: str | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that a rule may look at.

    Attributes:
        capture: the joint graph, ``None`` when it could not be captured; then ``failure`` says why.
        events: where samples meet, in graph order.
        buffers, parameters: one fact each.
        writes: parameters and buffers that the forward overwrites.
        touched: Python state changed by running the model.
        past: what one call leaves behind for the next.
        kept: an event for each attribute that carries data from one batch to the next.
        uncovered: why the engine's samplers do not cover the graph, if so.
        oracle: its result, when it was asked.
    """

    model: nn.Module
    loss_fn: Any
    batch: Any
    capture: Capture | None
    failure: CaptureFailure | None
    events: tuple[Event, ...]
    buffers: tuple[BufferFact, ...]
    parameters: tuple[ParameterFact, ...]
    writes: tuple[Write, ...]
    touched: Touched
    past: History
    kept: tuple[Event, ...]
    uncovered: str | None
    oracle: OracleResult | None

    def written_parameters(self) -> list[Write]:
        """The parameters among ``writes``."""
        names = {name for name, _ in self.model.named_parameters()}
        return [write for write in self.writes if write.name in names]

    def module_of(self, event: Event) -> nn.Module | None:
        """The innermost module in whose forward the event happens."""
        if event.origin is None or event.origin.module is None:
            return None
        return self.model.get_submodule(event.origin.module)
