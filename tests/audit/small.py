"""A small subject of audits, with every part of the engine in it, and sizes at which an audit takes a second."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from dpcheck.engine.auditing.audit import Audit, audit
from dpcheck.engine.auditing.effort import Effort
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EFFORT = Effort(
    records=6, canaries=100, coordinates=30_000, draws=400_000, draw_steps=100, run_steps=100, run_records=2_000
)


class Small(nn.Module):
    """A table of which most rows are never looked up, and layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.hidden = nn.Linear(11, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(torch.cat([self.table(ids).mean(1), x], 1))))


def loss_fn(model: Any, batch: Any) -> Tensor:
    ids, x, y = batch
    return F.cross_entropy(model(ids, x), y, reduction="none")


def records(count: int = 200) -> TensorDataset:
    return TensorDataset(torch.randint(0, 10, (count, 4)), torch.randn(count, 3), torch.randint(0, 3, (count,)))


def audited(**given: Any) -> Audit:
    """A claim of rate 1/4 and noise multiplier 1, of which something may be changed."""
    settings = {
        "expected_batch_size": 50, "max_grad_norm": 0.5, "delta": 1e-4, "noise_multiplier": 1.0, "steps": 60,
        "check": False, "_effort": EFFORT,
    }  # fmt: skip
    return audit(Small(), loss_fn, records(), **{**settings, **given})
