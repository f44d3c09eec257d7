"""Dictionaries of gradients by parameter name."""

from __future__ import annotations

import torch
from dpcheck.engine.kinds import Grouping
from dpcheck.engine.sites.base import square_norms_of
from torch import Tensor, nn


def norms_of(each: dict[str, Tensor], grouping: Grouping) -> Tensor:
    """L2 norm of every sample's gradient by group, [B, G], from [B, *shape] by name."""
    squares = {name: square_norms_of(g) for name, g in each.items()}
    first = next(iter(squares.values()))
    total = first.new_zeros(len(first), len(grouping.names))
    for name, square in squares.items():
        total[:, grouping.of[name]] += square.to(total.dtype)
    return total.sqrt()


def whole(norms: Tensor) -> Tensor:
    """The norm over all groups, [B], from [B, G]."""
    result: Tensor = norms[:, 0] if norms.shape[1] == 1 else torch.linalg.vector_norm(norms, dim=1)
    return result


def in_dtype_of(t: Tensor, p: Tensor) -> Tensor:
    """The opposite of :func:`dpcheck.engine.sites.base.as_real` for a gradient of ``p``, in the dtype of ``p``."""
    if p.is_complex():
        t = torch.view_as_complex(t.to(p.real.dtype).contiguous())
    return t.to(p.dtype)


def complete(parameters: dict[str, nn.Parameter], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for each trainable parameter, contiguous, with memory of its own: noise is added in place.

    Zeros for those that no loss reaches: they are noised like the others.
    """
    result: dict[str, Tensor] = {}
    seen = {p.untyped_storage().data_ptr() for p in parameters.values()}
    for name, p in parameters.items():
        if p.requires_grad:
            grad = grads.get(name)
            whole = torch.zeros_like(p) if grad is None else grad.reshape(p.shape).to(p.dtype).contiguous()
            result[name] = whole.clone() if whole.untyped_storage().data_ptr() in seen else whole
            seen.add(result[name].untyped_storage().data_ptr())
    return result
