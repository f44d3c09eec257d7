"""What a check says: locations, diagnostics and the report. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["independent", "mixing", "unproven"]
Status = Literal["covered", "fallback", "mixed", "no-gradient", "frozen"]
Applicability = Literal["safe", "unsafe", "display-only"]
# What a fix makes of batch norm.
BatchNormTo = Literal["group", "layer", "instance", "standardised", "frozen"]


@dataclass(frozen=True)
class Location:
    """A span of source. Lines are 1-based, columns 0-based as in :mod:`ast`; ``None`` where Python keeps no column."""

    file: str
    line: int
    end_line: int | None = None
    column: int | None = None
    end_column: int | None = None
    function: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Ignored:
    """Why a finding is not to fail a run. It is a finding still: verdict, fixes and training count it.

    Attributes:
        by: a comment, an option or the baseline.
        where: the comment's ``file:line``, the pattern of a per-file ignore or the baseline's path.
        reason: the comment's.
    """

    by: Literal["comment", "select", "ignore", "per-file-ignores", "baseline"]
    where: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        if self.by == "comment":
            return f"comment at {self.where}: {self.reason}"
        named = {"select": "not selected", "ignore": "--ignore", "baseline": "baseline"}.get(self.by, self.by)
        return f"{named} {self.where}" if self.where else named


@dataclass(frozen=True)
class Diagnostic:
    """One finding of one rule.

    Attributes:
        code: the rule's code, such as ``DP101``.
        name: the rule's name, such as ``batch-norm``.
        message: one sentence: what is wrong, in this model.
        location: the user's line, if there is one.
        module: path of the module in ``model.named_modules()`` (``""`` is the model itself).
        parameter: name in ``model.named_parameters()``.
        buffer: name in ``model.named_buffers()``.
        op: the ATen op, such as ``aten.mean.dim``.
        related: further places, such as the library's line.
        help: what to do about it.
        fix: how far a fix may be applied, ``None`` if there is none.
        ignored: why it does not fail the run, ``None`` if it does.
    """

    code: str
    name: str
    message: str
    location: Location | None = None
    module: str | None = None
    parameter: str | None = None
    buffer: str | None = None
    op: str | None = None
    related: tuple[Location, ...] = ()
    help: str | None = None
    fix: Applicability | None = None
    ignored: Ignored | None = None


@dataclass(frozen=True)
class BufferFact:
    """A buffer: ``constant`` (never written), ``derived`` (written from weights or constants), ``data`` (a leak)."""

    name: str
    kind: Literal["constant", "derived", "data", "unknown"]
    location: Location | None = None


@dataclass(frozen=True)
class ParameterFact:
    """A parameter and how its gradient is reached.

    Attributes:
        name: first name in ``model.named_parameters(remove_duplicate=False)``.
        shape: its shape.
        trainable: ``requires_grad``.
        status: ``covered`` (per-sample gradients by the graph's samplers), ``fallback`` (by vmap or single samples),
            ``mixed`` (samples cannot be told apart in it), ``no-gradient`` (trainable, not reached by the loss) or
            ``frozen``.
        sites: the ATen ops in which its gradient is summed over the batch, in graph order.
        tied: its other names.
        owner: class of the module that holds it: a layer, or for a bare parameter the user's own.
        uses: the line of every op of the forward that reads it; ``None`` where there is no graph.
        written: whether the forward overwrites it.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    status: Status
    sites: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    owner: str = ""
    uses: tuple[Location, ...] | None = None
    written: bool = False


@dataclass(frozen=True)
class Report:
    """The answer of :func:`dpcheck.check`.

    Attributes:
        verdict: ``independent`` (proven), ``mixing`` (refuted) or ``unproven``.
        diagnostics: the findings, by location; those that are ignored, too.
        buffers, parameters: one fact each.
        method: how the engine would compute per-sample gradients: ``graph``, ``vmap`` or ``single``;
            ``none`` if it would refuse.
        notes: what else a reader must know (why the graph was not captured, what the oracle compared).
        seconds: wall time of the check.
    """

    verdict: Verdict
    diagnostics: tuple[Diagnostic, ...]
    buffers: tuple[BufferFact, ...]
    parameters: tuple[ParameterFact, ...]
    method: Literal["graph", "vmap", "single", "none"]
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """True when samples are proven independent and no rule fired, ignored or not."""
        return self.verdict == "independent" and not self.diagnostics

    @property
    def shown(self) -> tuple[Diagnostic, ...]:
        """The findings that are not ignored."""
        return tuple(d for d in self.diagnostics if d.ignored is None)

    @property
    def ignored(self) -> tuple[Diagnostic, ...]:
        """The findings that are ignored. They are no less true for it."""
        return tuple(d for d in self.diagnostics if d.ignored is not None)

    @property
    def passes(self) -> bool:
        """Whether a run may exit with 0: no finding that is not ignored. This is not :attr:`ok`: not a guarantee."""
        return self.ok or bool(self.diagnostics and not self.shown)
