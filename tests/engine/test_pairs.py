"""Norms without the gradients, computed piece by piece: whatever the pieces, they are the norms."""

import pytest
import torch
from dpcheck.engine.sites import convolution, pairs
from dpcheck.engine.sites.base import every_site, square_norms_of
from torch import nn

from dpcheck.testing import assert_sampler_correct


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("length", [1, 2, pairs._BLOCK, pairs._BLOCK + 1, 2 * pairs._BLOCK, 70])
def test_ghost_norms_over_any_number_of_positions(lead, length):
    torch.manual_seed(0)
    left = torch.randn(4, *lead, 5, length, dtype=torch.float64)
    right = torch.randn(4, *lead, length, 3, dtype=torch.float64)
    expected = (left @ right).square().flatten(1).sum(1)
    torch.testing.assert_close(pairs.ghost_square_norms(left, right), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 10_000, 3_000_000])
def test_square_norms_keep_the_precision_of_float32(size):
    each = torch.rand(2, size, generator=torch.Generator().manual_seed(0)) + 0.5
    expected = each.double().square().sum(1)
    torch.testing.assert_close(square_norms_of(each).double(), expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [1, 100, 10_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (5, 4, 7, 8)),
        lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (5, 4, 3, 4)),
        lambda: (nn.Conv3d(2, 3, 2, padding=1), (5, 2, 3, 2, 3)),
        lambda: (nn.ConvTranspose1d(2, 3, 4, stride=3, output_padding=2, dilation=2), (5, 2, 4)),
    ],
)
def test_convolutions_by_pieces_of_the_batch(make, at_once, dtype, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "_PIECE_BYTES", at_once)
    layer, shape = make()
    for keep in (True, False):
        with every_site(keep):
            assert_sampler_correct(layer.to(dtype), torch.randn(*shape, dtype=dtype), method="graph")
