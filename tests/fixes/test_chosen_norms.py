"""Batch norm to what the user asks for: standardised filters, or statistics of public data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

Y, IMAGES = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 3, 8, 8)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network(**options: Any) -> nn.Sequential:
    """A convolution before a norm, one with something between, and one of single weights."""
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.ReLU()]
    layers += [nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*layers)


def standardised(weight: Tensor) -> Tensor:
    """Qiao et al. 2019, filter by filter."""
    rows = [(row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() for row in weight]
    return torch.stack(rows)


def test_the_filters_before_a_norm_are_standardised() -> None:
    model = network()
    result: Any = dpcheck.fix(model, cross_entropy, (IMAGES, Y), unsafe=True, batch_norm_to="standardised")
    assert result.ok and {c.module for c in result.changes if c.applied} == {"0", "1", "5", "7"}
    new = result.model
    assert isinstance(new[0], nn.Conv2d) and torch.equal(new[0].weight, model.get_submodule("0").weight)  # type: ignore[arg-type]
    assert {k for k in model.state_dict() if "running" not in k and "num_batches" not in k} == set(new.state_dict())
    weight, bias = new[0].weight, new[0].bias
    torch.testing.assert_close(new[0](IMAGES), F.conv2d(IMAGES, standardised(weight), bias, 2), rtol=1e-4, atol=1e-4)
    assert type(new[3]) is nn.Conv2d and type(new[6]) is nn.Conv2d
    assert dpcheck.verify(new, cross_entropy, (IMAGES, Y)).ok


def test_a_norm_that_is_not_replaced_leaves_its_convolution() -> None:
    layers = [nn.Conv2d(3, 1, 8), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 3)]
    result: Any = dpcheck.fix(
        nn.Sequential(*layers), cross_entropy, (IMAGES, Y), unsafe=True, batch_norm_to="standardised"
    )
    assert type(result.model[0]) is nn.Conv2d and not any(c.applied for c in result.changes)


@pytest.mark.parametrize("tracking", [True, False])
def test_statistics_of_public_data_make_it_an_affine_map(tracking: bool) -> None:
    model = network(track_running_stats=tracking)
    mean, variance = torch.randn(8, dtype=torch.float64), torch.rand(8) + 0.5
    given = {"1": (mean, variance)}
    result: Any = dpcheck.fix(model, cross_entropy, (IMAGES, Y), unsafe=True, statistics=given)
    assert result.ok and isinstance(result.model[5], nn.GroupNorm)
    x = torch.randn(2, 8, 3, 3)
    shape = (1, 8, 1, 1)
    expected = (x - mean.float().view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    torch.testing.assert_close(result.model.train()[1](x), expected)
    torch.testing.assert_close(result.model.eval()[1](x), expected)
    state = result.model.state_dict()
    assert torch.equal(state["1.running_var"], variance) and state["1.running_mean"].dtype == torch.float32


def test_statistics_that_fit_no_layer_are_refused() -> None:
    for given, words in (
        ({"2": (torch.zeros(8), torch.ones(8))}, "'2' is no batch norm that mixes samples"),
        ({"1": (torch.zeros(4), torch.ones(8))}, r"shapes \[4\] and \[8\], not \[8\]"),
    ):
        with pytest.raises(dpcheck.DpcheckError, match=words):
            dpcheck.fix(network(), cross_entropy, (IMAGES, Y), unsafe=True, statistics=given)
