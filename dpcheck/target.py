"""From ``model.py[:symbol]`` to a model, its loss and a sample batch."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dpcheck.errors import DpcheckError
from dpcheck.rewrite.construction import Built, Calls
from dpcheck.source import location_of
from dpcheck.supervised import refuse_copies
from dpcheck.unit import Unit

NAMES = ("model", "create_model", "make_model", "build_model", "net")
_HOW_MODEL = """add this to the file, or name the model: dpcheck {path}:SYMBOL

    def make_model():
        return MyModel()"""
_HOW_LOSS = """add this to the file:

    def loss_fn(model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y, reduction="none")  # one loss per sample"""
_HOW_BATCH = """add this to the file, with a few samples on axis 0 of every tensor:

    def sample_batch():
        return torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))"""

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
    """

    path: Path
    symbol: str
    model: nn.Module
    loss_fn: Callable[[Any, Any], Any]
    batch: Any
    unit: Unit | None
    module: ModuleType
    built: Mapping[str, Calls]


def load(text: str) -> Target:
    """Load ``model.py`` or ``model.py:symbol``. This runs the file.

    Raises:
        DpcheckError: for each thing that is missing or wrong, with what to add.
    """
    path, symbol = _split(text)
    built = Built()
    with built.noting():
        module = _import(path)
        name, found = _find(module, path, symbol)
        model = _build(name, found, path)
    loss_fn = getattr(module, "loss_fn", None)
    if not callable(loss_fn):
        raise DpcheckError("the file defines no loss_fn(model, batch)", where=str(path), next=_HOW_LOSS)
    unit = getattr(module, "unit", None)
    if unit is not None and not isinstance(unit, Unit):
        raise DpcheckError(f"unit is a {type(unit).__name__}, not a dpcheck.Unit", f"{path}:unit", _HOW_UNIT)
    return Target(path, name, model, loss_fn, _batch(module, path), unit, module, built.of(model))


def load_model(path: Path, symbol: str) -> nn.Module:
    """The model alone, from a new run of the file."""
    return _build(symbol, getattr(_import(path), symbol), path)


def file_of(text: str) -> Path:
    """The file of ``model.py[:symbol]``.

    Raises:
        DpcheckError: if there is none.
    """
    return _split(text)[0]


def _split(text: str) -> tuple[Path, str | None]:
    head, colon, symbol = text.rpartition(":")
    if colon and symbol.isidentifier() and head:
        return _existing(head), symbol
    return _existing(text), None


def _existing(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        files = sorted(p.name for p in path.glob("*.py"))[:3]
        hint = f"name one of its files, such as {path / files[0]}" if files else "name a Python file"
        raise DpcheckError(f"{text} is a directory", next=hint)
    if not path.exists():
        raise DpcheckError(f"no such file: {text}", next="dpcheck path/to/model.py[:symbol]")
    if path.suffix != ".py":
        raise DpcheckError(f"{text} is not a Python file", next="dpcheck path/to/model.py[:symbol]")
    return path


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


@contextmanager
def blaming(what: str, path: Path) -> Iterator[None]:
    """Turns what the user's code raises inside into an error that says ``what`` and names the user's line.

    Raises:
        DpcheckError: for every exception, :class:`SystemExit` too.
    """
    try:
        yield
    except DpcheckError:
        raise
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}" if error.filename else str(path)
        raise DpcheckError(
            f"{error.filename or path} is not valid Python: {error.msg}",
            where=where,
            next=f"python -m py_compile {error.filename or path}",
        ) from error
    except (Exception, SystemExit) as error:
        location = location_of(error.__traceback__)
        raise DpcheckError(
            f"{what}: {type(error).__name__}: {error}".rstrip(": "),
            where=str(location) if location else str(path),
            next="mend that line; --traceback shows the whole traceback",
        ) from error


def _find(module: ModuleType, path: Path, symbol: str | None) -> tuple[str, Any]:
    if symbol is not None:
        if not hasattr(module, symbol):
            names = ", ".join(name for name, _ in _candidates(module)) or "none"
            raise DpcheckError(
                f"{path} defines no {symbol!r}", where=str(path), next=f"models that it does define: {names}"
            )
        return symbol, getattr(module, symbol)
    for name in NAMES:
        found = getattr(module, name, None)
        if isinstance(found, nn.Module) or inspect.isfunction(found):
            return name, found
    candidates = _candidates(module)
    instances = [c for c in candidates if isinstance(c[1], nn.Module)]
    chosen = instances if instances else candidates
    if not chosen:
        raise DpcheckError(
            f"{path} defines no model",
            where=str(path),
            next=_HOW_MODEL.format(path=path),
        )
    if len(chosen) > 1:
        names = ", ".join(name for name, _ in chosen)
        raise DpcheckError(
            f"{path} defines several models: {names}",
            where=str(path),
            next=f"name the one to check: dpcheck {path}:{chosen[-1][0]}",
        )
    return chosen[0]


def _candidates(module: ModuleType) -> list[tuple[str, Any]]:
    """Instances of nn.Module, and classes defined in the file itself; each once, under its first name."""
    found: dict[int, tuple[str, Any]] = {}
    for name, value in vars(module).items():
        own = inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        if own or isinstance(value, nn.Module):
            found.setdefault(id(value), (name, value))
    return list(found.values())


def _build(name: str, found: Any, path: Path) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise DpcheckError(
            f"{name} is a {type(found).__name__}, not a model", where=f"{path}:{name}", next="name an nn.Module"
        )
    needed = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if needed:
        raise DpcheckError(
            f"{name} needs arguments ({', '.join(needed)})",
            where=f"{path}:{name}",
            next=f"define `def make_model(): return {name}(...)` in {path.name}",
        )
    with blaming(f"{name}() raised", path):
        model = found()
        refuse_copies()
    if not isinstance(model, nn.Module):
        raise DpcheckError(
            f"{name}() returned a {type(model).__name__}, not an nn.Module",
            where=f"{path}:{name}",
            next="return the model from it",
        )
    return model


def _batch(module: ModuleType, path: Path) -> Any:
    made = getattr(module, "sample_batch", None)
    made = getattr(module, "batch", None) if made is None else made
    if made is None:
        raise DpcheckError("the file defines no sample_batch()", where=str(path), next=_HOW_BATCH)
    with blaming("sample_batch() raised", path):
        batch = made() if callable(made) else made
        refuse_copies()
    return batch
