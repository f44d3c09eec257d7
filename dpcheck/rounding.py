"""Errors of gradients, and how far a model's own gradients move when its numbers move by one rounding error.

A gradient jumps where a value crosses the kink of a ReLU or two values of a maximum change places. In float32 two right
computations of it, with sums in another order, can then differ by more than any tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import LossFn
from dpcheck.engine.fallback import gradients_in_batch, single_gradients
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


def largest_jump(model: nn.Module, loss_fn: LossFn, batch: Any, state: Mapping[str, Tensor], part: float) -> float:
    """The largest relative change of a parameter's per-sample gradients that rounding makes, over a few draws.

    Every sample alone, its numbers moved by one rounding error, up or down by chance; and in the batch, where other
    kernels add up in another order.

    Args:
        batch: as for ``loss_fn``; its numbers and those of ``state`` move.
        state: parameters and buffers by name.
        part: of the largest gradient of all, below which a gradient is rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        sign = torch.randint(0, 2, t.shape, generator=generator, device="cpu").to(t.device, t.dtype) * 2 - 1
        other = t.detach() * (1 + torch.finfo(t.dtype).eps * sign)
        return nn.Parameter(other, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else other

    def gradients(tensors: Mapping[str, Tensor], data: Any, of: Any = single_gradients) -> dict[str, Tensor]:
        with swapped(model, tensors):
            found: dict[str, Tensor] = of(model, loss_fn, data)[1]
        return found

    still = gradients(state, batch)
    low = part * max((float(g.abs().max()) for g in still.values() if g.numel()), default=0.0)

    def change(other: dict[str, Tensor]) -> float:
        return max((relative_error(other[name], g, low) for name, g in still.items()), default=0.0)

    found = [0.0]
    with suppress(Exception):  # what the model cannot do
        found = [change(gradients(state, batch, gradients_in_batch))]
    for _ in range(_DRAWS):
        state_now = {n: moved(t) for n, t in state.items()}
        found.append(change(gradients(state_now, pytree.tree_map_only(Tensor, moved, batch))))
    return max(found)
