"""Chance that decides: layers dropped by a draw, masks drawn with NumPy, branches that mix."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dpcheck
from dpcheck.capture import Capture, capture
from dpcheck.drawing import fixed_draws
from dpcheck.oracle import isolate

DRAWS: dict[str, Callable[[], float | Tensor]] = {
    "torch": lambda: torch.rand([]),
    "random": lambda: random.random(),
    "numpy": lambda: np.random.rand(),
}


class Dropped(nn.Module):
    """A layer that is left out by a draw, or one that mixes when the draw is below ``threshold``."""

    def __init__(self, draw: Callable[[], float | Tensor], threshold: float, mixes: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.draw, self.threshold, self.mixes = draw, threshold, mixes

    def forward(self, x: Tensor) -> Tensor:
        if self.draw() < self.threshold:
            x = x - x.mean(0) if self.mixes else self.layer(x)
        return self.head(x)


class Masked(nn.Module):
    """Steps of every sample replaced by a learned vector, as drawn with NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.mask = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        places = np.zeros(h.shape[:2], dtype=bool)
        for row in places:
            row[np.random.choice(np.arange(h.shape[1]), 2, replace=False)] = True
        h[torch.tensor(places)] = self.mask
        return self.head(h.mean(1))


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(4, *shape), torch.randint(0, 3, (4,))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_a_layer_left_out_by_chance_is_no_mixing_and_is_trained_without_a_frozen_graph(
    draw: str, threshold: float
) -> None:
    report = dpcheck.check(Dropped(DRAWS[draw], threshold, mixes=False), loss_fn, batch(4))
    assert (report.verdict, report.method) == ("independent", "single")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_a_branch_of_chance_that_mixes_is_found_however_rarely_it_is_taken(draw: str, threshold: float) -> None:
    model, example = Dropped(DRAWS[draw], threshold, mixes=True), batch(4)
    assert dpcheck.check(model, loss_fn, example).verdict == "mixing"
    assert isolate(model, loss_fn, example).mixing


def test_a_draw_that_cannot_be_fixed_leaves_a_branch_unproven() -> None:
    report = dpcheck.check(Dropped(random.random, 0.0, mixes=True), loss_fn, batch(4))
    assert (report.verdict, report.method) == ("unproven", "single")


def test_a_mask_drawn_with_numpy_for_each_sample_is_no_mixing() -> None:
    torch.manual_seed(0)
    model, example = Masked(), batch(6, 4)
    assert not isolate(model, loss_fn, example).mixing
    report = dpcheck.check(model, loss_fn, example)
    assert (report.verdict, report.method) == ("independent", "single")


def test_a_masked_assignment_is_captured_with_the_gradients_of_the_assignment() -> None:
    torch.manual_seed(0)
    mask = torch.rand(4, 6) < 0.5

    class Fixed(Masked):
        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            h[mask] = self.mask
            h[:, 0] = 0.0
            return self.head(h.mean(1))

    model, example = Fixed(), batch(6, 4)
    result = capture(model, loss_fn, example)
    assert isinstance(result, Capture)
    parameters = list(model.parameters())
    with torch.no_grad():
        losses, *gradients = pytree.tree_leaves(result.graph(*parameters, *example, torch.ones(4)))
    want = loss_fn(model, example)
    torch.testing.assert_close(losses, want)
    for got, true in zip(gradients, torch.autograd.grad(want.sum(), parameters), strict=False):
        torch.testing.assert_close(got, true)


def test_a_seed_that_the_model_draws_and_keeps_is_no_data() -> None:
    class Reseeded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last = nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.seed()
            return self.head(F.dropout(x, 0.1))

    assert dpcheck.check(Reseeded(), loss_fn, batch(4)).verdict == "independent"


def test_draws_are_fixed_only_within_the_block_and_leave_the_generators_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy()
    with fixed_draws(0.25) as draws:
        assert random.random() == 0.25 and random.randint(0, 7) == 2 and random.choice("abcd") == "b"
        assert np.random.rand(2, 3).tolist() == [[0.25] * 3] * 2
        assert np.random.choice(5, 2, replace=False).tolist() == [0, 1]
        assert np.random.randint(8) == 2 and np.random.uniform(2, 4) == 2.5
    assert draws.called == ["random", "randint", "choice", "rand", "choice", "randint", "uniform"]
    assert not draws.escaped
    assert before[0] == random.getstate() and np.array_equal(before[1], np.random.get_state()[1])
    assert len({random.random() for _ in range(3)}) == 3 and len(set(np.random.rand(3))) == 3
