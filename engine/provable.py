"""What a graph may stand for: the batches, settings and models for which a plan holds."""

from __future__ import annotations

from typing import Any

from dpcheck.engine.fingerprint import fingerprint
from dpcheck.engine.precision import casting
from dpcheck.engine.refusals import mixing
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import CaptureFailure, LossFn, capture
from dpcheck.errors import DpcheckError
from dpcheck.samplesets import Analysis, analyse


def key_of(model: nn.Module, batch: Any) -> Any:
    """Equal keys, equal graphs: shapes, numbers in the batch, modes, attributes, tensors' identities and autocast."""
    leaves, spec = pytree.tree_flatten(batch)
    shapes = tuple((tuple(x.shape), x.dtype, str(x.device)) if isinstance(x, Tensor) else repr(x) for x in leaves)
    state = tuple(fingerprint(model).items())
    tensors = tuple((id(p), p.shape, p.dtype, p.device, p.requires_grad) for p in model.parameters())
    return shapes, str(spec), state, tensors, casting()


def provable(model: nn.Module, loss_fn: LossFn, batch: Any) -> Analysis | str:
    """The analysis, if it proves that samples are independent, else the reason why nothing is proven.

    Raises:
        DpcheckError: if samples mix, or something of the model is overwritten without noise.
    """
    result = capture(model, loss_fn, batch)
    if isinstance(result, CaptureFailure):
        where = f" at {result.location}" if result.location else ""
        return f"the graph could not be captured: {result.reason}{where}"
    if result.touched.python_random:
        return "the forward draws Python or NumPy random numbers, which a graph would freeze"
    if result.touched.attributes:
        return f"the forward changes Python state ({', '.join(result.touched.attributes[:3])})"
    if any(after is not result.parameters[n] for n, after in result.parameters_after.items()):
        raise DpcheckError("the forward overwrites a parameter, without noise", next="run dpcheck.check")
    analysis = analyse(result)
    refuted = [event for event in analysis.events if event.kind in ("forward", "backward")]
    if refuted:
        raise mixing(refuted[0])
    leaks = [b for b in analysis.buffers if b.kind == "data"]
    if leaks:
        raise DpcheckError(
            f"the buffer {leaks[0].name} is written from data and would be saved without noise",
            where=str(leaks[0].location) if leaks[0].location else leaks[0].name,
            next="run dpcheck.check(model, loss_fn, batch) for the findings, or dpcheck.fix",
        )
    if analysis.events:
        event = analysis.events[0]
        return f"independence is unproven: {event.op} {event.reason}"
    return analysis
