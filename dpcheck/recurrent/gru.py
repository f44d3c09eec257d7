"""The recurrence of a GRU: one op forward and one backward."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dpcheck.kernels import addmm


@torch.library.custom_op("dpcheck::gru", mutates_args=())
def gru(gates: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of a GRU (Cho et al. 2014), the reset gate after the product as torch has it.

    Args:
        gates: [T, B, 3H], the part of the pre-activations that comes from the input; reset, update, new gate.
        weight, bias: [3H, H] and [3H], recurrent. hidden: [B, H], at the start.

    Returns:
        hidden states [T + 1, B, H], the given one first; for the backward the gates after activation [T, B, 3H] and
        what the hidden state gives the new gate [T, B, H].
    """
    steps, batch, wide = gates.shape
    width = wide // 3
    hiddens = gates.new_empty(steps + 1, batch, width)
    active, inner = gates.new_empty(gates.shape), gates.new_empty(steps, batch, width)
    hiddens[0] = hidden
    transposed = weight.t()
    rows = zip(
        gates[..., : 2 * width].unbind(), gates[..., 2 * width :].unbind(), active[..., : 2 * width].unbind(),
        *(part.unbind() for part in active.split(width, 2)), inner.unbind(), pairwise(hiddens.unbind()), strict=True,
    )  # fmt: skip
    for two, third, both, reset, update, fresh, kept, (before, after) in rows:
        own = torch.addmm(bias, before, transposed)
        torch.sigmoid(torch.add(two, own[:, : 2 * width], out=both), out=both)
        kept.copy_(own[:, 2 * width :])
        torch.tanh(torch.addcmul(third, reset, kept, out=fresh), out=fresh)
        torch.lerp(fresh, before, update, out=after)
    return hiddens, active, inner


@gru.register_fake
def _(gates: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    steps = gates.shape[0]
    states, inner = gates.new_empty(steps + 1, *hidden.shape), gates.new_empty(steps, *hidden.shape)
    return states, gates.new_empty(gates.shape), inner


@torch.library.custom_op("dpcheck::gru_backward", mutates_args=())
def gru_backward(
    grad_hiddens: Tensor, weight: Tensor, hiddens: Tensor, active: Tensor, inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the recurrence.

    Args:
        grad_hiddens: [T, B, H], of the hidden states after each step.
        weight, hiddens, active, inner: as :func:`gru` takes and returns them.

    Returns:
        of the parts of the pre-activations that come from the input and from the hidden state, [T, B, 3H] each, and of
        the hidden state at the start, [B, H].
    """
    steps, batch, wide = active.shape
    width = wide // 3
    reset, update, fresh = active.split(width, 2)
    # What each gradient is multiplied with depends on the activations alone: computed for all time steps at once.
    slope = active.new_empty(steps, batch, 4, width)
    by_reset, by_update, by_inner, by_fresh = slope.unbind(2)
    torch.mul(1 - update, 1 - fresh * fresh, out=by_fresh)
    torch.mul(by_fresh, reset, out=by_inner)
    torch.mul(by_fresh * inner, reset * (1 - reset), out=by_reset)
    torch.mul(hiddens[:-1] - fresh, update * (1 - update), out=by_update)
    flat = slope.view(steps, batch, 4 * width)
    above = [None, *grad_hiddens[:-1].unbind()]
    hidden = grad_hiddens[-1]
    rows = zip(slope.unbind(), flat[..., :wide].unbind(), update.unbind(), above, strict=True)
    for own, product, kept, grad in reversed([*rows]):
        own.mul_(hidden.unsqueeze(1))
        hidden = hidden * kept if grad is None else torch.addcmul(grad, hidden, kept)
        hidden = addmm(hidden, product, weight)
    return torch.cat([flat[..., : 2 * width], flat[..., wide:]], 2), flat[..., :wide].contiguous(), hidden


@gru_backward.register_fake
def _(
    grad_hiddens: Tensor, weight: Tensor, hiddens: Tensor, active: Tensor, inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return active.new_empty(active.shape), active.new_empty(active.shape), hiddens.new_empty(hiddens.shape[1:])


class GRU(torch.autograd.Function):
    """(gates, weight, bias, hidden) -> hidden states [T, B, H]."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
        hiddens, active, inner = torch.ops.dpcheck.gru(gates, weight, bias, hidden)
        ctx.save_for_backward(weight, hiddens, active, inner)
        # A copy, which a model may write to.
        result: Tensor = hiddens[1:].clone()
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight, hiddens, active, inner = ctx.saved_tensors
        gates, own, hidden = torch.ops.dpcheck.gru_backward(grads[0], weight, hiddens, active, inner)
        return gates, own.flatten(0, 1).t() @ hiddens[:-1].flatten(0, 1), own.sum((0, 1)), hidden
