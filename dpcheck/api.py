"""``dpcheck.check``: capture, analyse, ask the oracle where nothing is proven, apply the rules."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from dpcheck import registry
from dpcheck.capture import LossFn
from dpcheck.diagnostic import Report, Verdict
from dpcheck.facts import MIXES, Facts
from dpcheck.passes import find_facts
from dpcheck.rules import RULES
from dpcheck.unit import Unit, adapted


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
    report = report_of(find_facts(model, loss_fn, batch))
    notes = (*([f"unit: {unit}"] if unit is not None else []), *report.notes)
    return replace(report, notes=notes, seconds=time.perf_counter() - start)


def report_of(facts: Facts) -> Report:
    """What the rules and the verdict make of the facts."""
    return Report(
        verdict=_verdict(facts),
        diagnostics=registry.apply(RULES, facts),
        buffers=facts.buffers,
        parameters=facts.parameters,
        method=_method(facts),
        notes=_notes(facts),
    )


def _verdict(facts: Facts) -> Verdict:
    if any(e.refuted or e.kind in MIXES for e in facts.events):
        return "mixing"
    return "unproven" if facts.events else "independent"


def _method(facts: Facts) -> Literal["graph", "vmap", "single", "none"]:
    verdict = _verdict(facts)
    # Evaluating samples one at a time does not undo what is remembered outside the model.
    if verdict == "mixing" or facts.past.drifts:
        return "none"
    if verdict == "unproven" or facts.touched.python_random:
        return "single"
    return "vmap" if facts.touched.attributes or facts.uncovered else "graph"


def _notes(facts: Facts) -> tuple[str, ...]:
    notes = []
    if facts.touched.python_random:
        notes.append(
            "the forward draws from Python's or NumPy's random numbers, or branches on a number that it drew, which a "
            "captured graph would freeze: small, usual and large draws were analysed; the engine runs the model itself"
        )
    if facts.touched.asserted:
        notes.append(
            f"assertions about data ({', '.join(facts.touched.asserted[:3])}) are not in the captured graph: training "
            "does not make them"
        )
    if facts.uncovered:
        notes.append(f"the graph's samplers do not cover this model: {facts.uncovered}")
    hooked = [n for n, p in facts.model.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]
    if hooked:
        notes.append(f"hooks on parameters ({', '.join(hooked[:3])}) do not run in private training")
    if facts.past.latest:
        notes.append(
            f"Python attributes keep data of the latest batch ({', '.join(facts.past.latest[:3])}): they are in no "
            "state_dict, but in a pickled model they would be"
        )
    if facts.past.failed:
        notes.append(f"batches one after another could not be compared: {facts.past.failed}")
    if facts.oracle is not None:
        o = facts.oracle
        if o.failed:
            notes.append(f"the oracle could not compare: {o.failed}")
        else:
            seen = f"differed by {o.worst:.1e} ({o.compared})" if o.mixing else "no difference"
            notes.append(f"oracle: samples alone against samples in the batch, {o.comparisons} comparisons: {seen}")
    return tuple(notes)
