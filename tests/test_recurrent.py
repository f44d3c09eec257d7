"""Recurrent layers by two ops: equal to torch's own, small graphs, and what cannot be fused still right."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from dpcheck.engine import clipped_grads
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dpcheck
from dpcheck.capture import Capture, capture
from dpcheck.recurrent import FusedRecurrence
from dpcheck.testing import assert_sampler_correct

SIZES = st.integers(1, 4)


KINDS = {
    "lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": partial(nn.RNN, nonlinearity="relu"),
}  # fmt: skip


def _gradients(layer: Any, x: Tensor, states: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    out, last = layer(x, tuple(states) if len(states) > 1 else states[0])
    final = list(last) if len(states) > 1 else [last]
    loss = out.sin().sum() + sum((i + 1) * state.exp().sum() for i, state in enumerate(final))
    return [out, *final, *torch.autograd.grad(loss, [x, *states, *layer.parameters()])]


@given(
    st.sampled_from(list(KINDS)), st.sampled_from([torch.float32, torch.float64]), SIZES, SIZES, SIZES, SIZES,
    st.integers(1, 2), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_as_torch_computes_it(kind, dtype, steps, batch, width, hidden, layers, both, bias, batch_first, dropout):
    torch.manual_seed(0)
    options: dict[str, Any] = {"dropout": dropout if layers > 1 else 0.0, "batch_first": batch_first, "bias": bias}
    layer = KINDS[kind](width, hidden, layers, bidirectional=both, dtype=dtype, **options)
    shape = (batch, steps, width) if batch_first else (steps, batch, width)
    x, state = torch.randn(shape, dtype=dtype).requires_grad_(), (layers * (1 + both), batch, hidden)
    states = [torch.randn(state, dtype=dtype).requires_grad_() for _ in range(2 if kind == "lstm" else 1)]
    expected = _gradients(layer, x, states)
    with FusedRecurrence():
        found = _gradients(layer, x, states)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-4
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[0].square().mean((1, 2))


def _nodes(kind: str, length: int) -> int:
    found = capture(KINDS[kind](3, 4, 2, batch_first=True), _loss, torch.randn(5, length, 3))
    assert isinstance(found, Capture)
    return len(found.graph.graph.nodes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_does_not_grow_with_the_sequence(kind):
    assert _nodes(kind, 20) == _nodes(kind, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}, {"proj_size": 2}])
def test_samplers(kind, options):
    if "proj_size" in options and kind != "lstm":
        options = {"dropout": 0.5, "num_layers": 2}
    torch.manual_seed(0)
    model = KINDS[kind](3, 4, batch_first=True, dtype=torch.float64, **options)
    assert_sampler_correct(model, torch.randn(5, 6, 3, dtype=torch.float64), method="graph")


class Residual(nn.LSTM):
    """Writes to what the layer returns."""

    def forward(self, x: Tensor) -> Any:
        out, (hidden, cell) = super().forward(x)
        out += x
        cell *= 2
        return out, (hidden, cell)


def test_outputs_may_be_written_to():
    torch.manual_seed(0)
    model, x = Residual(3, 3, batch_first=True).double(), torch.randn(4, 5, 3, dtype=torch.float64)
    assert_sampler_correct(model, x, method="graph")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_taken_for_time_mixes(kind):
    report = dpcheck.check(KINDS[kind](3, 4), _loss, torch.randn(5, 6, 3))
    assert report.verdict == "mixing"


class Penalised(nn.LSTM):
    """Its gradient with respect to the input is part of the loss: the backward itself is differentiated."""

    def penalty(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        out = self(x)[0].square().sum((1, 2))
        slope = torch.autograd.grad(out.sum(), x, create_graph=True)[0]
        return out + slope.square().sum((1, 2))


def test_a_penalty_on_the_gradient_is_exact():
    torch.manual_seed(0)
    model, x = Penalised(3, 4, batch_first=True).double(), torch.randn(4, 5, 3, dtype=torch.float64)

    def loss(model: Any, x: Tensor) -> Tensor:
        return model.penalty(x)

    grads, norms = clipped_grads(model, loss, x, max_grad_norm=0.1)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(4):
        own = torch.autograd.grad(loss(model, x[i : i + 1]).sum(), list(model.parameters()))
        norm = torch.stack([g.norm() for g in own]).norm()
        torch.testing.assert_close(norms[i], norm)
        for name, g in zip(total, own, strict=True):
            total[name] += g * (0.1 / norm).clamp(max=1)
    torch.testing.assert_close(grads, total, rtol=1e-9, atol=1e-12)
