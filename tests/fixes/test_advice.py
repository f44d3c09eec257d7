"""What cannot be mended gets the reason and an expression to write, at the line of the finding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

BATCH = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Rolled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * x.roll(shifts=1, dims=[0]))


class Flipped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.7 * x + 0.3 * torch.flip(x, (0,)))


class Sorted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.sort(x, 0).values)


@pytest.mark.parametrize(
    ("kind", "why", "instead"),
    [
        (Rolled, "is another one's", "`x.roll(shifts=1, dims=[-1])`"),
        (Flipped, "is another one's", "`torch.flip(x, (-1,))`"),
        (Sorted, "told by its rank among the others", "`torch.sort(x, -1)`"),
    ],
)
def test_the_reason_and_the_same_within_a_sample_are_shown(kind: type[nn.Linear], why: str, instead: str) -> None:
    model = kind(4, 3)
    result = dpcheck.fix(model, cross_entropy, BATCH, unsafe=True)
    (change,) = result.changes
    assert not change.applied and change.applicability == "display-only" and result.report.verdict == "mixing"
    assert change.reason is not None and f"{__file__}:" in change.reason and why in change.reason
    assert change.reason.endswith(f"within a sample it is {instead}")
