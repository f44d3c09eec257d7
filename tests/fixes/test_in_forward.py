"""What a forward does itself: batch norm as a function has a fix, a scan gets advice."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

Y = torch.tensor([0, 1, 2, 0, 1, 2])
IMAGES, ROWS = torch.randn(6, 3, 8, 8), torch.randn(6, 4)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.batch_norm(self.conv(x), None, None, training=True).mean((2, 3)))


class Scanned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x) - x.cumsum(0))


def test_batch_norm_in_forward_becomes_group_norm() -> None:
    model = Functional()
    result = dpcheck.fix(model, cross_entropy, (IMAGES, Y), unsafe=True)
    (change,) = result.changes
    assert (change.code, change.applied, change.applicability) == ("DP102", True, "unsafe")
    assert result.report.ok and isinstance(result.model, Functional) and type(model) is Functional
    expected = model.head(F.group_norm(model.conv(IMAGES), 8).mean((2, 3)))
    torch.testing.assert_close(result.model(IMAGES), expected)
    (kept,) = dpcheck.fix(model, cross_entropy, (IMAGES, Y)).changes
    assert not kept.applied


def test_what_else_is_written_in_forward_gets_advice() -> None:
    result: Any = dpcheck.fix(Scanned(), cross_entropy, (ROWS, Y), unsafe=True)
    assert {(c.code, c.module, c.applied) for c in result.changes} == {("DP101", "norm", True), ("DP103", "", False)}
    assert __file__ in "".join(c.reason or "" for c in result.changes)
    assert isinstance(result.model.norm, nn.GroupNorm) and result.report.verdict == "mixing"
