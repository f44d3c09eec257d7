"""Private training of a model file, and the same run without privacy to show what privacy cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from dpcheck.budget import Budget, planned
from dpcheck.config import REPORTS, Settings
from dpcheck.engine.checkpoint import write_state
from dpcheck.engine.sampling import Loader
from dpcheck.engine.trainer import PrivacyEngine
from dpcheck.errors import DpcheckError, a_type
from dpcheck.fixes.copying import duplicate
from dpcheck.records import UserData
from dpcheck.report.documents import write
from dpcheck.resuming import fit
from dpcheck.target import Target, blaming


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        epsilon: upper bound of what was spent, at ``delta``; infinite with a seed, which is not private.
        delta: of the guarantee.
        statement: the guarantee in words.
        private: what ``evaluate(model)`` says, or the loss on ``test_dataset()``.
        baseline: the same after training without privacy; ``None`` if that was not asked for.
    """

    epsilon: float
    delta: float
    statement: str
    private: dict[str, float]
    baseline: dict[str, float] | None


def train(target: Target, model: nn.Module, settings: Settings, console: Console) -> Outcome:
    """Train ``model`` privately, and a copy of it without privacy."""
    twin = duplicate(model).model if settings.baseline else None
    optimizer = settings.make_optimizer([p for p in model.parameters() if p.requires_grad])
    made, keeping = _hyperparameters(optimizer), settings.keeping
    engine = PrivacyEngine(
        model,
        target.loss_fn,
        optimizer,
        settings.dataset,
        expected_batch_size=settings.batch_size,
        max_grad_norm=settings.max_grad_norm,
        delta=settings.delta,
        target_epsilon=settings.epsilon,
        epochs=settings.epochs,
        clipping=settings.clipping,
        secure=settings.secure,
        ledger=settings.ledger,
        certificate=settings.certificate,
        seed=settings.seed,
        collate_fn=settings.collate,
        unit=settings.unit,
        resume=keeping.checkpoint if keeping.resume else None,
    )
    _refuse_other(_hyperparameters(optimizer), made, str(keeping.checkpoint))
    s = engine.settings
    console.print(
        f"{s.steps} steps, sampling rate {s.sample_rate:.4g}, noise multiplier {s.noise_multiplier:.4g}, "
        f"clipping norm {s.max_grad_norm:g}, delta {s.delta:g}"
    )
    if keeping.resume:
        console.print(f"{keeping.checkpoint}: the run goes on after {engine.steps_taken} of {s.steps} steps")
    fit(engine, keeping, progress=not console.quiet)
    if keeping.checkpoint is not None:
        console.print(f"checkpoint written to {keeping.checkpoint}")
    if settings.save is not None:
        write_state(settings.save, model.state_dict())
        console.print(f"weights written to {settings.save}")
    if settings.report is not None:
        write(settings.report, engine.report(REPORTS[settings.report.suffix]) + "\n", "--report")
        console.print(f"statement of the guarantee written to {settings.report}")
    private = _evaluate(target, model, settings)
    baseline = None
    if twin is not None:
        with console.status("training without privacy, to compare"):
            _plainly(target, twin, settings, s.steps)
        baseline = _evaluate(target, twin, settings)
    epsilon = float("inf") if s.seed is not None else engine.epsilon().upper
    return Outcome(epsilon, s.delta, engine.report(), private, baseline)


def budget_of(settings: Settings) -> Budget | None:
    """What the run costs over its steps; ``None`` with a seed, which is not private."""
    if settings.seed is not None:
        return None
    return planned(
        dataset_size=len(settings.dataset),
        batch_size=settings.batch_size,
        delta=settings.delta,
        epochs=settings.epochs,
        target_epsilon=settings.epsilon,
    )


def _hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def _refuse_other(saved: list[dict[str, Any]], made: list[dict[str, Any]], where: str) -> None:
    """Refuse a checkpoint whose optimizer is not the one of the file and the options: it would be taken in silence."""
    for before, now in zip(saved, made, strict=True):
        odd = [name for name in now if before.get(name) != now[name]]
        if odd:
            raise DpcheckError(
                f"the checkpoint was trained with {odd[0]}={before.get(odd[0])}, and now it is {now[odd[0]]}",
                where,
                "resume with the optimizer that it was started with",
            )


def _plainly(target: Target, model: nn.Module, settings: Settings, steps: int) -> None:
    """The same number of steps and optimizer, with shuffled batches of the same size, no clipping and no noise."""
    optimizer = settings.make_optimizer([p for p in model.parameters() if p.requires_grad])
    read = Loader(settings.dataset, settings.collate, settings.batch_size, settings.unit).collate
    loss_fn = settings.unit.loss(target.loss_fn)
    order = TensorDataset(torch.arange(len(settings.dataset)))
    taken = 0
    while taken < steps:
        for (indices,) in DataLoader(order, settings.batch_size, shuffle=True):
            optimizer.zero_grad()
            loss_fn(model, read(indices)).mean().backward()
            optimizer.step()
            taken += 1
            if taken == steps:
                break


def _evaluate(target: Target, model: nn.Module, settings: Settings) -> dict[str, float]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    evaluate, make_dataset = (getattr(target.module, name, None) for name in ("evaluate", "test_dataset"))
    metrics: Any = {}
    with torch.no_grad(), blaming("the evaluation raised", target.path):
        if callable(evaluate):
            metrics = evaluate(model)
        elif callable(make_dataset):
            dataset = make_dataset()
            records = dataset.dataset if isinstance(dataset, UserData) else dataset
            loader: DataLoader[Any] = DataLoader(records, settings.batch_size, collate_fn=settings.collate)
            losses = [target.loss_fn(model, batch) for batch in loader]
            metrics = {"test loss": torch.cat(losses).double().mean().item()}
    for module, mode in training.items():
        module.training = mode
    if not isinstance(metrics, dict):
        raise DpcheckError(
            f"evaluate(model) returned {a_type(metrics)}, not a dictionary of numbers",
            where=str(target.path),
            next='return {"test accuracy": accuracy}, say',
        )
    return metrics
