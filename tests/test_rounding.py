"""Models whose gradients jump: an error of float32 there is told from a wrong sampler."""

from __future__ import annotations

import pytest
import torch
from dpcheck.engine.sites.matmul import MatmulSite
from torch import Tensor, nn

import dpcheck
from dpcheck.rounding import largest_jump, relative_error
from dpcheck.verification import copies


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Kinked(Smooth):
    """Scaled by the sign of a number of which float32 knows nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 + torch.sign(torch.sin(x.sum(1, keepdim=True) * 1e7)))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum(1)


def made(kind: type[Smooth]) -> tuple[Smooth, Tensor]:
    torch.manual_seed(0)
    return kind(), torch.randn(4, 6)


@pytest.mark.parametrize(("kind", "low", "high"), [(Smooth, 0.0, 1e-4), (Kinked, 0.1, 1e9)])
def test_jumps_are_those_of_the_model(kind, low, high):
    model, x = made(kind)
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert low <= largest_jump(model, loss, x, copies(model), 1e-2) <= high
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "ok"), [(Smooth, False), (Kinked, True)])
def test_an_error_in_float32_alone_counts_unless_rounding_makes_as_large_ones(monkeypatch, kind, ok):
    right = MatmulSite.per_sample

    def wrong(self: MatmulSite, *values: Tensor) -> Tensor:
        each = right(self, *values)
        return each * 1.02 if each.dtype is torch.float32 else each

    monkeypatch.setattr(MatmulSite, "per_sample", wrong)
    model, x = made(kind)
    proof = dpcheck.verify(model, loss, x)
    assert proof.ok == ok, proof
    assert any("rounding error" in note for note in proof.notes) == ok
    assert max(p.error_own_dtype for p in proof.parameters) > 1e-2


def test_an_error_in_float64_counts_in_every_model(monkeypatch):
    right = MatmulSite.per_sample
    monkeypatch.setattr(MatmulSite, "per_sample", lambda self, *values: right(self, *values) * 1.02)
    model, x = made(Kinked)
    assert not dpcheck.verify(model, loss, x).ok


def test_what_is_not_finite_is_infinitely_wrong():
    assert relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2), 0.0) == float("inf")
    assert relative_error(torch.tensor([1.0, 1.5]), torch.ones(2), 0.0) == 0.5
    assert relative_error(torch.empty(0), torch.empty(0), 0.0) == 0.0


class ByBatch(Smooth):
    """Rounds by the number of samples beside it, as kernels do, and amplifies it."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = x * (1 + len(x) * torch.finfo(x.dtype).eps)
        return super().forward(x) * (2 + torch.sign(torch.sin(rounded.sum(1, keepdim=True) * 1e7)))


def test_jumps_that_the_batch_makes_are_found(monkeypatch):
    monkeypatch.setattr("dpcheck.rounding._DRAWS", 0)
    model, x = made(ByBatch)
    assert largest_jump(model, loss, x, copies(model), 1e-2) >= 0.1
    smooth = made(Smooth)[0]
    assert largest_jump(smooth, loss, x, copies(smooth), 1e-2) <= 1e-4
