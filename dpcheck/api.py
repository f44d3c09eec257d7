"""``dpcheck.check``: capture, analyse, ask the oracle where nothing is proven, apply the rules."""

from __future__ import annotations

import time
from typing import Any, Literal

from torch import nn

from dpcheck import inputs, registry
from dpcheck.capture import Capture, CaptureFailure, LossFn, capture, run_losses
from dpcheck.diagnostic import BufferFact, Report, Verdict
from dpcheck.errors import DpcheckError
from dpcheck.facts import Event, Facts
from dpcheck.oracle import isolate
from dpcheck.rules import RULES
from dpcheck.samplesets import analyse, parameter_facts
from dpcheck.samplesets.batch_size import size_events
from dpcheck.samplesets.placement import place_events
from dpcheck.source import Origin
from dpcheck.unit import Unit, adapted

# Two batch sizes that differ: what holds at one size by accident does not hold at both.
SIZES = (5, 7)
# A difference from the oracle that rounding inside a model (float32 or bfloat16 regions) does not reach.
CERTAIN = 1e-2


def check(model: nn.Module, loss_fn: LossFn, batch: Any, *, unit: Unit | None = None) -> Report:
    """Can ``model`` be trained with DP-SGD on ``loss_fn``, and will the guarantee be true?

    Args:
        model: in the train/eval state in which it will be trained. It is left exactly as it was.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``, one loss per sample.
        batch: any pytree whose tensors have samples on axis 0; a few samples are enough.
        unit: what one sample is, if it is not one index of axis 0; see :class:`dpcheck.Unit`.

    Returns:
        The report. ``report.ok`` is true only for a proof without findings.

    Raises:
        DpcheckError: if the model or loss raises on the batch, the losses are not [B] or not finite, no parameter is
            trainable, or the unit does not fit the batch.
    """
    start = time.perf_counter()
    loss_fn, batch = adapted(unit, loss_fn, batch)
    facts = find_facts(model, loss_fn, batch)
    diagnostics = registry.apply(RULES, facts)
    return Report(
        verdict=_verdict(facts),
        diagnostics=diagnostics,
        buffers=facts.buffers,
        parameters=facts.parameters,
        method=_method(facts),
        notes=(*([f"unit: {unit}"] if unit is not None else []), *_notes(facts)),
        seconds=time.perf_counter() - start,
    )


def find_facts(model: nn.Module, loss_fn: LossFn, batch: Any) -> Facts:
    """Everything that the passes find out, before any rule."""
    if not any(p.requires_grad for p in model.parameters()):
        raise DpcheckError(
            "the model has no trainable parameter, so there is nothing to train privately",
            next="set requires_grad=True on the parameters to train",
        )
    run_losses(model, loss_fn, batch)
    captures = []
    for size in SIZES:
        result = capture(model, loss_fn, resized(batch, size))
        if isinstance(result, CaptureFailure):
            return _without_graph(model, loss_fn, batch, result)
        captures.append(result)
    return _with_graph(model, loss_fn, batch, captures)


def resized(batch: Any, size: int) -> Any:
    """A batch of ``size`` samples, repeating those of ``batch`` as needed."""
    have = inputs.batch_size(batch)
    return inputs.take(batch, [i % have for i in range(size)])


def _with_graph(model: nn.Module, loss_fn: LossFn, batch: Any, captures: list[Capture]) -> Facts:
    analyses = [analyse(c) for c in captures]
    first = analyses[0]
    events = list(first.events)
    events += [e for e in analyses[1].events if not any(_same(e, other) for other in events)]
    events += [e for e in size_events(*captures) if not any(_same(e, other) for other in events)]
    oracle = None
    if not events:
        # The sample sets do not know the place of a sample in the batch, nor their number; two small runs do.
        oracle = isolate(model, loss_fn, batch, quick=True)
        if oracle.mixing or oracle.failed:
            events += place_events(model, *analyses)
        if oracle.worst > CERTAIN and not events:
            reason = "gives a sample alone another loss or gradient than in the batch"
            events.append(Event("batch-size", "", None, ("losses",), reason))
    elif any(event.kind == "unproven" for event in events):
        oracle = isolate(model, loss_fn, batch)
        refuted = oracle.mixing and not any(event.kind in ("forward", "backward", "batch-size") for event in events)
        events = [_refuted(e) if refuted and e.kind == "unproven" else e for e in events]
    return Facts(
        model=model,
        loss_fn=loss_fn,
        batch=batch,
        capture=first.capture,
        failure=None,
        events=tuple(events),
        buffers=first.buffers,
        parameters=parameter_facts(model, first),
        written_parameters=first.written_parameters,
        touched=first.capture.touched,
        oracle=oracle,
    )


def _without_graph(model: nn.Module, loss_fn: LossFn, batch: Any, failure: CaptureFailure) -> Facts:
    oracle = isolate(model, loss_fn, batch)
    origin = Origin(failure.location, None, ())
    event = Event("not-captured", "", origin, ("losses",), failure.reason, refuted=oracle.mixing)
    return Facts(
        model=model,
        loss_fn=loss_fn,
        batch=batch,
        capture=None,
        failure=failure,
        events=(event,),
        buffers=tuple(BufferFact(name, "unknown") for name, _ in model.named_buffers()),
        parameters=parameter_facts(model, None),
        written_parameters=(),
        touched=failure.touched,
        oracle=oracle,
    )


def _same(a: Event, b: Event) -> bool:
    return (a.kind, a.op, a.origin) == (b.kind, b.op, b.origin)


def _refuted(event: Event) -> Event:
    return Event(event.kind, event.op, event.origin, event.reaches, event.reason, refuted=True)


def _verdict(facts: Facts) -> Verdict:
    if any(e.refuted or e.kind in ("forward", "backward", "batch-size") for e in facts.events):
        return "mixing"
    return "unproven" if facts.events else "independent"


def _method(facts: Facts) -> Literal["graph", "vmap", "single", "none"]:
    verdict = _verdict(facts)
    if verdict == "mixing":
        return "none"
    return "graph" if verdict == "independent" and not facts.touched.python_random else "single"


def _notes(facts: Facts) -> tuple[str, ...]:
    notes = []
    if facts.touched.python_random:
        notes.append(
            "the forward draws from Python's or NumPy's random numbers, which a captured graph would freeze: "
            "the engine runs the model itself"
        )
    if facts.oracle is not None:
        o = facts.oracle
        if o.failed:
            notes.append(f"the oracle could not compare: {o.failed}")
        else:
            seen = f"differed by {o.worst:.1e} ({o.compared})" if o.mixing else "no difference"
            notes.append(f"oracle: samples alone against samples in the batch, {o.comparisons} comparisons: {seen}")
    return tuple(notes)
