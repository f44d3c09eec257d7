"""What a clipper refuses, in words."""

from __future__ import annotations

import torch
from torch import Tensor

from dpcheck.errors import DpcheckError
from dpcheck.facts import Event


def check_finite(losses: Tensor, norms: Tensor, weights: Tensor, first: int = 0) -> None:
    """Refuses losses and norms that are not finite; ``first`` is the number of the first sample."""
    bad = (~(torch.isfinite(losses) & torch.isfinite(norms)) & (weights != 0)).nonzero().flatten().tolist()
    padded = (~torch.isfinite(norms) & (weights == 0)).any()
    if bad or bool(padded):
        names = ", ".join(str(first + i) for i in bad[:8]) or "padding"
        raise DpcheckError(
            f"the loss or gradient of sample {names} of the batch is not finite; nothing was changed",
            next="look at these samples, or lower the learning rate: such a gradient cannot be clipped",
        )


def mixing(event: Event) -> DpcheckError:
    """Samples were found to mix at ``event``."""
    location = event.origin.location if event.origin else None
    module = event.origin.module if event.origin else None
    return DpcheckError(
        f"samples of the batch mix: {event.op} {event.reason}" + (f" in module {module!r}" if module else ""),
        where=str(location) if location else None,
        next="run dpcheck.check(model, loss_fn, batch) for all findings, or dpcheck.fix(...) to mend them",
    )


def lacks_memory(error: RuntimeError) -> bool:
    """Whether torch raised ``error`` because memory ran out: on the CPU that is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def no_memory(size: int) -> DpcheckError:
    """Memory does not suffice for as few samples as can be computed together."""
    return DpcheckError(
        f"memory does not suffice for the gradients of {size} samples; nothing was changed",
        next="use a smaller model, shorter sequences or smaller images, or a machine with more memory",
    )
