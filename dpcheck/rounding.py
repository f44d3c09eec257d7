"""Errors of gradients, and how far a model's own gradients move when its numbers move by one rounding error.

A gradient jumps where a value crosses the kink of a ReLU or two values of a maximum change places. In float32 two right
computations of it, with sums in another order, can then differ by more than any tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import LossFn
from dpcheck.engine.fallback import single_gradients
from dpcheck.engine.sites.base import as_real
from dpcheck.sandbox import swapped

_DRAWS = 4
_PIECE = 1 << 22


def plain(t: Tensor) -> Tensor:
    """In float64; complex numbers as pairs."""
    return as_real(t).double()


def relative_error(value: Tensor, reference: Tensor, floor: float) -> float:
    """Largest difference, relative to the largest entry or to ``floor``; infinite where something is not finite."""
    if reference.numel() == 0:
        return 0.0
    size = differs = 0.0
    # In pieces: copies in float64 of the gradients of a large table do not fit in memory beside them.
    pieces = (as_real(t).reshape(-1).split(_PIECE) for t in (value, reference))
    for a, b in zip(*pieces, strict=True):
        a, b = a.double(), b.double()
        size = max(size, float(b.abs().max()))
        difference = float((a - b).abs().max())
        differs = max(differs, difference if difference == difference else float("inf"))
    return differs / max(size, floor, 1e-300)


def largest_jump(
    model: nn.Module, loss_fn: LossFn, batch: Any, state: Mapping[str, Tensor], floor: Callable[[float], float]
) -> float:
    """The largest relative change of a parameter's per-sample gradients, each of a sample alone, over a few draws.

    Args:
        batch: as for ``loss_fn``; its numbers and those of ``state`` move by one rounding error, up or down by chance.
        state: parameters and buffers by name.
        floor: from the largest gradient of all to the size below which one is rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        sign = torch.randint(0, 2, t.shape, generator=generator, device="cpu").to(t.device, t.dtype) * 2 - 1
        other = t.detach() * (1 + torch.finfo(t.dtype).eps * sign)
        return nn.Parameter(other, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else other

    def gradients(tensors: Mapping[str, Tensor], data: Any) -> dict[str, Tensor]:
        with swapped(model, tensors):
            return single_gradients(model, loss_fn, data)[1]

    still = gradients(state, batch)
    low = floor(max((float(g.abs().max()) for g in still.values() if g.numel()), default=0.0))
    found = [0.0]
    for _ in range(_DRAWS):
        other = gradients({n: moved(t) for n, t in state.items()}, pytree.tree_map_only(Tensor, moved, batch))
        found += [relative_error(other[name], g, low) for name, g in still.items()]
    return max(found)
