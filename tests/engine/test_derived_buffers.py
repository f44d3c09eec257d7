"""Buffers that a forward fills from shapes and constants: written as the forward would, and seen by the next plan."""

import pytest
import torch
from dpcheck.engine import clipped_grads
from dpcheck.engine.clipping import Clipper
from torch import nn

from dpcheck.testing import assert_sampler_correct


class Positions(nn.Module):
    """Keeps a table of distances, made anew when the sequence has another length."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("table", torch.zeros(1, 1))
        self.made = 0

    def forward(self, x):
        n = x.shape[1]
        if self.table.shape[1] != n:
            at = torch.arange(n, dtype=x.dtype)
            self.table = (at[:, None] - at).abs()
        return (self.table @ (x * self.weight)).sum(2)


def loss(model, x):
    return model(x).square().sum(1)


def test_a_table_of_another_size_replaces_the_old_one():
    torch.manual_seed(0)
    model, x = Positions(), torch.randn(4, 5, 3)
    clipper = Clipper(model, loss, max_grad_norm=1.0)
    first = clipper(x)
    assert clipper.method == "graph"
    assert model.table.shape == (5, 5)
    assert "table" in dict(model.named_buffers())
    again, other = clipper(x), clipper(x[:, :2])
    torch.testing.assert_close(again.norms, first.norms)
    torch.testing.assert_close(again.grads, first.grads)
    assert model.table.shape == (2, 2)
    torch.testing.assert_close(other.norms, clipped_grads(Same(model), loss, x[:, :2])[1])


class Same(nn.Module):
    """The same weights in a fresh model."""

    def __init__(self, model):
        super().__init__()
        self.inner = Positions()
        self.inner.load_state_dict({"weight": model.weight.detach(), "table": torch.zeros(1, 1)})

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("length", [1, 4])
def test_its_gradients(length):
    torch.manual_seed(0)
    assert_sampler_correct(Positions().double(), torch.randn(4, length, 3, dtype=torch.float64), method="graph")
