"""The model in a module that has been loaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dpcheck.blame import blaming
from dpcheck.errors import DpcheckError, a_type
from dpcheck.naming import Named
from dpcheck.supervised import refuse_copies

NAMES = ("model", "create_model", "make_model", "build_model", "net")
_HOW_MODEL = """add this to the file, or name the model: dpcheck {path}:SYMBOL

    def make_model():
        return MyModel()"""


def find(module: ModuleType, path: Path, symbol: str | None) -> tuple[str, Any]:
    """The name and the object from which the model comes: named, or one of :data:`NAMES`, or the only one there is."""
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


def built(name: str, found: Any, path: Path) -> nn.Module:
    """The model itself, or what the function or class makes without arguments."""
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise DpcheckError(f"{name} is {a_type(found)}, not a model", where=f"{path}:{name}", next="name an nn.Module")
    needed = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if needed:
        raise DpcheckError(
            f"{name} needs arguments ({', '.join(needed)})",
            where=f"{path}:{name}",
            next=f"write dpcheck '{path}:{name}(...)', or define `def make_model(): return {name}(...)`",
        )
    with blaming(f"{name}() raised", path):
        model = found()
        refuse_copies()
    if not isinstance(model, nn.Module):
        raise DpcheckError(
            f"{name}() returned {a_type(model)}, not an nn.Module",
            where=f"{path}:{name}",
            next="return the model from it",
        )
    return model


def called(name: str, found: Any, path: Path, what: Named) -> nn.Module:
    """The same, with the arguments that the target's text gives."""
    if not what.call:
        return built(name, found, path)
    if not callable(found) or isinstance(found, nn.Module):
        raise DpcheckError(
            f"{name} is {a_type(found)} and takes no arguments here", f"{path}:{name}", f"dpcheck {path}:{name}"
        )
    with blaming(f"{name}() raised", path):
        model = found(*what.args, **what.kwargs)
        refuse_copies()
    return built(name, model, path)
