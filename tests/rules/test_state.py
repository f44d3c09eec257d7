"""Python state that a call leaves behind: attributes, caches, objects outside the model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cases import Layer, X, Y, cross_entropy, line_of, places
from torch import Tensor, nn

import dpcheck


class AverageAttribute(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h - self.average
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)  # HERE
        return out


class AverageInPlace(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h - self.average.clone()
        with torch.no_grad():
            self.average.mul_(0.9).add_(h.mean(0))  # HERE
        return out


class List(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h + torch.stack(self.past).mean(0) if self.past else h
        self.past.append(h.detach().mean(0))  # HERE
        return out


class Queue(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h + sum(self.recent)
        self.recent.append(h.detach().mean(0))  # HERE
        return out


class ListKept(Layer):
    """Nothing reads it yet, but it grows with data."""

    def work(self, h: Tensor) -> Tensor:
        self.past.append(h.detach().mean(0))  # HERE
        return h


class NumberKept(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h * self.calls
        self.calls = self.calls + 1 + float(h.detach().sum())  # HERE
        return out


class LastRead(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h if self.latest is None else h * self.latest
        self.latest = h.detach().mean(0)  # HERE
        return out


class Tracker:
    mean: Tensor | float = 1.0


class InAnObject(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker()

    def work(self, h: Tensor) -> Tensor:
        out = h * self.tracker.mean
        self.tracker.mean = h.detach().mean(0)  # HERE
        return out


CARRY = [AverageAttribute, AverageInPlace, List, Queue, ListKept, NumberKept, LastRead, InAnObject]


@pytest.mark.parametrize("kind", CARRY)
def test_python_state_that_carries_data(kind: type[Layer]) -> None:
    model = kind()
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert (list(model.past), list(model.recent), model.calls, model.latest) == ([], [], 0, None)
    assert float(model.average.sum()) == 0 and getattr(model, "tracker", Tracker).mean == 1.0
    assert ("DP304", line_of(kind)) in places(report)
    assert {d.code for d in report.diagnostics} <= {"DP304", "DP902"}
    assert report.verdict != "independent" or kind is ListKept


class Counter(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * (1 + 1 / self.calls)


class Shapes(Layer):
    def work(self, h: Tensor) -> Tensor:
        if h.shape[1] not in self.tables:
            self.tables[h.shape[1]] = torch.ones(h.shape[1], h.shape[1]).tril()
        return h @ self.tables[h.shape[1]]


class FromWeights(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.latest = self.linear.weight.detach().norm()
        return h / self.latest


class LastActivation(Layer):
    def work(self, h: Tensor) -> Tensor:
        self.latest = h.detach()
        return h


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.arange(size) / size


class Cached(Layer):
    def work(self, h: Tensor) -> Tensor:
        return h + table(h.shape[1])


class Recorder(Layer):
    """Puts a hook in its place on the first call, as libraries do that record activations."""

    def work(self, h: Tensor) -> Tensor:
        if not self.linear._forward_hooks:
            self.linear.register_forward_hook(lambda *_: None)
        return h


@pytest.mark.parametrize("kind", [Counter, Shapes, FromWeights, LastActivation, Cached, Recorder])
def test_python_state_that_carries_no_data(kind: type[Layer]) -> None:
    model = kind()
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert report.ok, report.diagnostics
    assert any("latest batch (latest)" in note for note in report.notes) == (kind is LastActivation)
    assert (model.calls, model.past, model.tables, model.latest) == (0, [], {}, None)


def test_the_latest_batch_on_an_attribute_may_feed_the_loss() -> None:
    def with_penalty(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model, batch) + model.latest.square().mean(1)

    assert dpcheck.check(LastActivation(), with_penalty, (X, Y)).ok


def test_hooks_on_parameters_are_said_not_to_run() -> None:
    model = nn.Linear(4, 3)
    model.weight.register_hook(lambda grad: grad / grad.norm())
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert any("hooks on parameters (weight) do not run" in note for note in report.notes)


HISTORY: list[Tensor] = []


class OutsideTheModel(Layer):
    def work(self, h: Tensor) -> Tensor:
        out = h + HISTORY[-1] if HISTORY else h
        HISTORY.append(h.detach().mean(0))
        return out


def test_state_outside_the_model() -> None:
    HISTORY.clear()
    report = dpcheck.check(OutsideTheModel(), cross_entropy, (X, Y))
    assert "DP304" in {d.code for d in report.diagnostics}
    assert report.verdict == "mixing"


def test_a_count_outside_the_model_leaves_it_unproven() -> None:
    calls = []

    def annealed(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return cross_entropy(model, batch) * len(calls)

    report = dpcheck.check(nn.Linear(4, 3), annealed, (X, Y))
    assert report.verdict != "independent"
    assert any("at each call" in d.message for d in report.diagnostics)


def test_the_engine_refuses_what_is_remembered_outside_the_model() -> None:
    """One sample at a time would not help: each would still see what the others left behind."""
    calls = []

    def annealed(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return cross_entropy(model, batch) * len(calls)

    model = nn.Linear(4, 3)
    assert dpcheck.check(model, annealed, (X, Y)).method == "none"
    with pytest.raises(dpcheck.DpcheckError, match="cannot be trained privately as it is"):
        dpcheck.PrivacyEngine(
            model, annealed, torch.optim.SGD(model.parameters(), lr=0.1), torch.utils.data.TensorDataset(X, Y),
            expected_batch_size=2, max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=1,
        )  # fmt: skip
