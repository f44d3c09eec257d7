"""The recurrence of an LSTM: one op forward and one backward."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dpcheck.kernels import addmm, matmul


@torch.library.custom_op("dpcheck::lstm", mutates_args=())
def lstm(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The recurrence of an LSTM (Hochreiter and Schmidhuber 1997, with forget gates).

    Args:
        gates: [T, B, 4H], the part of the pre-activations that comes from the input; input, forget, cell, output gate.
        weight: [4H, H], recurrent. hidden, cell: [B, H], at the start.

    Returns:
        hidden and cell states [T + 1, B, H], the given ones first; the gates after activation [T, B, 4H] and the cell
        states after theirs [T, B, H], for the backward.
    """
    steps, batch, wide = gates.shape
    width = wide // 4
    hiddens, cells = gates.new_empty(steps + 1, batch, width), gates.new_empty(steps + 1, batch, width)
    active, squashed = gates.new_empty(gates.shape), gates.new_empty(steps, batch, width)
    hiddens[0], cells[0] = hidden, cell
    transposed, sizes, parts = weight.t(), [2 * width, width, width], active.split(width, 2)
    # All views at once: a view in Python costs as much as a small kernel.
    rows = zip(
        gates.unbind(), active[..., : 2 * width].unbind(), *(part.unbind() for part in parts), squashed.unbind(),
        pairwise(hiddens.unbind()), pairwise(cells.unbind()), strict=True,
    )  # fmt: skip
    for given, both, enter, forget, fresh, leave, bent, (hidden, next_hidden), (cell, next_cell) in rows:
        two, third, last = addmm(given, hidden, transposed).split(sizes, 1)
        torch.sigmoid(two, out=both)
        torch.tanh(third, out=fresh)
        torch.sigmoid(last, out=leave)
        torch.mul(forget, cell, out=next_cell).addcmul_(enter, fresh)
        torch.mul(torch.tanh(next_cell, out=bent), leave, out=next_hidden)
    return hiddens, cells, active, squashed


@lstm.register_fake
def _(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps = gates.shape[0]
    shapes = (steps + 1, *hidden.shape), (steps + 1, *hidden.shape), gates.shape, (steps, *hidden.shape)
    a, b, c, d = (gates.new_empty(shape) for shape in shapes)
    return a, b, c, d


@torch.library.custom_op("dpcheck::lstm_backward", mutates_args=())
def lstm_backward(
    grad_hiddens: Tensor, grad_cell: Tensor, weight: Tensor, cells: Tensor, active: Tensor, squashed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the recurrence: of the pre-activations [T, B, 4H], and of the states at the start, [B, H].

    Args:
        grad_hiddens: [T, B, H], of the hidden states after each step. grad_cell: [B, H], of the last cell state.
        weight, cells, active, squashed: as :func:`lstm` takes and returns them.
    """
    steps, batch, wide = active.shape
    width = wide // 4
    gate = active.view(steps, batch, 4, width)
    enter, forget, fresh, leave = gate.unbind(2)
    # What each gradient is multiplied with depends on the activations alone: computed for all time steps at once.
    slope = torch.addcmul(active, active, active, value=-1).view_as(gate)
    torch.addcmul(torch.ones_like(fresh), fresh, fresh, value=-1, out=slope[:, :, 2])
    slope[:, :, 0].mul_(fresh)
    slope[:, :, 1].mul_(cells[:-1])
    slope[:, :, 2].mul_(enter)
    slope[:, :, 3].mul_(squashed)
    through = torch.addcmul(leave, leave * squashed, squashed, value=-1)
    flat = slope.view(steps, batch, wide)
    above = [None, *grad_hiddens[:-1].unbind()]
    rows = zip(
        slope[:, :, :3].unbind(), slope[:, :, 3].unbind(), flat.unbind(), through.unbind(), forget.unbind(), above,
        strict=True,
    )  # fmt: skip
    hidden, cell = grad_hiddens[-1], grad_cell.clone()
    column = cell.unsqueeze(1)
    for inner, outer, gates, by_cell, kept, grad in reversed([*rows]):
        cell.addcmul_(hidden, by_cell)
        inner.mul_(column)
        outer.mul_(hidden)
        hidden = matmul(gates, weight) if grad is None else addmm(grad, gates, weight)
        cell.mul_(kept)
    return flat, hidden, cell


@lstm_backward.register_fake
def _(
    grad_hiddens: Tensor, grad_cell: Tensor, weight: Tensor, cells: Tensor, active: Tensor, squashed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return active.new_empty(active.shape), grad_cell.new_empty(grad_cell.shape), grad_cell.new_empty(grad_cell.shape)


class LSTM(torch.autograd.Function):
    """(gates, weight, hidden, cell) -> hidden states [T, B, H], last cell state [B, H]."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        hiddens, cells, active, squashed = torch.ops.dpcheck.lstm(gates, weight, hidden, cell)
        ctx.save_for_backward(weight, hiddens, cells, active, squashed)
        # Copies, which a model may write to.
        return hiddens[1:].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight, hiddens, *kept = ctx.saved_tensors
        gates, hidden, cell = torch.ops.dpcheck.lstm_backward(*grads, weight, *kept)
        flat = gates.flatten(0, 1).t() @ hiddens[:-1].flatten(0, 1)
        return gates, flat, hidden, cell
