"""Parameters that no loss reaches are frozen; nothing else changes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

ROWS, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Spare(nn.Module):
    """A layer that nothing reads, one whose output is thrown away, and a scale that is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(4, 3)
        self.aside = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        self.scale = nn.Parameter(torch.ones(()))
        self.tied = self.unused.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        self.aside(h)
        return self.head(h * self.scale.detach())


def test_what_no_loss_reaches_is_frozen_and_the_rest_stays() -> None:
    model = Spare()
    result: Any = dpcheck.fix(model, cross_entropy, (ROWS, Y), unsafe=True)
    frozen = {name for name, p in result.model.named_parameters() if not p.requires_grad}
    assert frozen == {"tied", "unused.bias", "scale"} | {f"aside.{i}.{k}" for i in "01" for k in ("weight", "bias")}
    assert result.ok and result.model.tied is result.model.unused.weight
    assert isinstance(result.model.aside[1], nn.GroupNorm), "its running statistics were written from data"
    found = {(c.module, c.applicability) for c in result.changes if c.code == "DP201"}
    assert found == {(path, "safe") for path in ("", "unused", "aside.0", "aside.1")}
    assert "tied, scale" in next(c.what for c in result.changes if c.module == "")
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(result.model(ROWS), model(ROWS))


def test_it_is_done_without_leave_to_change_the_function() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "other": nn.Linear(4, 3)})

    def loss_fn(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model["used"], batch)

    result = dpcheck.fix(model, loss_fn, (ROWS, Y))
    assert result.ok and result.loss_change == 0
    assert [p.requires_grad for p in result.model.parameters()] == [True, True, False, False]
