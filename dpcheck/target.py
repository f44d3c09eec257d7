"""From ``model.py[:symbol]`` to a model, its loss and a sample batch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dpcheck.blame import blaming as blaming
from dpcheck.errors import DpcheckError, a_type
from dpcheck.finding import built, called, find
from dpcheck.libraries import build
from dpcheck.naming import FORMS, Named, named
from dpcheck.report.places import short
from dpcheck.rewrite.construction import Built, Calls
from dpcheck.samples import GuessedLoss, Sample, like, of_model, of_options
from dpcheck.supervised import refuse_copies
from dpcheck.unit import Unit

_HOW_LOSS = """add this to the file:

    def loss_fn(model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y, reduction="none")  # one loss per sample"""
_OR_GUESS = "\n\nor have one guessed, and called a guess: --input x:Bx3x32x32"
_HOW_BATCH = """add this to the file, with a few samples on axis 0 of every tensor:

    def sample_batch():
        return torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))

or say what the inputs are: --input x:Bx3x32x32"""

_HOW_UNIT = """write unit = dpcheck.Unit(axes=1), say, or give the variable another name"""


@dataclass(frozen=True)
class Target:
    """What a model file defines.

    Attributes:
        path: the file.
        symbol: the name under which the model was found.
        model: the model.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        batch: a few samples.
        unit: what one sample of the batch is, if the file says so.
        module: the loaded module, for what training needs.
        built: the calls that built every module, innermost first, by path.
        writable: whether source fixes can be written for it: a file and a symbol without arguments.
        notes: what a reader of the verdict must know about inputs and loss.
        guessed: whether the loss is a guess.
        calibration: what the file's ``calibration_batch()`` makes: public or synthetic samples like ``batch``, on which
            the weights of new norms are fitted.
    """

    path: Path
    symbol: str
    model: nn.Module
    loss_fn: Callable[[Any, Any], Any]
    batch: Any
    unit: Unit | None
    module: ModuleType
    built: Mapping[str, Calls]
    writable: bool = False
    notes: tuple[str, ...] = ()
    guessed: bool = False
    calibration: Any = None

    @property
    def name(self) -> str:
        """For people: ``model.py:symbol``, or a library's model."""
        return f"{self.path}:{self.symbol}" if self.symbol else str(self.path)


def load(text: str, inputs: Sequence[str] = ()) -> Target:
    """Load a target: ``model.py``, ``model.py:symbol``, ``package.module:factory(8)``, ``hf:DIR`` or ``timm:NAME``.

    This runs the file.

    Args:
        text: the target.
        inputs: what ``--input`` says; in the place of ``sample_batch()``.

    Raises:
        DpcheckError: for each thing that is missing or wrong, with what to add.
    """
    what = named(text)
    given = of_options(inputs) if inputs else None
    if what.kind in ("hf", "timm"):
        path = Path(f"{what.kind}:{what.place}")
        model, sample = build(what)
        return _guessed(Target(path, "", model, _no_loss, None, None, ModuleType("library"), {}), given or sample)
    calls = Built()
    with calls.noting():
        module, path = _module_of(what)
        name, found = find(module, path, what.symbol)
        model = called(name, found, path, what)
    symbol = name if not what.call else text[text.index(f":{name}") + 1 :]
    loss_fn, makes_batch = getattr(module, "loss_fn", None), any(hasattr(module, n) for n in ("sample_batch", "batch"))
    unit = getattr(module, "unit", None)
    if unit is not None and not isinstance(unit, Unit):
        raise DpcheckError(f"unit is {a_type(unit)}, not a dpcheck.Unit", f"{path}:unit", _HOW_UNIT)
    target = Target(
        path, symbol, model, _no_loss, None, unit, module, calls.of(model), what.kind == "file" and not what.call
    )
    sample = given if given is not None or makes_batch else of_model(model)
    if not callable(loss_fn):
        if sample is None or makes_batch:
            raise DpcheckError(
                "the file defines no loss_fn(model, batch)",
                where=str(path),
                next=_HOW_LOSS + _OR_GUESS * (not makes_batch),
            )
        return _guessed(target, sample)
    batch = _batch(module, path) if sample is None else sample.batch
    mark = "GUESS: " if sample is not None and sample.guessed else ""
    notes = () if sample is None else (f"{mark}the sample batch comes from {sample.origin}",)
    calibration = getattr(module, "calibration_batch", None)
    if callable(calibration):
        with blaming("calibration_batch() raised", path):
            calibration = calibration()
    return replace(target, loss_fn=loss_fn, batch=batch, notes=notes, calibration=calibration)


def _guessed(target: Target, sample: Sample | None) -> Target:
    """With a guessed loss, which is called one."""
    if sample is None:
        name = getattr(target.model, "main_input_name", "x")
        raise DpcheckError("nothing says what the inputs are", str(target.path), f"--input {name}:{like(name)}, say")
    of = "a guess from" if sample.guessed else "given by"
    return replace(
        target,
        loss_fn=GuessedLoss(),
        batch=dict(sample.tensors),
        notes=(
            f"GUESS: the loss is a guess ({GuessedLoss.words}) and the inputs are {of} {sample.origin}: the verdict is "
            "about these, and not about the loss that you train with",
        ),
        guessed=True,
    )


def _no_loss(model: Any, batch: Any) -> Any:
    raise NotImplementedError("a target without a loss")


def load_model(path: Path, symbol: str) -> nn.Module:
    """The model alone, from a new run of the file."""
    return built(symbol, getattr(_import(path), symbol), path)


def file_of(text: str) -> Path | None:
    """The file of ``model.py[:symbol]``; ``None`` for another kind of target.

    Raises:
        DpcheckError: if there is no such file, or the text names nothing.
    """
    what = named(text)
    return Path(what.place) if what.kind == "file" else None


def _module_of(what: Named) -> tuple[ModuleType, Path]:
    """The module and its file. A module is imported from the working folder, too."""
    if what.kind == "file":
        return _import(Path(what.place)), Path(what.place)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.dont_write_bytecode = True
    try:
        spec = importlib.util.find_spec(what.place)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise DpcheckError(f"there is no module {what.place}", next=f"a target is {FORMS}")
    path = Path(short(spec.origin))
    with blaming(f"{what.place} raised while it was imported", path):
        module = importlib.import_module(what.place)
        refuse_copies()
    return module, path


def _import(path: Path) -> ModuleType:
    name = f"dpcheck_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As for `python model.py`, the file's folder stays on the path: functions may import later. No bytecode is
    # written beside the user's file.
    sys.modules[name], sys.dont_write_bytecode = module, True
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with blaming(f"{path} raised while it was imported", path):
            spec.loader.exec_module(module)
            refuse_copies()
    except DpcheckError:
        del sys.modules[name]
        raise
    return module


def _batch(module: ModuleType, path: Path) -> Any:
    made = getattr(module, "sample_batch", None)
    made = getattr(module, "batch", None) if made is None else made
    if made is None:
        raise DpcheckError("the file defines no sample_batch()", where=str(path), next=_HOW_BATCH)
    with blaming("sample_batch() raised", path):
        batch = made() if callable(made) else made
        refuse_copies()
    return batch
