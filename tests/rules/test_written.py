"""Registered state that a call leaves behind: buffers and parameters that the forward writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Layer, X, Y, cross_entropy, line_of, places
from torch import Tensor, nn

import dpcheck


class Average(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)  # HERE
        return h


class InPlace(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.queue[: h.shape[0]].copy_(h.detach())  # HERE
        return h


class ThroughData(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.mean.data.mul_(0.9).add_(h.detach().mean(0))  # HERE
        return h


class DataReplaced(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.mean.data = 0.9 * self.mean.data + h.detach().mean(0)  # HERE
        return h


class MadeOnTheFirstCall(Layer):
    def work(self, h: Tensor) -> Tensor:
        if self.mu is None:
            self.mu = h.detach().mean(0)  # HERE
        return h


class RegisteredOnTheFirstCall(Layer):
    def work(self, h: Tensor) -> Tensor:
        if not hasattr(self, "first"):
            self.register_buffer("first", h.detach().mean(0))  # HERE
        return h


class Ring(Layer):
    """A queue of keys as in momentum contrast: its pointer stops the capture, not the finding."""

    def work(self, h: Tensor) -> Tensor:
        start = int(self.place)
        self.queue[(torch.arange(h.shape[0]) + start) % 12] = h.detach()  # HERE
        self.place[0] = (start + h.shape[0]) % 12
        return h


class Codebook(Layer):
    """Vector quantisation with moving averages."""

    def work(self, h: Tensor) -> Tensor:
        nearest = torch.cdist(h, self.queue).argmin(1)
        with torch.no_grad():
            counts = F.one_hot(nearest, 12).to(h)
            self.queue.mul_(0.99).add_(0.01 * counts.t() @ h)  # HERE
        return h + (self.queue[nearest] - h).detach()


class Range(Layer):
    """A quantiser's range."""

    def work(self, h: Tensor) -> Tensor:
        self.mean.copy_(torch.maximum(self.mean, h.detach().amax(0)))  # HERE
        return h


@pytest.mark.parametrize(
    ("kind", "buffer"),
    [
        (Average, "mean"), (InPlace, "queue"), (ThroughData, "mean"), (DataReplaced, "mean"), (Ring, "queue"),
        (MadeOnTheFirstCall, "mu"), (RegisteredOnTheFirstCall, "first"), (Codebook, "queue"), (Range, "mean"),
    ],
)  # fmt: skip
def test_buffers_written_from_data(kind: type[Layer], buffer: str) -> None:
    model = kind()
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert ("DP301", line_of(kind)) in places(report)
    assert {b.name: b.kind for b in report.buffers}[buffer] == "data"
    assert not report.ok
    assert set(dict(model.named_buffers())) == {"mean", "queue", "place"}


class Steps(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.place += 1
        return h


class TableOnTheFirstCall(Layer):
    def work(self, h: Tensor) -> Tensor:
        if self.mu is None:
            self.mu = torch.arange(h.shape[1], dtype=torch.float32)
        return h + self.mu


@pytest.mark.parametrize("kind", [Steps, TableOnTheFirstCall])
def test_buffers_written_from_no_data(kind: type[Layer]) -> None:
    report = dpcheck.check(kind(), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics


class ParameterInPlace(Layer):
    def work(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(0.99)  # HERE
        return h


class ParameterThroughData(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.scale.data.add_(h.detach().mean(0))  # HERE
        return h


class ParameterReplaced(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.scale.data = self.scale.data + h.detach().mean(0)  # HERE
        return h


@pytest.mark.parametrize("kind", [ParameterInPlace, ParameterThroughData, ParameterReplaced])
def test_parameters_written_in_the_forward(kind: type[Layer]) -> None:
    model = kind()
    before = model.scale.detach().clone()
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert ("DP303", line_of(kind)) in places(report)
    assert torch.equal(model.scale, before)


class Rows(nn.Module):
    """An embedding by a function, with a bound on its rows or sparse gradients."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.head, self.options = nn.Parameter(torch.randn(7, 4)), nn.Linear(12, 3), options

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.embedding(ids, self.table, **self.options).flatten(1))  # HERE


def embedding(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(7, 4, **options), nn.Flatten(), nn.Linear(12, 3))


IDS = torch.tensor([[0, 1, 1], [2, 3, 4], [5, 6, 0], [1, 1, 1], [2, 2, 6], [3, 0, 5]])


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (embedding(max_norm=1.0), "DP302"), (lambda: Rows(max_norm=1.0), "DP302"),
        (embedding(sparse=True), "DP501"), (lambda: Rows(sparse=True), "DP501"),
    ],
    ids=["max_norm", "max_norm of a function", "sparse", "sparse of a function"],
)  # fmt: skip
def test_embeddings_that_write_or_are_sparse(make: Callable[[], nn.Module], code: str) -> None:
    model = make()
    report = dpcheck.check(model, cross_entropy, (IDS, Y))
    assert [d.code for d in report.diagnostics] == [code]
    line = line_of(Rows) if isinstance(model, Rows) else line_of_loss()
    assert places(report) == {(code, line)}


def line_of_loss() -> int:
    """A layer of torch is found where the user's code calls the model."""
    return line_of(cross_entropy, "model(batch[0])")
