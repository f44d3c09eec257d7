"""An engine of a few microseconds a step, whose clipper can be watched, killed and made to fail."""

from __future__ import annotations

from typing import Any

import torch
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.trainer import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Line(nn.Module):
    """A loss that is linear in the parameters, beside one that may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] @ self.a + x[:, 3:] @ self.b


def loss_fn(model: Any, batch: Any) -> Tensor:
    return model(batch[0])


class Closed:
    """Clips :class:`Line`, whose gradients are the records. ``before`` is called before records are looked at."""

    method, reason = "closed form", ""

    def __init__(self, model: Line, loss_fn: Any, *, max_grad_norm: float, **others: Any) -> None:
        self.model, self.max_grad_norm = model, max_grad_norm

    def before(self, batch: Any) -> None:
        """Nothing."""

    def __call__(self, batch: Any, weights: Tensor) -> Clipped:
        self.before(batch)
        x = batch[0]
        norms = x.norm(dim=1)
        total = (x * (weights * (self.max_grad_norm / norms.clamp_min(1e-30)).clamp(max=1)).unsqueeze(1)).sum(0)
        grads = {"a": total[:3], "b": total[3:]}
        return Clipped({n: g for n, g in grads.items() if getattr(self.model, n).requires_grad}, norms, norms)


def engine(
    *, clipper: Any = Closed, model: Line | None = None, kind: type[TensorDataset] = TensorDataset, **given: Any
) -> PrivacyEngine:
    """An engine on 40 records of five numbers."""
    model = model or Line()
    records = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    fixed: dict[str, Any] = {
        "expected_batch_size": 8, "max_grad_norm": 1.0, "delta": 1e-3, "noise_multiplier": 1.0, "steps": 100_000,
    }  # fmt: skip
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.5)
    return PrivacyEngine(model, loss_fn, optimizer, kind(records), check=False, _clipper=clipper, **{**fixed, **given})
