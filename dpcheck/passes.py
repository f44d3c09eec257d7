"""The passes in order: run it, capture it, analyse it, and ask the oracle where nothing is proven."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from dpcheck import inputs
from dpcheck.capture import Capture, CaptureFailure, LossFn, capture, run_losses
from dpcheck.cost import flops
from dpcheck.determinism import FixedChance
from dpcheck.diagnostic import BufferFact, Location
from dpcheck.drawing import EXTREMES, USUAL
from dpcheck.errors import DpcheckError
from dpcheck.facts import MIXES, Event, Facts, OracleResult
from dpcheck.history import History, history
from dpcheck.oracle import isolate
from dpcheck.parameters import parameter_facts, why_uncovered
from dpcheck.samplesets import analyse
from dpcheck.samplesets.batch_size import size_events
from dpcheck.samplesets.placement import place_events
from dpcheck.source import Origin
from dpcheck.state import kept_events, state_events, with_written, writes

# Two batch sizes that differ: what holds at one size by accident does not hold at both.
SIZES = (5, 7)
# A difference from the oracle that rounding inside a model (float32 or bfloat16 regions) does not reach.
CERTAIN = 1e-2
# One that rounding in float64 does not reach, and in float32 regions of a model has not reached (3e-7 on 135 models).
DOUBTFUL = 1e-5
# Floating-point operations of the graph above which the oracle compares few samples.
LARGE = 2 * 10**10


def find_facts(model: nn.Module, loss_fn: LossFn, batch: Any) -> Facts:
    """Everything that the passes find out, before any rule.

    Raises:
        DpcheckError: as :func:`dpcheck.check`.
    """
    lazy = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if is_lazy(t)]
    if lazy:
        raise DpcheckError(
            f"{lazy[0]!r} has no shape yet (it belongs to a lazy layer)",
            next="run the model once on a batch before the check: that gives lazy layers their shapes",
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise DpcheckError(
            "the model has no trainable parameter, so there is nothing to train privately",
            next="set requires_grad=True on the parameters to train",
        )
    losses = run_losses(model, loss_fn, batch)
    past = history(model, loss_fn, batch, losses, sizes=(2, 3))
    captures: list[Capture] = []
    for size in SIZES:
        chance = USUAL if captures and captures[0].touched.python_random else None
        result = capture(model, loss_fn, resized(batch, size), chance=chance)
        if isinstance(result, Capture) and result.touched.python_random and chance is None:
            result = capture(model, loss_fn, resized(batch, size), chance=USUAL)
        if isinstance(result, CaptureFailure):
            return _without_graph(model, loss_fn, batch, result, past)
        captures.append(result)
    return _with_graph(model, loss_fn, batch, captures, past)


def resized(batch: Any, size: int) -> Any:
    """A batch of ``size`` samples, repeating those of ``batch`` as needed."""
    have = inputs.batch_size(batch)
    return inputs.take(batch, [i % have for i in range(size)])


def _with_graph(model: nn.Module, loss_fn: LossFn, batch: Any, captures: list[Capture], past: History) -> Facts:
    analyses = [analyse(c) for c in captures]
    first = analyses[0]
    events = list(first.events)
    others = _other_ways(model, loss_fn, batch) if first.capture.touched.python_random else []
    for more in (analyses[1].events, others, size_events(*captures), state_events(model, past, captures[0])):
        events += [e for e in more if not any(_same(e, other) for other in events)]
    events = [_size_refuted(e, model, loss_fn, batch) for e in events]
    oracle, few = None, flops(captures[0].graph) > LARGE
    if not events:
        # The sample sets do not know the place of a sample in the batch, nor their number; two small runs do.
        oracle = _asked(model, loss_fn, batch, quick=True, few=few)
        if oracle.mixing or oracle.failed:
            events += place_events(model, *analyses)
        if oracle.worst > CERTAIN and not events:
            events += _small_batch_events(model, loss_fn, batch, captures[0])
        elif oracle.mixing and oracle.worst > DOUBTFUL and not events:
            reason = f"a sample alone has other losses or gradients than in the batch, by {oracle.worst:.0e}, relative"
            events.append(Event("unproven", "", None, ("losses",), reason))
    elif any(event.kind == "unproven" for event in events):
        oracle = _asked(model, loss_fn, batch, quick=False, few=few)
        refuted = oracle.mixing and not any(event.kind in MIXES for event in events)
        events = [replace(e, refuted=True) if refuted and e.kind == "unproven" else e for e in events]
    written = writes(model, past, first.capture)
    names = [write.name for write in written]
    uncovered = why_uncovered(first) if not events else None
    return Facts(
        model=model,
        loss_fn=loss_fn,
        batch=batch,
        capture=first.capture,
        failure=None,
        events=tuple(_without_consequences(events, captures[0])),
        buffers=with_written(model, first.buffers, past, written),
        parameters=parameter_facts(model, first, covered=not events and uncovered is None, written=names),
        uncovered=uncovered,
        writes=written,
        touched=first.capture.touched,
        past=past,
        kept=kept_events(model, past, captures[0]),
        oracle=oracle,
    )


def _other_ways(model: nn.Module, loss_fn: LossFn, batch: Any) -> list[Event]:
    """Where samples meet on the branches that the model takes when what it draws is small, or large."""
    events: list[Event] = []
    for chance in EXTREMES:
        result = capture(model, loss_fn, resized(batch, SIZES[0]), chance=chance)
        if isinstance(result, CaptureFailure):
            events.append(Event("unproven", "", Origin(result.location, None, ()), ("losses",), result.reason))
            continue
        events += analyse(result).events
        if result.touched.uncontrolled:
            reason = "the model draws random numbers in a way of which only one outcome was seen"
            events.append(Event("unproven", "", None, ("losses",), reason))
    return events


def _without_graph(model: nn.Module, loss_fn: LossFn, batch: Any, failure: CaptureFailure, past: History) -> Facts:
    oracle = isolate(model, loss_fn, batch)
    origin = Origin(failure.location, None, ())
    event = Event("not-captured", "", origin, ("losses",), failure.reason, refuted=oracle.mixing)
    written = writes(model, past, None)
    return Facts(
        model=model,
        loss_fn=loss_fn,
        batch=batch,
        capture=None,
        failure=failure,
        events=(event, *[e for e in state_events(model, past, None) if e.kind != "unproven" or not event.refuted]),
        buffers=with_written(
            model, tuple(BufferFact(name, "unknown") for name, _ in model.named_buffers()), past, written
        ),
        parameters=parameter_facts(model, None, covered=False, written=[write.name for write in written]),
        uncovered=None,
        writes=written,
        touched=failure.touched,
        past=past,
        kept=kept_events(model, past, None),
        oracle=oracle,
    )


def _asked(model: nn.Module, loss_fn: LossFn, batch: Any, *, quick: bool, few: bool) -> OracleResult:
    """The oracle's answer. A difference in float32 may be rounding, in a deep model: it is looked at in float64."""
    oracle = isolate(model, loss_fn, batch, quick=quick, few=few)
    return isolate(model, loss_fn, batch, quick=quick) if few and oracle.mixing else oracle


