"""Buffers that a forward writes from data: the fixed model leaves them as they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

BATCH = (torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Averaging(nn.Module):
    """Keeps a moving average and a count of what it sees, one of them in place."""

    mean: Tensor
    seen: Tensor
    steps: Tensor

    def __init__(self, centres: bool) -> None:
        super().__init__()
        self.linear, self.centres = nn.Linear(4, 3), centres
        for name, value in (("mean", torch.ones(4)), ("seen", torch.zeros(4)), ("steps", torch.zeros(()))):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        before = self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.seen += x.detach().abs().sum(0)
        self.steps += 1
        return self.linear(x - (self.mean if self.centres else before))


def test_what_is_written_from_data_is_dropped() -> None:
    model = nn.Sequential(Averaging(False), nn.ReLU())
    result = dpcheck.fix(model, cross_entropy, BATCH, unsafe=True)
    assert result.ok and {c.code for c in result.changes} == {"DP301"}
    change = result.changes[0]
    assert change.applied and change.applicability == "unsafe" and "mean, seen" in change.what
    fixed: Any = result.model[0]  # type: ignore[index]
    assert isinstance(fixed, Averaging)
    torch.testing.assert_close(result.model(BATCH[0]), model(BATCH[0]))
    assert torch.equal(fixed.mean, torch.ones(4)) and torch.equal(fixed.seen, torch.zeros(4)) and fixed.steps == 1
    assert not torch.equal(model[0].mean, torch.ones(4))
    assert list(result.model.state_dict()) == list(model.state_dict())
    assert not any(c.applied for c in dpcheck.fix(model, cross_entropy, BATCH).changes)


def test_a_statistic_that_is_used_at_once_still_mixes() -> None:
    result = dpcheck.fix(Averaging(True), cross_entropy, BATCH, unsafe=True)
    assert not result.ok and result.report.verdict == "mixing"
