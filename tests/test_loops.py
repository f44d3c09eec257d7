"""Models that loop over the samples of a batch: their gradients are collected by additions, term by term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from torch import Tensor, nn

import dpcheck


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.layer = nn.Parameter(torch.randn(5)), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.row(row, x) for row in x])

    def row(self, row: Tensor, x: Tensor) -> Tensor:
        return torch.dot(self.layer(row), self.weight)


class WithSum(Loop):
    """One contraction over the batch, and terms of single samples beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) @ self.weight) * super().forward(x)


class LooksAtTheFirst(Loop):
    def row(self, row: Tensor, x: Tensor) -> Tensor:
        return super().row(row, x) * x[0].sum()


class Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.clone(), b.clone()

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return (first + second).tanh(), second


class MeetsInTheBackward(Loop):
    def forward(self, x: Tensor) -> Tensor:
        first, second, *rest = [self.layer(row) for row in x]
        return torch.stack([torch.dot(row, self.weight) for row in (*Bounded.apply(first, second), *rest)])  # type: ignore[no-untyped-call]


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Loop, WithSum])
def test_a_loop_over_samples_is_no_mixing(kind: type[Loop]) -> None:
    model, x = kind().double(), torch.randn(6, 5, dtype=torch.float64)
    assert dpcheck.check(model, square, x).verdict == "unproven"
    clipper = Clipper(model, square, max_grad_norm=0.7)
    found = clipper(x)
    assert clipper.method == "vmap"
    assert "add" in clipper.reason
    alone = Clipper(model, square, max_grad_norm=0.7, method="single")(x)
    torch.testing.assert_close(found.norms, alone.norms)
    torch.testing.assert_close(found.grads, alone.grads)


@pytest.mark.parametrize("kind", [LooksAtTheFirst, MeetsInTheBackward])
def test_samples_that_meet_in_a_loop_do(kind: type[Loop]) -> None:
    assert dpcheck.check(kind().double(), square, torch.randn(6, 5, dtype=torch.float64)).verdict == "mixing"
