"""Gradients added into indexed places, where the places themselves do not depend on the samples."""

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from torch import nn

from dpcheck.testing import assert_sampler_correct, output_losses

TOKENS, WIDTH = 5, 3


class Table(nn.Module):
    """Adds what ``look(weight, x)`` finds in a table of positions to each sample."""

    def __init__(self, look, *shape):
        super().__init__()
        self.look, self.weight = look, nn.Parameter(torch.randn(*(shape or (7, WIDTH))))

    def forward(self, x):
        return (x + self.look(self.weight, x)).tanh()


def places(x):
    return torch.arange(TOKENS).flip(0) % 4


def rows(x):
    return places(x).unsqueeze(0).repeat(len(x), 1)


LOOKS = {
    "one row of places": lambda w, x: w[places(x)],
    "a row with an axis of one": lambda w, x: w[places(x)[None]],
    "places repeated for every sample": lambda w, x: w[rows(x)],
    "repeated, expanded": lambda w, x: w[places(x)[None].expand(len(x), -1)],
    "time first": lambda w, x: w[rows(x).t().contiguous()].transpose(0, 1),
    "two indices, one repeated": lambda w, x: w[rows(x)[..., None], torch.tensor([2, 0, 0])],
    "two indices, one for samples": lambda w, x: w[places(x)[None, :, None], torch.zeros(len(x), 1, WIDTH).long()],
    "a mask": lambda w, x: w[torch.tensor([True, False, True, True, False, True, True])],
    "behind an axis": lambda w, x: w.t()[:, rows(x)].permute(1, 2, 0),
    "index_select": lambda w, x: w.index_select(0, places(x)),
    "index_select, flat": lambda w, x: w.index_select(0, rows(x).flatten()).view_as(x),
    "gather": lambda w, x: w.expand(len(x), -1, -1).gather(1, rows(x)[..., None].expand(-1, -1, WIDTH)),
    "gather from one table": lambda w, x: w.gather(0, rows(x).flatten()[:, None].expand(-1, WIDTH)).view_as(x),
    "embedding": lambda w, x: nn.functional.embedding(rows(x), w),
    "of the first samples alone": lambda w, x: nn.functional.pad(
        w.gather(0, rows(x)[0, :, None].expand(-1, 2)), (0, 1)
    ),
    "samples in the columns": lambda w, x: w.t()[:, places(x)].t(),
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", LOOKS)
def test_places_without_samples(name, size):
    torch.manual_seed(size)
    model = Table(LOOKS[name]).double()
    assert_sampler_correct(model, torch.randn(size, TOKENS, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in LOOKS if name != "a mask"])
def test_they_have_samplers(name):
    model, batch = Table(LOOKS[name]), (torch.randn(4, TOKENS, WIDTH),)
    clipper = Clipper(model, output_losses, max_grad_norm=1.0)
    assert clipper.plan(batch) is not None, clipper.reason
