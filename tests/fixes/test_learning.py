"""A fixed model that no longer learns is not ok, however clean its check is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck
from dpcheck.fixes import batch_norm
from dpcheck.fixes.learning import why_not_learning

BATCH = (torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Backwards(nn.Module):
    """Its output is that of a group norm, and its gradient points the wrong way."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x, 1, self.weight, self.bias)
        return 2 * y.detach() - y


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3), nn.BatchNorm1d(3))


def test_a_norm_that_trains_backwards_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    good = dpcheck.fix(net(), cross_entropy, BATCH, unsafe=True)
    assert good.ok and good.problem is None
    monkeypatch.setattr(batch_norm, "to_group_norm", lambda module, groups: Backwards(module))
    bad = dpcheck.fix(net(), cross_entropy, BATCH, unsafe=True)
    assert bad.report.ok and not bad.ok and bad.problem is not None
    assert bad.problem.endswith("lower the loss of the given model, and not that of the fixed one")


def test_one_that_learns_slowly_is_not_blamed() -> None:
    """With a softmax before it a layer needs many more steps."""
    slow = nn.Sequential(nn.Softmax(dim=1), nn.Linear(4, 3))
    assert why_not_learning(net(), slow, cross_entropy, BATCH) is None


def test_the_models_are_untouched_and_dropout_is_no_obstacle() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.9), nn.Linear(16, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert why_not_learning(model, model, cross_entropy, BATCH) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_falls_for_neither_blames_nobody() -> None:
    def constant(model: nn.Module, batch: Any) -> Tensor:
        return (0 * model(batch[0])).sum(1)

    class Refusing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not today")

    linear = nn.Linear(4, 3)
    assert why_not_learning(linear, linear, constant, BATCH) is None
    assert why_not_learning(Refusing(4, 3), linear, cross_entropy, BATCH) is None
    assert "not today" in str(why_not_learning(linear, Refusing(4, 3), cross_entropy, BATCH))
