"""What a model computes with besides the values of its tensors: a graph from before a change is of another model.

Seen are classes with their methods, submodules, hooks, names and shapes of buffers, attributes of modules, and those of
the objects that they hold, such as a configuration. Not seen are functions and numbers that live elsewhere: globals,
closures, the inside of a NumPy array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Fingerprint = Mapping[tuple[str, str], Any]

_STRUCTURE = frozenset({"class", "submodules", "buffers", "hooks of all modules", "forward", "_compiled_call_impl"})
_APART = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class _Itself:
    """An object that equals itself only; holding it keeps its identity from being given to another."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.held is other.held


def fingerprint(model: nn.Module) -> Fingerprint:
    """By module path and attribute, values that can be hashed and compared."""
    found: dict[tuple[str, str], Any] = {("", "hooks of all modules"): tuple(_hooks_of_all())}
    classes: dict[type, Any] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        kind = type(module)
        if kind not in classes:
            members = _members(kind)
            classes[kind] = _Itself(kind), tuple((n, _Itself(v)) for n, v in members if _is_code(v))
            found[path, "class attributes"] = tuple((n, _frozen(v)) for n, v in members if not _is_code(v))
        found[path, "class"] = classes[kind]
        if module._modules:
            found[path, "submodules"] = tuple((name, _Itself(m)) for name, m in module._modules.items())
        if module._buffers:
            found[path, "buffers"] = tuple((name, b is None) for name, b in module._buffers.items())
            found[path, "shapes of buffers"] = tuple(map(_form, module._buffers.values()))
        for name, value in vars(module).items():
            if name in _APART or "state_dict" in name or (isinstance(value, dict) and not value):
                continue
            found[path, name] = _frozen(value)
            if _has_attributes(value) and id(value) not in seen:
                seen.add(id(value))
                found.update({(path, f"{name}.{key}"): _frozen(own) for key, own in vars(value).items()})
    return found


def changed(before: Fingerprint, now: Fingerprint) -> list[tuple[str, str]]:
    """Module paths and attributes that are not as they were."""
    return [place for place in {**before, **now} if before.get(place) != now.get(place)]


def names_in(before: Fingerprint, now: Fingerprint, place: tuple[str, str]) -> list[str]:
    """Which submodules, or which buffers, of a module are not as they were."""
    if place[1] not in ("submodules", "buffers"):
        return []
    return sorted({name for name, _ in {*before.get(place, ())} ^ {*now.get(place, ())}})


def is_structure(attribute: str) -> bool:
    """Whether a change of it makes another model, and not the same one with another setting."""
    return attribute in _STRUCTURE or attribute.endswith("_hooks")


def _frozen(value: Any, depth: int = 4) -> Any:
    if isinstance(value, _PLAIN):
        return type(value), value
    if depth and isinstance(value, dict):
        return dict, tuple((_frozen(k, 0), _frozen(v, depth - 1)) for k, v in value.items())
    if depth and isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(v, depth - 1) for v in value)
    if depth and isinstance(value, (set, frozenset)):
        return type(value), frozenset(_frozen(v, depth - 1) for v in value)
    return _Itself(value)


def _form(buffer: Tensor | None) -> Any:
    return None if buffer is None else (tuple(buffer.shape), buffer.dtype, buffer.device, buffer.requires_grad)


def _members(kind: type) -> list[tuple[str, Any]]:
    """What a class and its bases define, up to ``nn.Module``."""
    own = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    return [(n, v) for base in own for n, v in vars(base).items() if n == "__call__" or not n.startswith("__")]


def _is_code(value: Any) -> bool:
    return callable(value) or hasattr(type(value), "__get__")


def _hooks_of_all() -> Iterator[Any]:
    for name, value in vars(nn.modules.module).items():
        if name.startswith("_global_") and name.endswith("_hooks") and value:
            yield name, _frozen(value)


def _has_attributes(value: Any) -> bool:
    return hasattr(value, "__dict__") and not callable(value) and not isinstance(value, Tensor)
