"""Running a user's model without leaving a trace on it: state, random numbers and Python attributes are put back."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.utils.stateless import _reparametrize_module

from dpcheck.checkpoints import without_reentry

_CONTAINERS = (list, dict, set, deque)
_REGISTERED = ("_parameters", "_buffers", "_modules")


@dataclass
class Touched:
    """What a run changed besides registered tensors; filled when the sandbox closes.

    Attributes:
        attributes: ``module path.attribute`` of Python state that was changed.
        python_random: whether ``random`` or ``numpy.random`` was drawn from, or a number drawn by torch was made a
            constant because a branch depends on it (a captured graph freezes such a draw).
        uncontrolled: whether a draw came out by chance though draws were to be fixed.
        asserted: the lines of assertions about data, which a captured graph does not make.
    """

    attributes: list[str] = field(default_factory=list)
    python_random: bool = False
    uncontrolled: bool = False
    asserted: tuple[str, ...] = ()


def tensors_of(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Parameters and buffers by their first name, shared ones once."""
    return dict(model.named_parameters()), dict(model.named_buffers())


def read_back(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that stand under ``names`` now, whatever replaced them."""
    found = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        found[name] = getattr(model.get_submodule(path), attribute)
    return found


def _freeze(value: Any) -> Any:
    return value.copy() if isinstance(value, _CONTAINERS) else value


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return False
    # The copy of a dictionary or list of the user's own class may be a plain one.
    kind = next((c for c in _CONTAINERS if isinstance(old, c)), None)
    if type(old) is not type(new) and (kind is None or not isinstance(new, kind)):
        return False
    if isinstance(old, _CONTAINERS):
        if len(old) != len(new):
            return False
        if isinstance(old, dict):
            return all(k in new and _same(v, new[k]) for k, v in old.items())
        return all(_same(a, b) for a, b in zip(old, new, strict=True)) if isinstance(old, list | deque) else old == new
    try:
        return bool(old == new)
    except Exception:  # a user's __eq__ may raise; then the identity above has decided
        return False


@contextmanager
def sandbox(model: nn.Module) -> Iterator[Touched]:
    """Run code on ``model`` and undo all that it does to Python state and to the generators.

    Registered tensors are not copied here: run with :func:`swapped` so that in-place writes reach copies only.
    """
    touched = Touched()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = sorted({t.device.index for t in model.state_dict().values() if isinstance(t, Tensor) and t.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), kept_attributes(model, touched):
            yield touched
    finally:
        touched.python_random |= random.getstate() != python_state or not all(
            np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True)
        )
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def kept_attributes(model: nn.Module, touched: Touched | None = None) -> Iterator[None]:
    """Undo what is done to Python attributes of modules, and note in ``touched`` which were changed.

    Tensors that are held as plain attributes, or in lists, dictionaries and sets of them, are attributes too, and so
    are the attributes of an object that a module holds.
    """
    snapshots = {
        path: (module, dict(vars(module)), {k: _freeze(v) for k, v in vars(module).items()})
        for path, module in _holders(model)
    }
    plain = [held for path, module in model.named_modules() for held in _plain_tensors(path, module)]
    try:
        yield
    finally:
        for held in plain:
            if held.written():
                held.put_back()
                if touched is not None:
                    touched.attributes.append(held.name)
        for path, (module, before, frozen) in snapshots.items():
            changed = _restore(path, module, before, frozen)
            if touched is not None:
                touched.attributes += changed


@dataclass
class _Held:
    """A tensor that is neither parameter nor buffer, as it was."""

    name: str
    tensor: Tensor
    version: int
    copy: Tensor

    def written(self) -> bool:
        return self.tensor._version != self.version

    def put_back(self) -> None:
        with torch.no_grad():
            self.tensor.detach().copy_(self.copy)


def _plain_tensors(path: str, module: nn.Module) -> Iterator[_Held]:
    for key, value in vars(module).items():
        if key in _REGISTERED:
            continue
        name = f"{path}.{key}" if path else key
        inside = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list | set | deque) else [value]
        )
        for t in inside:
            if isinstance(t, Tensor) and not isinstance(t, FakeTensor | nn.Parameter) and not t.is_inference():
                yield _Held(name, t, t._version, t.detach().clone())


def _holders(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every module, and every object with attributes that one holds; each once, by path."""
    seen = set()
    for path, module in model.named_modules():
        yield path, module
        for key, value in vars(module).items():
            code = callable(value) or isinstance(value, nn.Module | type | ModuleType)
            if key not in _REGISTERED and hasattr(value, "__dict__") and not code and not isinstance(value, Tensor):
                if id(value) not in seen:
                    yield f"{path}.{key}" if path else key, value
                seen.add(id(value))


def _restore(path: str, module: Any, before: dict[str, Any], frozen: dict[str, Any]) -> list[str]:
    now = vars(module)
    changed = []
    for key in set(now) | set(before):
        if key in before and key in now and now[key] is before[key] and _same(frozen[key], now[key]):
            continue
        if key not in _REGISTERED and not _same(frozen.get(key), now.get(key)):
            changed.append(f"{path}.{key}" if path else key)
        if key not in before:
            del now[key]
            continue
        now[key] = before[key]
        if isinstance(frozen[key], dict | set):
            before[key].clear()
            before[key].update(frozen[key])
        elif isinstance(frozen[key], list):
            before[key][:] = frozen[key]
        elif isinstance(frozen[key], deque):
            before[key].clear()
            before[key].extend(frozen[key])
    return changed


@contextmanager
def swapped(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put ``tensors`` in the place of the registered ones of the same name, ties included, and take them out again.

    Activation checkpointing is without reentry there, so that gradients can be asked for by name.
    """
    # A recurrent layer keeps lists of its weights, which torch fills with the stand-ins but does not put back.
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    lists = [(m, key, vars(m)[key], [*vars(m)[key]]) for m in layers for key in ("_flat_weights", "_flat_weight_refs")]
    try:
        with _reparametrize_module(model, dict(tensors), tie_weights=True), without_reentry():
            yield
    finally:
        for layer, key, held, before in lists:
            held[:] = before
            vars(layer)[key] = held
