"""Random programs: a model made of named steps on a [B, T, D] tensor, in any layout, with a per-sample loss."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from hypothesis import strategies as st
from losses import CLASSES, LOSSES, MIXING, UNPROVEN, D, T
from steps import PLANAR, RARE, STEPS, Weights
from torch import Tensor, nn

for _kind in ("simple", "layer", "model", "matrix", "image", "writing", "backward", "rare"):
    importlib.import_module(f"{_kind}_steps")  # registers its steps

# How the [B, T, D] tensor lies while a step runs; the last entry folds two axes, so that B stands at any place.
LAYOUTS: dict[str, tuple[tuple[int, int, int], str | None]] = {
    "btd": ((0, 1, 2), None), "tbd": ((1, 0, 2), None), "tdb": ((1, 2, 0), None), "bdt": ((0, 2, 1), None),
    "dbt": ((2, 0, 1), None), "(bt)d": ((0, 1, 2), "front"), "(tb)d": ((1, 0, 2), "front"),
    "b(td)": ((0, 1, 2), "back"), "d(bt)": ((2, 0, 1), "back"), "t(bd)": ((1, 0, 2), "back"),
    "(td)b": ((1, 2, 0), "front"),
}  # fmt: skip
TIDY = ("btd", "bdt", "b(td)")


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


def program(text: str) -> Program:
    """The program that prints as ``text``."""
    steps, _, loss = text.partition(" -> ")
    found = re.findall(r"(\S+?)\[(\S+), (\d)\]", steps)
    return Program(tuple(Step(name, layout, int(axis)) for name, layout, axis in found), loss)


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


def loss_of(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return {**LOSSES, **UNPROVEN}[model.program.loss](model(x, y), y)


def batch_of(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, T, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def build(program: Program) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Model(program).double()


def random_program(rng: Random, longest: int = 4) -> Program:
    """Up to ``longest`` steps; about half of the programs keep the batch in front, where most steps are clean."""
    tidy = rng.random() < 0.5
    names = sorted(n for n in STEPS if not (tidy and "!" in n))
    common, seldom = [n for n in names if n not in RARE], [n for n in names if n in RARE]
    chosen = [rng.choice(seldom if rng.random() < 0.3 else common) for _ in range(rng.randint(1, longest))]
    losses = sorted(LOSSES.keys() - MIXING) if tidy else [*LOSSES, *UNPROVEN]
    return Program(tuple(placed(rng, name, tidy) for name in chosen), rng.choice(losses))


def placed(rng: Random, name: str, tidy: bool = False) -> Step:
    """The step in any layout that it works in, on any axis."""
    layout = rng.choice([k for k in (TIDY if tidy else LAYOUTS) if (name in PLANAR) <= ("(" in k)])
    return Step(name, layout, rng.randint(1 if tidy else 0, 1 if "(" in layout else 2))


def program_with(rng: Random, names: Sequence[str], losses: Sequence[str]) -> Program:
    """One of the steps ``names`` (which a test is about), perhaps a plain one before and behind it."""
    plain = ("tanh", "linear", "scale")
    around = [[placed(rng, rng.choice(plain))] if rng.random() < 0.4 else [] for _ in range(2)]
    return Program((*around[0], placed(rng, rng.choice(names)), *around[1]), rng.choice(losses))


# One seed a program: Hypothesis would otherwise spend most of a run on slight changes of the same few.
SEEDS = st.randoms(use_true_random=True)
programs = SEEDS.map(random_program)
