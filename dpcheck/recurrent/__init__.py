"""Recurrent layers as two ops for each direction, in the place of a dozen for each time step.

A layer is ``linear`` for all time steps at once, then the recurrence, which is one op forward and one backward. The
gradient of the recurrent weights is a product of two tensors that hold all time steps: a sampler's usual case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dpcheck.recurrent.gru import GRU
from dpcheck.recurrent.lstm import LSTM
from dpcheck.recurrent.rnn import RNN


class FusedRecurrence(TorchFunctionMode):
    """``torch.lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu`` on padded sequences by these ops, layer by layer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        layer = _LAYERS.get(func)
        if layer is not None and not kwargs and len(args) == 9:
            # An LSTM has two states.
            states = args[1] if func is torch._VF.lstm else (args[1],)
            if _plain(args[0], states, *args[2:]):
                output, last = _layers(layer, args[0], states, *args[2:])
                return output, *last
        return func(*args, **(kwargs or {}))


def _plain(x: Any, states: Any, weights: Any, biased: bool, layers: int, *rest: Any) -> bool:
    """Padded sequences, no projection, one floating dtype, no autocast, no transform of torch.func."""
    if not all(isinstance(given, list | tuple) for given in (states, weights)):
        return False
    directions = 2 if rest[2] else 1
    tensors = [x, *states, *weights]
    same = len({(t.dtype, t.device) for t in tensors}) == 1 and x.dtype in (torch.float32, torch.float64)
    whole = len(weights) == layers * directions * (4 if biased else 2) and x.dim() == 3 and min(x.shape) > 0
    bare = not torch.is_autocast_enabled(x.device.type) and not torch._C._are_functorch_transforms_active()
    return same and whole and bare


# From the bias to the part of the pre-activations that comes from the input.
_Gates = Callable[[Tensor | None], Tensor]


def _lstm(gates: _Gates, weight: Tensor, biases: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
    output, cell = LSTM.apply(gates(biases[0] + biases[1] if biases else None), weight, *states)  # type: ignore[no-untyped-call]
    return output, output[-1], cell


def _gru(gates: _Gates, weight: Tensor, biases: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
    # The reset gate multiplies the second bias.
    into, own = biases or (None, weight.new_zeros(weight.shape[0]))
    output = GRU.apply(gates(into), weight, own, *states)  # type: ignore[no-untyped-call]
    return output, output[-1]


def _rnn(
    gates: _Gates, weight: Tensor, biases: list[Tensor], states: list[Tensor], *, tanh: bool
) -> tuple[Tensor, ...]:
    output = RNN.apply(gates(biases[0] + biases[1] if biases else None), weight, *states, tanh)  # type: ignore[no-untyped-call]
    return output, output[-1]


_LAYERS = {
    torch._VF.lstm: _lstm,
    torch._VF.gru: _gru,
    torch._VF.rnn_tanh: partial(_rnn, tanh=True),
    torch._VF.rnn_relu: partial(_rnn, tanh=False),
}


def _layers(
    run: Any, x: Tensor, states: Any, weights: Any, biased: bool, layers: int, dropout: float, train: bool, both: bool,
    batch_first: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    x = x.transpose(0, 1) if batch_first else x
    directions, own = 2 if both else 1, 4 if biased else 2
    last: list[Any] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            into, recurrent, *biases = weights[at * own : (at + 1) * own]
            gates = partial(functional.linear, x.flip(0) if direction else x, into)
            output, *final = run(gates, recurrent, biases, [state[at] for state in states])
            last.append(final)
            outputs.append(output.flip(0) if direction else output)
        x = torch.cat(outputs, 2) if both else outputs[0]
        if dropout and layer < layers - 1:
            x = torch.dropout(x, dropout, train)
    return x.transpose(0, 1) if batch_first else x, [torch.stack(found) for found in zip(*last, strict=True)]
