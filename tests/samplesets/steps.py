"""What the steps of random programs share: their tables, and weights to work with.

A step maps a rank-2 or rank-3 tensor and one of its axes to a tensor of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MOST = 48


class Weights(nn.Module):
    """Weights of every kind, cut to the size that a step needs."""

    mean: Tensor
    variance: Tensor
    picks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.randn(MOST, MOST) * 0.4)
        self.vector = nn.Parameter(torch.randn(MOST) * 0.5 + 1)
        self.kernel = nn.Parameter(torch.randn(MOST, MOST, 3) * 0.3)
        self.table = nn.Embedding(8, MOST)
        self.by_count = nn.Embedding(8, MOST, scale_grad_by_freq=True)
        self.sparse = nn.Embedding(8, MOST, sparse=True)
        self.register_buffer("mean", torch.linspace(-1, 1, MOST))
        self.register_buffer("variance", torch.linspace(0.5, 2, MOST))
        self.register_buffer("picks", torch.arange(MOST).flip(0) % 5)


Run = Callable[[Tensor, int, Weights, Tensor], Tensor]
STEPS: dict[str, Run] = {}
PLANAR: set[str] = set()
"""Steps for matrices only."""
RARE: set[str] = set()
"""Steps that call an op which models seldom use, drawn seldom."""


def step(run: Run) -> Run:
    STEPS[run.__name__.rstrip("_")] = run
    return run


def planar(run: Run) -> Run:
    PLANAR.add(run.__name__.rstrip("_"))
    return step(run)


def rare(run: Run) -> Run:
    RARE.add(run.__name__.rstrip("_"))
    return step(run)


def add(names: Iterable[str], make: Callable[[str], Run], *, prefix: str = "", seldom: bool = False) -> None:
    """Registers a table of steps."""
    for name in names:
        STEPS[prefix + name] = make(name)
        if seldom:
            RARE.add(prefix + name)


def line(of: Tensor, size: int, axis: int, rank: int) -> Tensor:
    """The first ``size`` numbers of a vector, lying along ``axis``."""
    return of[:size].reshape([size if k == axis else 1 for k in range(rank)])
