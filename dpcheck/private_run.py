"""Private training of a model file, and the same run without privacy to show what privacy cost."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from dpcheck.engine.trainer import PrivacyEngine
from dpcheck.errors import DpcheckError
from dpcheck.fixes.copying import duplicate
from dpcheck.target import Target

_DEFAULTS: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "epochs": 20, "batch_size": 256, "max_grad_norm": 1.0}
_HOW = """add this to the file:

    def train_dataset():
        return torch.utils.data.TensorDataset(x, y)  # one item is one record"""


@dataclass(frozen=True)
class Settings:
    """How to train: the command's options, else the file's ``training`` dictionary, else the defaults."""

    epsilon: float
    delta: float
    epochs: float
    batch_size: int
    max_grad_norm: float
    seed: int | None
    baseline: bool
    dataset: Any
    make_optimizer: Callable[[Any], Optimizer]


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the statement of the guarantee, and what ``evaluate(model)`` says of both models."""

    statement: str
    private: dict[str, float]
    baseline: dict[str, float] | None


def settings_of(target: Target, options: argparse.Namespace) -> Settings:
    """The settings of a run; everything that can be wrong is found before anything is trained.

    Raises:
        DpcheckError: if the file has no ``train_dataset()``, or an unknown key in ``training``.
    """
    module, path = target.module, str(target.path)
    given = getattr(module, "training", {})
    unknown = set(given) - set(_DEFAULTS) if isinstance(given, dict) else {"(not a dictionary)"}
    if unknown:
        raise DpcheckError(
            f"unknown key in the file's `training`: {', '.join(sorted(unknown))}",
            where=path,
            next=f"known keys are {', '.join(_DEFAULTS)}",
        )
    values = {**_DEFAULTS, **given}
    values.update({key: getattr(options, key) for key in _DEFAULTS if getattr(options, key) is not None})
    make_dataset = getattr(module, "train_dataset", None)
    if not callable(make_dataset):
        raise DpcheckError("the file defines no train_dataset()", where=path, next=_HOW)
    optimizer = getattr(module, "make_optimizer", _sgd)
    return Settings(
        **values, seed=options.seed, baseline=not options.no_baseline, dataset=make_dataset(), make_optimizer=optimizer
    )


def train(target: Target, model: nn.Module, settings: Settings, console: Console) -> Outcome:
    """Train ``model`` privately, and a copy of it without privacy."""
    twin = duplicate(model) if settings.baseline else None
    console.rule("train", style="dim")
    engine = _engine(
        target, model, settings, target_epsilon=settings.epsilon, max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
    )  # fmt: skip
    s = engine.settings
    console.print(
        f"{s.steps} steps, sampling rate {s.sample_rate:.4g}, noise multiplier {s.noise_multiplier:.4g}, "
        f"clipping norm {s.max_grad_norm:g}, delta {s.delta:g}"
    )
    engine.fit(progress=not console.quiet)
    baseline = None
    if twin is not None:
        _plainly(target, twin, settings, s.steps)
        baseline = _evaluate(target, twin)
    return Outcome(engine.report(), _evaluate(target, model), baseline)


def _engine(target: Target, model: nn.Module, settings: Settings, **privacy: Any) -> PrivacyEngine:
    return PrivacyEngine(
        model,
        target.loss_fn,
        settings.make_optimizer([p for p in model.parameters() if p.requires_grad]),
        settings.dataset,
        expected_batch_size=settings.batch_size,
        delta=settings.delta,
        epochs=settings.epochs,
        collate_fn=getattr(target.module, "collate", None),
        **privacy,
    )


def _plainly(target: Target, model: nn.Module, settings: Settings, steps: int) -> None:
    """The same number of steps and optimizer, with shuffled batches of the same size, no clipping and no noise."""
    optimizer = settings.make_optimizer([p for p in model.parameters() if p.requires_grad])
    loader = torch.utils.data.DataLoader(
        settings.dataset, settings.batch_size, shuffle=True, collate_fn=getattr(target.module, "collate", None)
    )
    taken = 0
    while taken < steps:
        for batch in loader:
            optimizer.zero_grad()
            target.loss_fn(model, batch).mean().backward()
            optimizer.step()
            taken += 1
            if taken == steps:
                break


def _evaluate(target: Target, model: nn.Module) -> dict[str, float]:
    evaluate = getattr(target.module, "evaluate", None)
    if not callable(evaluate):
        return {}
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        metrics = dict(evaluate(model))
    for module, mode in training.items():
        module.training = mode
    return metrics


def _sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
