"""``rehearse``: what it does, that it leaves the model alone, and models that pass the check and cannot be trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine.trainer import PrivacyEngine
from torch import Tensor, nn

import dpcheck
from dpcheck.rehearsal import rehearse

BATCH = (torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_a_step_with_samples_an_empty_one_and_a_checkpoint_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, float]] = []
    step = PrivacyEngine.step

    def noted(engine: PrivacyEngine, batch: Any) -> Any:
        before = [p.detach().clone() for p in engine.model.parameters()]
        metrics = step(engine, batch)
        change = max(
            float((a - b).abs().max()) for a, b in zip(before, engine.model.state_dict().values(), strict=True)
        )
        taken.append((len(batch), change))
        return metrics

    monkeypatch.setattr(PrivacyEngine, "step", noted)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert rehearse(model, cross_entropy, BATCH) is None
    assert {size > 0 for size, _ in taken} == {True, False} and all(change > 0 for _, change in taken)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    turned = (BATCH[0].T.contiguous(), BATCH[1])
    unit = dpcheck.Unit(axes=(1, 0))
    assert rehearse(model, lambda m, b: cross_entropy(m, (b[0].T, b[1])), turned, unit=unit) is None


class Forgetful(nn.Module):
    """Its scale is in no state_dict, and moves with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {k: torch.zeros_like(v) for k, v in super().state_dict(*args, **kwargs).items()}


class Fragile(Forgetful):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no checkpoint for me")


class OfFullBatches(Forgetful):
    """Refuses the weights that a step has moved."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and float(self.linear.bias.detach().sum()) != 0:
            raise RuntimeError("these are not my weights")
        return self.linear(x)


def test_what_fails_is_said() -> None:
    assert "other losses" in str(rehearse(Forgetful(), cross_entropy, BATCH))
    assert "RuntimeError: no checkpoint for me" in str(rehearse(Fragile(), cross_entropy, BATCH))
    model = OfFullBatches()
    nn.init.zeros_(model.linear.bias)
    assert "not my weights" in str(rehearse(model, cross_entropy, BATCH))


def test_a_fix_that_cannot_be_trained_is_not_ok() -> None:
    model: Any = Fragile()
    model.linear = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    result = dpcheck.fix(model, cross_entropy, BATCH, unsafe=True)
    assert result.report.ok and not result.ok and "no checkpoint for me" in str(result.problem)
    good = dpcheck.fix(model.linear, cross_entropy, BATCH, unsafe=True)
    assert good.ok and good.problem is None
