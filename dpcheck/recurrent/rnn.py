"""The recurrence of a plain RNN: one op forward and one backward."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dpcheck.kernels import addmm, matmul


@torch.library.custom_op("dpcheck::rnn", mutates_args=())
def rnn(gates: Tensor, weight: Tensor, hidden: Tensor, tanh: bool) -> Tensor:
    """The recurrence ``h' = f(gates + h weight^T)`` (Elman 1990).

    Args:
        gates: [T, B, H], the part of the pre-activations that comes from the input.
        weight: [H, H], recurrent. hidden: [B, H], at the start. tanh: whether f is that, or ReLU.

    Returns:
        hidden states [T + 1, B, H], the given one first.
    """
    hiddens = gates.new_empty(gates.shape[0] + 1, *hidden.shape)
    hiddens[0] = hidden
    transposed = weight.t()
    for given, (before, after) in zip(gates.unbind(), pairwise(hiddens.unbind()), strict=True):
        product = addmm(given, before, transposed)
        torch.tanh(product, out=after) if tanh else torch.clamp_min(product, 0, out=after)
    return hiddens


@rnn.register_fake
def _(gates: Tensor, weight: Tensor, hidden: Tensor, tanh: bool) -> Tensor:
    return gates.new_empty(gates.shape[0] + 1, *hidden.shape)


@torch.library.custom_op("dpcheck::rnn_backward", mutates_args=())
def rnn_backward(grad_hiddens: Tensor, weight: Tensor, hiddens: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the recurrence: of the pre-activations [T, B, H], and of the state at the start, [B, H].

    Args:
        grad_hiddens: [T, B, H], of the hidden states after each step.
        weight, hiddens, tanh: as :func:`rnn` takes and returns them.
    """
    after = hiddens[1:]
    slope = 1 - after * after if tanh else (after > 0).to(after.dtype)
    hidden = grad_hiddens[-1]
    above = [None, *grad_hiddens[:-1].unbind()]
    for own, grad in reversed([*zip(slope.unbind(), above, strict=True)]):
        own.mul_(hidden)
        hidden = matmul(own, weight) if grad is None else addmm(grad, own, weight)
    return slope, hidden


@rnn_backward.register_fake
def _(grad_hiddens: Tensor, weight: Tensor, hiddens: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return grad_hiddens.new_empty(grad_hiddens.shape), hiddens.new_empty(hiddens.shape[1:])


class RNN(torch.autograd.Function):
    """(gates, weight, hidden, tanh) -> hidden states [T, B, H]."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, hidden: Tensor, tanh: bool) -> Tensor:
        hiddens = torch.ops.dpcheck.rnn(gates, weight, hidden, tanh)
        ctx.save_for_backward(weight, hiddens)
        ctx.tanh = tanh
        # A copy, which a model may write to.
        result: Tensor = hiddens[1:].clone()
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, hiddens = ctx.saved_tensors
        gates, hidden = torch.ops.dpcheck.rnn_backward(grads[0], weight, hiddens, ctx.tanh)
        return gates, gates.flatten(0, 1).t() @ hiddens[:-1].flatten(0, 1), hidden, None
