"""What a clipper refuses, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpcheck.capture import first_line
from dpcheck.errors import DpcheckError
from dpcheck.facts import Event

_REFUSALS = ("can't allocate memory", "bad_alloc")


class NotFinite(DpcheckError):
    """Losses or gradients that are not finite.

    Attributes:
        samples: their positions in the batch.
    """

    def __init__(self, samples: Sequence[int], where: str | None = None, next: str | None = None) -> None:
        self.samples = tuple(samples)
        super().__init__(
            f"the loss or gradient of sample {named(self.samples)} of the batch is not finite; nothing was changed",
            where,
            next or "look at these samples, or lower the learning rate: such a gradient cannot be clipped",
        )


def named(numbers: Sequence[int]) -> str:
    """The first eight, and how many more."""
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return ", ".join(map(str, numbers[:8])) + more


def check_finite(losses: Tensor, norms: Tensor, weights: Tensor) -> None:
    """Refuses losses and norms that are not finite.

    Raises:
        NotFinite: names the samples; also one that is padding, as what it gives cannot be made zero.
    """
    bad = ~torch.isfinite(norms) | (~torch.isfinite(losses) & (weights != 0))
    if bool(bad.any()):
        raise NotFinite(bad.nonzero().flatten().tolist())


def mixing(event: Event) -> DpcheckError:
    """Samples were found to mix at ``event``."""
    location = event.origin.location if event.origin else None
    module = event.origin.module if event.origin else None
    return DpcheckError(
        f"samples of the batch mix: {event.op} {event.reason}" + (f" in module {module!r}" if module else ""),
        where=str(location) if location else None,
        next="run dpcheck.check(model, loss_fn, batch) for all findings, or dpcheck.fix(...) to mend them",
    )


def lacks_memory(error: Exception) -> bool:
    """Whether torch raised ``error`` because memory ran out: on the CPU that is a plain RuntimeError."""
    refused = isinstance(error, RuntimeError) and any(why in str(error) for why in _REFUSALS)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)


def no_memory(size: int) -> DpcheckError:
    """Memory does not suffice for as few samples as can be computed together."""
    return DpcheckError(
        f"memory does not suffice for the gradients of {size} sample{'s' if size > 1 else ''}; nothing was changed",
        next="use a smaller model, shorter sequences or smaller images, or a machine with more memory",
    )


def not_compiled(error: Exception) -> DpcheckError | None:
    """The refusal for ``error``, if the compiler raised it."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    cause = getattr(error, "inner_exception", error)
    return DpcheckError(
        f"the plan cannot be compiled: {type(cause).__name__}: {first_line(cause)}; nothing was changed",
        where="compile",
        next="pass compile=False, or install a C++ compiler (on the CPU) or Triton (on a GPU)",
    )
