"""What the catalogue's tests share: a small model, its loss, and where a finding is expected."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Net(nn.Module):
    """Two layers with ``middle`` between them."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(4, 8), nn.Linear(8, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)))


class Layer(nn.Module):
    """A linear layer with state of every kind."""

    mean: Tensor
    queue: Tensor
    place: Tensor
    mu: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("queue", torch.zeros(12, 3))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.register_buffer("mu", None)
        self.average, self.past, self.latest = torch.zeros(3), [], None
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.calls, self.tables = 0, {}

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self.linear(x) * self.scale)

    def work(self, h: Tensor) -> Tensor:
        raise NotImplementedError


def line_of(thing: Any, mark: str = "# HERE") -> int:
    """The line of a function or class that ends in ``mark``."""
    lines, first = inspect.getsourcelines(thing)
    (at,) = [i for i, line in enumerate(lines) if mark in line]
    return first + at


def places(report: dpcheck.Report) -> set[tuple[str, int | None]]:
    """Code and line of every finding."""
    return {(d.code, d.location.line if d.location else None) for d in report.diagnostics}
