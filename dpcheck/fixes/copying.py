"""A copy of a model that shares nothing trainable with it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from dpcheck.errors import DpcheckError


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy: ties, shared modules, hooks, modes and Python state are kept.

    What Python cannot copy has a way out: tensors that belong to an autograd graph are detached and cloned; other
    objects (locks, open files, generators) are shared with the original.

    Raises:
        DpcheckError: if the model cannot be copied all the same.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                _prepare(value, memo)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise DpcheckError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            where=type(model).__name__,
            next="give the attribute that fails a __deepcopy__, or build the model without it",
        ) from error


def _prepare(value: Any, memo: dict[int, Any]) -> None:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    for item in values:
        if isinstance(item, Tensor):
            if not item.is_leaf:
                memo[id(item)] = item.detach().clone()
        elif not isinstance(item, nn.Module | int | float | str | bool | type(None)) and not callable(item):
            try:
                copy.deepcopy(item)
            except Exception:  # any class may refuse in its own way; the object is then shared
                memo[id(item)] = item


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Puts ``new`` at every path of ``old``; returns the model, which is ``new`` if it was ``old`` itself."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return model
