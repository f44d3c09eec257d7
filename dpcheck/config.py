"""How to train: the command's options, else the file's ``training`` dictionary, else the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from dpcheck.capture import run_losses
from dpcheck.certificate import Certificate
from dpcheck.engine.kinds import Clipping
from dpcheck.engine.sampling import Loader
from dpcheck.engine.settings import settle
from dpcheck.errors import DpcheckError, a_type
from dpcheck.options.train import resuming
from dpcheck.records import map_style, unit_of
from dpcheck.resuming import Keeping, kept_in
from dpcheck.target import Target, blaming
from dpcheck.unit import Unit, adapted
from dpcheck.writing import refuse_unwritable

DEFAULTS: dict[str, Any] = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "epochs": 20,
    "batch_size": 256,
    "max_grad_norm": 1.0,
    "clipping": "flat",
}
# Of ``dpcheck train`` alone.
_OF_TRAIN = {"clipping": "train_clipping"}
_OPTIONS = {
    "target_epsilon": "--epsilon",
    "delta": "--delta",
    "epochs": "--epochs",
    "expected_batch_size": "--batch-size",
    "max_grad_norm": "--max-grad-norm",
    "steps": "--epochs",
    "clipping": "--clipping",
    "seed": "--seed",
}
# Suffix of a file -> format of PrivacyEngine.report.
REPORTS = {".txt": "text", ".json": "json", ".html": "html"}
_HOW_DATASET = """add this to the file:

    def train_dataset():
        return torch.utils.data.TensorDataset(x, y)  # one item is one record"""


@dataclass(frozen=True)
class Settings:
    """A private run.

    Attributes:
        epsilon, delta: the guarantee to reach, for one unit added or removed.
        epochs: expected passes over the data.
        batch_size: expected size of a Poisson sample.
        max_grad_norm: L2 norm to which each unit's gradient is clipped.
        clipping: the kind; see :mod:`dpcheck.engine.kinds`.
        secure, ledger, certificate: as those of :class:`dpcheck.PrivacyEngine`.
        seed: of a repeatable run, which is not private.
        baseline: also train without privacy.
        dataset: map-style; one item is one unit: a record, or a user.
        unit: where it lies in a batch.
        collate: list of records -> batch, if the file defines it.
        make_optimizer: parameters -> optimizer.
        save: where the trained weights go.
        report: where the statement of the guarantee goes: as text, JSON or HTML by its suffix.
        keeping: where the run is kept, and goes on.
    """

    epsilon: float
    delta: float
    epochs: float
    batch_size: int
    max_grad_norm: float
    clipping: Clipping | str
    secure: bool
    ledger: str | None
    certificate: str | None
    seed: int | None
    baseline: bool
    dataset: Any
    unit: Unit
    collate: Callable[[list[Any]], Any] | None
    make_optimizer: Callable[[Any], Optimizer]
    save: Path | None
    report: Path | None
    keeping: Keeping


def settings_of(target: Target, options: argparse.Namespace) -> Settings:
    """The settings of a run. What can be wrong with them is found here, before anything is computed.

    Raises:
        DpcheckError: for a missing or broken ``train_dataset()``, records that do not fit the model, an unknown key
            in ``training``, a value out of range, an epsilon that cannot be reached, a path that cannot be written.
    """
    path = str(target.path)
    values = {**DEFAULTS, **_given(target)}
    given = {key: getattr(options, _OF_TRAIN.get(key, key), None) for key in DEFAULTS}
    values.update({key: value for key, value in given.items() if value is not None})
    make_dataset = getattr(target.module, "train_dataset", None)
    if not callable(make_dataset):
        raise DpcheckError("the file defines no train_dataset()", where=path, next=_HOW_DATASET)
    with blaming("train_dataset() raised", target.path):
        dataset = make_dataset()
    certificate = getattr(options, "train_certificate", None)
    if certificate is not None:
        Certificate.load(certificate)
    keeping, ledger = kept_in(options, lambda path: resuming(options, str(path)))
    settings = Settings(
        **values,
        secure=getattr(options, "train_secure", False),
        ledger=ledger,
        certificate=certificate,
        seed=options.seed,
        baseline=not options.no_baseline,
        dataset=map_style(dataset),
        unit=unit_of(dataset, target.unit),
        collate=getattr(target.module, "collate", None),
        make_optimizer=_optimizer(target, options.lr),
        save=_writable(options.save, "--save", "weights.pt"),
        report=_reported(options.report),
        keeping=keeping,
    )
    _refuse_unreachable(settings)
    _refuse_misfit(target, settings)
    return settings


