"""Numbers of samples in arithmetic, made constants: ``x / x.shape[0]``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "pow", "iadd", "isub", "imul", "itruediv", "neg")
_FUNCTIONS = frozenset({*(getattr(operator, name) for name in _OPERATORS), torch.add, torch.sub, torch.mul, torch.div})
_METHODS = frozenset({"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "pow", "true_divide"})


def length(x: Any) -> Any:
    """``len``, of which a trace can hold the call."""
    return x.tracer.create_proxy("call_function", length, (x,), {}) if isinstance(x, fx.Proxy) else len(x)


@contextmanager
def length_traced(kind: type) -> Iterator[None]:
    """``len(x)`` is traced as a call of :func:`length` in the file of a class's forward."""
    space: dict[str, Any] = kind.forward.__globals__  # type: ignore[attr-defined]
    if "len" in space:
        yield
        return
    space["len"] = length
    try:
        yield
    finally:
        del space["len"]


def fixed(node: fx.Node, values: Mapping[fx.Node, Any]) -> str | None:
    """Where a node computes with a number of samples, it gets the one in ``values``, and this is said."""
    computes = node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)
    sizes = {arg: values[arg] for arg in node.args if isinstance(arg, fx.Node) and _is_size(arg)}
    if not computes or not sizes or _is_size(node):
        return None
    node.args = tuple(sizes.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in node.args)
    numbers = ", ".join(f"{number:g}" for number in sizes.values())
    return f"what it computes from the number of samples is {numbers} for good, as in the batch given"


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a Python number that is computed from nothing but the length of axis 0 of tensors."""
    first = node.args[0] if node.args else None
    if node.target is length:
        return True
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,) or (dict(node.kwargs) == {"dim": 0} and len(node.args) == 1)
    if node.target is operator.getitem and isinstance(first, fx.Node) and node.args[1] == 0:
        by_method = first.op == "call_method" and first.target == "size" and len(first.args) == 1
        return by_method or (first.target is getattr and first.args[1] == "shape")
    parts = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return node.op == "call_function" and node.target in _FUNCTIONS and bool(parts) and all(map(_is_size, parts))