def _small_batch_events(model: nn.Module, loss_fn: LossFn, batch: Any, usual: Capture) -> list[Event]:
    """Why a sample alone, or one of two, has another loss than in a larger batch."""
    for size in (1, 2):
        small = capture(model, loss_fn, resized(batch, size))
        events = size_events(usual, small) if isinstance(small, Capture) else []
        if events:
            return [replace(events[0], kind="batch-size", reason="is computed otherwise for few samples")]
    return [
        Event("batch-size", "", None, ("losses",), "gives a sample alone another loss or gradient than in the batch")
    ]


def _size_refuted(event: Event, model: nn.Module, loss_fn: LossFn, batch: Any) -> Event:
    """A graph that is another one for another number of samples: does it give the same samples other losses?"""
    if event.kind != "unproven" or not event.sized:
        return event
    losses = []
    for size in SIZES:
        with FixedChance():
            losses.append(run_losses(model, loss_fn, resized(batch, size))[: SIZES[0]].double())
    apart = (losses[0] - losses[1]).abs().max() / (losses[0].abs().max() + 1e-6)
    return replace(event, kind="batch-size") if float(apart) > CERTAIN else event


def _without_consequences(events: list[Event], captured: Capture) -> list[Event]:
    """Less what only follows from another finding; a finding always stays."""
    forward = {_place(e) for e in events if e.kind == "forward"} - {None}
    mixing = any(e.kind in MIXES for e in events)
    lines = {n.meta["origin"].location for n in captured.graph.graph.nodes if n.meta.get("half") == "forward"
             and n.meta.get("origin") is not None}  # fmt: skip
    kept: list[Event] = []
    sizes = set()
    for event in events:
        at, in_backward = _place(event), "losses" not in event.reaches
        # The gradient of a line that runs in the forward follows from it, but for embeddings that count.
        derived = event.kind == "backward" and at in lines and "embedding" not in event.op
        if at is not None and forward and (derived or (event.kind == "batch-size" and at in forward)):
            continue
        if event.kind == "unproven" and mixing and (event.sized or (in_backward and forward)):
            continue
        if event.kind == "batch-size" and at is not None and at in sizes:
            continue
        if event.kind == "batch-size":
            sizes.add(at)
        kept.append(event)
    return kept


def _place(event: Event) -> Location | None:
    return event.origin.location if event.origin is not None else None


def _same(a: Event, b: Event) -> bool:
    return (a.kind, a.op, a.origin) == (b.kind, b.op, b.origin)