def _given(target: Target) -> dict[str, Any]:
    given = getattr(target.module, "training", {})
    unknown = sorted(map(str, set(given) - set(DEFAULTS))) if isinstance(given, dict) else ["(it is no dictionary)"]
    if unknown:
        raise DpcheckError(
            f"unknown key in the file's `training`: {', '.join(unknown)}",
            where=str(target.path),
            next=f"the keys are {', '.join(DEFAULTS)}",
        )
    return dict(given)


def _refuse_unreachable(settings: Settings) -> None:
    try:
        settle(
            dataset_size=len(settings.dataset),
            expected_batch_size=settings.batch_size,
            max_grad_norm=settings.max_grad_norm,
            delta=settings.delta,
            noise_multiplier=None,
            target_epsilon=settings.epsilon,
            epochs=settings.epochs,
            steps=None,
            physical_batch_size=None,
            seed=settings.seed,
            secure=settings.secure,
            unit=settings.unit,
            clipping=settings.clipping,
        )
    except DpcheckError as error:
        option = _OPTIONS.get(error.where or "")
        hint = error.next or (f"pass another {option}, or change the file's `training`" if option else None)
        raise DpcheckError(error.what, where=option or error.where, next=hint) from error


def _refuse_misfit(target: Target, settings: Settings) -> None:
    """The first records, as a batch, must go through the model as the sample batch does."""
    loss_fn, sample = adapted(target.unit, target.loss_fn, target.batch)
    run_losses(target.model, loss_fn, sample)  # what fails here is not the records' fault
    few = torch.arange(min(8, len(settings.dataset)))
    with blaming("the first records of train_dataset() could not be read", target.path):
        batch = Loader(settings.dataset, settings.collate, len(few), settings.unit).collate(few)
    try:
        run_losses(target.model, settings.unit.loss(target.loss_fn), batch)
    except DpcheckError as error:
        raise DpcheckError(
            f"the records of train_dataset() do not fit: {error.what}",
            where=error.where,
            next="one record is one sample of sample_batch(); define collate(records) if they must be put together",
        ) from error


def _optimizer(target: Target, lr: float | None) -> Callable[[Any], Optimizer]:
    if lr is not None and not 0 < lr < float("inf"):
        raise DpcheckError(f"--lr {lr:g} is not a positive finite number", next="pass another --lr")
    make = getattr(target.module, "make_optimizer", _sgd)

    def made(parameters: Any) -> Optimizer:
        with blaming("make_optimizer() raised", target.path):
            optimizer: Optimizer = make(parameters)
        if not isinstance(optimizer, Optimizer):
            raise DpcheckError(
                f"make_optimizer() returned {a_type(optimizer)}, not a torch optimizer",
                where=str(target.path),
                next="return torch.optim.SGD(parameters, lr=0.5), say",
            )
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        return optimizer

    return made


def _sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def _reported(text: str | None) -> Path | None:
    path = _writable(text, "--report", "report.html")
    if path is not None and path.suffix not in REPORTS:
        raise DpcheckError(
            f"--report {text} ends in none of {', '.join(REPORTS)}, which say how it is written",
            where="--report",
            next=f"--report {path.with_suffix('.json')}",
        )
    return path


def _writable(text: str | None, option: str, example: str) -> Path | None:
    if text is None:
        return None
    path = Path(text)
    wrong = "it is a directory" if path.is_dir() else "" if path.parent.is_dir() else "there is no such folder"
    if wrong:
        raise DpcheckError(
            f"{option} {text} cannot be written: {wrong}",
            next=f"{option} path/to/{example}, in a folder that exists",
        )
    refuse_unwritable(text, option)  # before the privacy is spent
    return path
