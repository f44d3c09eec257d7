"""Random programs: a model made of named steps on a [B, T, D] tensor, in any layout, with a per-sample loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from steps import PLANAR, STEPS, Weights
from torch import Tensor, nn

# No length equals a batch size that the checks use (1, 2, 4, 5, 7): a program may not branch on shapes by accident.
T, D, CLASSES = 3, 6, 6

# How the [B, T, D] tensor lies while a step runs; the last entry folds two axes, so that B stands at any place.
LAYOUTS: dict[str, tuple[tuple[int, int, int], str | None]] = {
    "btd": ((0, 1, 2), None), "tbd": ((1, 0, 2), None), "tdb": ((1, 2, 0), None), "bdt": ((0, 2, 1), None),
    "dbt": ((2, 0, 1), None), "(bt)d": ((0, 1, 2), "front"), "(tb)d": ((1, 0, 2), "front"), "b(td)": ((0, 1, 2), "back"),
    "d(bt)": ((2, 0, 1), "back"), "t(bd)": ((1, 0, 2), "back"), "(td)b": ((1, 2, 0), "front"),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step: its name in :data:`STEPS`, the layout around it, and the axis it works on."""

    name: str
    layout: str
    axis: int


@dataclass(frozen=True)
class Program:
    steps: tuple[Step, ...]
    loss: str

    def __str__(self) -> str:
        return " | ".join(f"{s.name}[{s.layout}, {s.axis}]" for s in self.steps) + f" -> {self.loss}"


class Model(nn.Module):
    """Runs a program. Holds weights for every kind of step, of which a program uses some."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.first = nn.Linear(D, D)
        self.w = Weights()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.first(x)
        for step in self.program.steps:
            h = self._run_step(step, h, y)
        return h

    def _run_step(self, step: Step, h: Tensor, y: Tensor) -> Tensor:
        order, fold = LAYOUTS[step.layout]
        z = h.permute(order)
        shape = z.shape
        if fold == "front":
            z = z.flatten(0, 1)
        elif fold == "back":
            z = z.flatten(1, 2)
        z = STEPS[step.name](z, step.axis % z.dim(), self.w, y)
        inverse = [order.index(k) for k in range(3)]
        return z.reshape(shape).permute(inverse)


def _pooled(h: Tensor) -> Tensor:
    return h.mean(1)


LOSSES: dict[str, Any] = {
    "cross_entropy": lambda h, y: F.cross_entropy(_pooled(h), y, reduction="none"),
    "token_cross_entropy": lambda h, y: F.cross_entropy(h.transpose(1, 2), y[:, None].expand(-1, T), reduction="none").sum(1),
    "ignore_index": lambda h, y: F.cross_entropy(h.transpose(1, 2), y[:, None].expand(-1, T), reduction="none",
                                                 ignore_index=1).mean(1),
    "smoothed": lambda h, y: F.cross_entropy(_pooled(h), y, reduction="none", label_smoothing=0.1),
    "class_weights": lambda h, y: F.cross_entropy(_pooled(h), y, torch.arange(1.0, 7.0, dtype=h.dtype), reduction="none"),
    "soft_targets": lambda h, y: F.cross_entropy(_pooled(h), F.one_hot(y, CLASSES).to(h.dtype), reduction="none"),
    "mse": lambda h, y: F.mse_loss(_pooled(h), F.one_hot(y, CLASSES).to(h.dtype), reduction="none").mean(1),
    "bce": lambda h, y: F.binary_cross_entropy_with_logits(h.flatten(1), (h.detach() > 0).to(h.dtype).flatten(1),
                                                           reduction="none").sum(1),
    "smooth_l1": lambda h, y: F.smooth_l1_loss(h.sum((1, 2)), y.to(h.dtype), reduction="none"),
    "cosine": lambda h, y: 1 - F.cosine_similarity(h[:, 0], h[:, -1] + 1, dim=-1),
    "gathered": lambda h, y: -h[torch.arange(h.shape[0]), 1].log_softmax(-1).gather(1, y[:, None])[:, 0],
    "square": lambda h, y: h.square().flatten(1).sum(1),
    "batch_normalised": lambda h, y: (F.cross_entropy(_pooled(h), y, reduction="none") / h.shape[0]),
    "contrastive": lambda h, y: F.cross_entropy(_pooled(h) @ _pooled(h).t(), torch.arange(len(y)), reduction="none"),
    "masked_mean": lambda h, y: (h.square().mean((1, 2)) * (y > 0)) / (y > 0).sum().clamp(min=1),
    "balanced": lambda h, y: F.cross_entropy(
        _pooled(h), y, 1 / (1 + F.one_hot(y, CLASSES).sum(0).to(h.dtype)), reduction="none"),
}  # fmt: skip
MIXING_LOSSES = frozenset({"batch_normalised", "contrastive", "masked_mean", "balanced"})


def loss_of(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return LOSSES[model.program.loss](model(x, y), y)  # type: ignore[no-any-return]


def batch_of(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, T, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def build(program: Program) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Model(program).double()


@st.composite
def programs(draw: st.DrawFn, longest: int = 4) -> Program:
    """Programs of up to ``longest`` steps; about half of them keep the batch in front, where most steps are clean."""
    tidy = draw(st.booleans())
    steps = []
    for _ in range(draw(st.integers(1, longest))):
        names = sorted(n for n in STEPS if not (tidy and n.startswith("!")))
        name = draw(st.sampled_from(names))
        layouts = [k for k in LAYOUTS if (name in PLANAR) <= ("(" in k)]
        if tidy:
            layouts = [k for k in layouts if k in ("btd", "bdt", "b(td)")]
        layout = draw(st.sampled_from(layouts))
        axis = draw(st.integers(1 if tidy else 0, 1 if "(" in layout else 2))
        steps.append(Step(name, layout, axis))
    loss = draw(st.sampled_from(sorted(LOSSES.keys() - MIXING_LOSSES if tidy else LOSSES)))
    return Program(tuple(steps), loss)
