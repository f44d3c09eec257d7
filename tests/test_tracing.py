"""Branches while tracing: on what the program made itself they are taken, on data they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcheck.capture import Capture, CaptureFailure, capture


def ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:1])


def padded(x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape[1] + 2, dtype=torch.bool)
    mask[:2] = True
    return mask


def counted(x: Tensor) -> Tensor:
    return torch.arange(3).remainder(2).cumsum(0)


def data(x: Tensor) -> Tensor:
    return x.mean().new_full((), 1.0) * x[0, 0]


def written(x: Tensor) -> Tensor:
    mask = torch.zeros(3)
    mask[1:].copy_(x[0, :2])
    return mask


def written_through_a_view(x: Tensor) -> Tensor:
    mask = torch.zeros(3)
    view = mask.view(3, 1)
    mask.add_(x[0, 0])
    return view


def drawn(x: Tensor) -> Tensor:
    return torch.zeros(3).bernoulli_(0.5)


class Branch(nn.Module):
    """Takes another way when the mask is set anywhere."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.mask = nn.Linear(4, 3), nn.Linear(4, 3), mask

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.mask(x).any() else self.b(x)


def captured(mask: Callable[[Tensor], Tensor]) -> Capture | CaptureFailure:
    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")

    return capture(Branch(mask), loss_fn, (torch.randn(5, 4), torch.randint(0, 3, (5,))))


@pytest.mark.parametrize("mask", [ones, padded, counted])
def test_a_branch_on_what_the_program_made_itself_is_captured(mask: Callable[[Tensor], Tensor]) -> None:
    result = captured(mask)
    assert isinstance(result, Capture)
    assert result.gradients["a.weight"] is not None and result.gradients["b.weight"] is None


@pytest.mark.parametrize("mask", [data, written, written_through_a_view, drawn])
def test_a_branch_on_data_or_chance_is_not(mask: Callable[[Tensor], Tensor]) -> None:
    result = captured(mask)
    assert isinstance(result, CaptureFailure)
    assert result.kind == "branch"
