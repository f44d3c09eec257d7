"""A small subject of audits, with every part of the engine in it, and sizes at which an audit takes a second."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from dpcheck.engine.auditing.audit import Audit, audit
from dpcheck.engine.auditing.draws import check_sampling
from dpcheck.engine.auditing.effort import Effort
from dpcheck.engine.auditing.exact import Check
from dpcheck.engine.auditing.noise import check_noise
from dpcheck.engine.auditing.sensitivity import check_clipping
from dpcheck.engine.auditing.subject import Claim, Subject, released
from dpcheck.engine.kinds import kind_of
from dpcheck.engine.sampling import Loader
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EFFORT = Effort(
    records=6,
    canaries=100,
    coordinates=30_000,
    draws=400_000,
    draw_steps=100,
    run_steps=100,
    run_records=2_000,
    tries=6,
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


SETTINGS: dict[str, Any] = {
    "expected_batch_size": 50, "max_grad_norm": 0.5, "delta": 1e-4, "noise_multiplier": 1.0, "steps": 60,
}  # fmt: skip


def audited(**given: Any) -> Audit:
    """A claim of rate 1/4 and noise multiplier 1, of which something may be changed."""
    return audit(Small(), loss_fn, records(), **{**SETTINGS, "check": False, "_effort": EFFORT, **given})


def part(name: str, **given: Any) -> list[Check]:
    """The checks of "clipping", "noise" or "sampling" alone, for the same claim."""
    s = {**SETTINGS, "clipping": "flat", **given}
    claim = Claim(
        200, s["expected_batch_size"], s["noise_multiplier"], s["max_grad_norm"], s["delta"], s["steps"],
        kind_of(s["clipping"]), False,
    )  # fmt: skip
    if name == "sampling":
        return check_sampling(claim, EFFORT)
    loader = Loader(records(), None, EFFORT.records)
    subject = Subject(Small(), loss_fn, loader, claim, EFFORT, method="auto")
    if name == "clipping":
        return check_clipping(subject)[0]
    base = released(subject.engine(subject.pool(), 0.0), range(subject.count))
    return check_noise(subject, base, EFFORT)
