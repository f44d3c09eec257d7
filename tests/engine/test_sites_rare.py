"""Parameters that reach the loss by lookups, additions into places, transforms and pads: against each sample alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dpcheck.testing import assert_sampler_correct

SIZES = (1, 4)


class With(nn.Module):
    """``function(parameter, x)``."""

    def __init__(self, function, *shape):
        super().__init__()
        self.parameter, self.function = nn.Parameter(torch.randn(*shape, dtype=torch.float64)), function

    def forward(self, x):
        return self.function(self.parameter, x)


def wide(rows, *shape):
    """A parameter of one sample, for each of them."""
    return rows.expand(*shape, *rows.shape)


def rows_of(i):
    return torch.arange(len(i))[:, None]


LOOKUPS = {
    "gather": (lambda p, i: wide(p, len(i)).gather(1, i), (7,)),
    "gather of rows": (lambda p, i: wide(p, len(i)).gather(1, i[..., None].expand(-1, -1, 5)), (7, 5)),
    "take along": (lambda p, i: torch.take_along_dim(p[None], i, 1), (7,)),
    "index": (lambda p, i: p[i], (7, 5)),
    "index of the second axis": (lambda p, i: p[:, i].movedim(1, 0), (5, 7)),
    "index select": (lambda p, i: p.index_select(0, i.flatten()).view(*i.shape, -1), (7, 5)),
    "scatter add": (lambda p, i: torch.zeros(len(i), 9).double().scatter_add(1, i, wide(p, len(i))), (3,)),
    "index add": (
        lambda p, i: torch.zeros(len(i), 9).double().index_add(1, torch.tensor([0, 2, 2]), wide(p, len(i)) * i), (3,)
    ),
    "index put": (
        lambda p, i: torch.zeros(len(i), 9).double().index_put((rows_of(i), i), wide(p, len(i)), accumulate=True), (3,)
    ),
}  # fmt: skip
SIGNALS = {
    "complex filter": (lambda p, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(p), n=6), (4, 2)),
    "two-dimensional transform": (lambda p, x: torch.fft.fft2(x * p).abs(), (3, 6)),
    "short-time transform": (
        lambda p, x: torch.stft(x[:, 0] * p, 4, return_complex=True, window=torch.ones(4).double()).abs(), (6,)
    ),
    "complex product": (lambda p, x: (x.to(torch.complex128) @ torch.complex(p, -p)).abs(), (6, 3)),
    "padded parameter": (lambda p, x: x * F.pad(p, (1, 2)), (3,)),
    "reflected": (lambda p, x: F.conv1d(F.pad(x, (1, 1), mode="reflect"), p), (2, 3, 3)),
    "circular": (lambda p, x: F.pad(x * p, (1, 1), mode="circular"), (6,)),
    "replicated": (lambda p, x: F.pad(x * p, (1, 1), mode="replicate"), (6,)),
    "RMS norm": (lambda p, x: F.rms_norm(x, (6,), p), (6,)),
    "folded": (lambda p, x: F.fold(F.unfold(x[:, None] * p, 2), (3, 6), 2), (6,)),
    "resampled parameter": (lambda p, x: x * F.interpolate(p[None, None], size=6, mode="linear")[0, 0], (3,)),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups(name, size):
    torch.manual_seed(size)
    function, shape = LOOKUPS[name]
    # Repeated places within a sample and between samples.
    assert_sampler_correct(With(function, *shape), torch.randint(0, 4, (size, 3)), method="graph")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SIGNALS)
def test_signals(name, size):
    torch.manual_seed(size)
    function, shape = SIGNALS[name]
    assert_sampler_correct(With(function, *shape), torch.randn(size, 3, 6, dtype=torch.float64), method="graph")


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_whose_bias_is_used_at_every_step(kind):
    torch.manual_seed(0)
    model = kind(3, 4, batch_first=True).double()
    assert_sampler_correct(model, torch.randn(3, 4, 3, dtype=torch.float64), method="graph")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm1d(3, eps=0.5)], ids=str)
def test_batch_norm_with_constant_statistics(layer, size):
    x = torch.randn(size, 3, *[4] * (2 if isinstance(layer, nn.BatchNorm2d) else 0), dtype=torch.float64)
    layer.running_mean.copy_(torch.randn(3))
    layer.running_var.copy_(torch.rand(3) + 0.5)
    assert_sampler_correct(nn.Sequential(nn.Linear(x.shape[-1], x.shape[-1]), layer.eval()).double(), x, method="graph")
