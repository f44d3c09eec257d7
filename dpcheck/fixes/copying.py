"""A copy of a model that shares nothing trainable with it, and putting a module in the place of another."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcheck.errors import DpcheckError

Memo = dict[int, Any]


@dataclass(frozen=True)
class Copied:
    """A copy, and the attributes (``module path.attribute``) that Python cannot copy, which the two models share."""

    model: nn.Module
    shared: tuple[str, ...]


def duplicate(model: nn.Module) -> Copied:
    """A deep copy: ties, shared modules, hooks, modes and Python state are kept; ``.grad`` is not.

    Functions that close over modules or parameters of the model (lambdas, hooks) are rebuilt over the copies. Where
    Python's deepcopy fails, every module is rebuilt attribute by attribute: tensors of an autograd graph are detached
    and cloned, generators continue from their present state, and other objects that refuse (locks, open files) are
    shared.

    Raises:
        DpcheckError: naming the attribute, if it is a parameter, buffer or module that cannot be copied.
    """
    memo: Memo = {}
    shared: list[str] = []
    try:
        new = copy.deepcopy(model, memo)
    except Exception:  # any class may refuse in its own way
        memo = {}
        new = _rebuilt(model, memo, shared)
    for old in model.modules():
        fresh = memo.get(id(old))
        if isinstance(fresh, nn.Module):
            vars(fresh).update({name: _rebound(value, memo) for name, value in vars(fresh).items()})
    for parameter in model.parameters():
        _carry_over(parameter, memo.get(id(parameter)), memo)
    return Copied(new, tuple(shared))


def _rebuilt(model: nn.Module, memo: Memo, shared: list[str]) -> nn.Module:
    modules = dict(model.named_modules())
    for module in modules.values():
        memo[id(module)] = object.__new__(type(module))
    for path, module in modules.items():
        state = _state(module)
        fresh = {name: _copied(value, f"{path}.{name}".lstrip("."), memo, shared) for name, value in state.items()}
        memo[id(module)].__setstate__(fresh)
    new: nn.Module = memo[id(model)]
    return new


def _state(module: nn.Module) -> dict[str, Any]:
    # A recurrent layer leaves its weak references to weights out of its state, and makes new ones from it.
    return module.__getstate__() if isinstance(module, nn.RNNBase) else vars(module)


def _copied(value: Any, where: str, memo: Memo, shared: list[str]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in (dict, OrderedDict):
        items = ((key, _copied(item, f"{where}[{key!r}]", memo, shared)) for key, item in value.items())
        return _remember(value, type(value)(items), memo)
    if type(value) in (list, tuple):
        entries = (_copied(item, f"{where}[{i}]", memo, shared) for i, item in enumerate(value))
        return _remember(value, type(value)(entries), memo)
    if isinstance(value, Tensor) and not value.is_leaf:
        return _remember(value, value.detach().clone(), memo)
    if isinstance(value, torch.Generator):
        return _remember(value, value.clone_state(), memo)
    attempt = dict(memo)
    try:
        new = copy.deepcopy(value, attempt)
    except Exception as error:
        if isinstance(value, Tensor | nn.Module):
            raise DpcheckError(
                f"the model cannot be copied: {type(value).__name__} raised {type(error).__name__}: {error}",
                where=where,
                next="give its class a __deepcopy__ that works, or build the model without it",
            ) from error
        shared.append(where)
        return _remember(value, value, memo)
    memo.update(attempt)
    return new


def _remember(old: Any, new: Any, memo: Memo) -> Any:
    memo[id(old)] = new
    return new


def _rebound(value: Any, memo: Memo) -> Any:
    """``value``, or where it is a function (or a dict of them) over parts of the old model, one over the new parts."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, types.FunctionType):
                value[key] = _function(item, memo)
        return value
    return _function(value, memo) if isinstance(value, types.FunctionType) else value


def _function(function: types.FunctionType, memo: Memo) -> types.FunctionType:
    cells, defaults = function.__closure__ or (), function.__defaults__ or ()
    held = [_content(cell) for cell in cells]
    if not any(_translated(item, memo) is not item for item in (*held, *defaults)):
        return function
    closure = tuple(
        cell if _translated(item, memo) is item else types.CellType(_translated(item, memo))
        for cell, item in zip(cells, held, strict=True)
    )
    new = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        tuple(_translated(item, memo) for item in defaults) or None,
        closure,
    )
    new.__kwdefaults__, new.__dict__ = function.__kwdefaults__, dict(function.__dict__)
    return new


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell of a name that is not bound yet
        return None


def _translated(item: Any, memo: Memo) -> Any:
    if isinstance(item, types.MethodType) and isinstance(item.__self__, nn.Module) and id(item.__self__) in memo:
        return types.MethodType(item.__func__, memo[id(item.__self__)])
    if isinstance(item, nn.Module | Tensor):
        return memo.get(id(item), item)
    return item


def _carry_over(old: nn.Parameter, new: Any, memo: Memo) -> None:
    """A parameter's Python attributes and gradient hooks, which deepcopy leaves behind."""
    if new is None or new is old:
        return
    for name, value in vars(old).items():
        if not hasattr(new, name):
            setattr(new, name, _translated(value, memo))
    hooks = old._backward_hooks or {}
    if not new._backward_hooks:
        for hook in hooks.values():
            new.register_hook(_rebound(hook, memo))


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Puts ``new`` at every path of ``old``, and in attributes, lists and dicts of modules that hold it besides.

    Returns:
        The model, which is ``new`` if it was ``old`` itself.
    """
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, value in list(vars(parent).items()):
            if value is old:
                vars(parent)[name] = new
            elif isinstance(value, dict):
                value.update({key: new for key, item in value.items() if item is old})
            elif type(value) in (list, tuple) and any(item is old for item in value):
                vars(parent)[name] = type(value)(new if item is old else item for item in value)
    return model
