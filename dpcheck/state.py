"""What the calls one after another add to what the graph of one call says."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from dpcheck.capture import Capture
from dpcheck.diagnostic import BufferFact, Location
from dpcheck.facts import Event
from dpcheck.history import History
from dpcheck.source import Origin, is_library

_GROWS = frozenset({"append", "extend", "insert", "add", "update", "setdefault", "appendleft", "push", "put"})


def kept_events(model: nn.Module, past: History) -> tuple[Event, ...]:
    """One event for each attribute that carries data from one batch to the next."""
    reason = "the attribute {!r} keeps data of one batch for the next"
    return tuple(
        Event("state", "", origin_of_write(model, name), ("losses",), reason.format(name)) for name in past.carried
    )


def state_events(model: nn.Module, past: History, capture: Capture | None) -> list[Event]:
    """Events for the state that reaches the losses, and for writes that the graph does not show."""
    events = list(kept_events(model, past)) if past.losses else []
    created = [name for name in past.written if name not in known_names(model)]
    if past.losses and not past.carried and not created:
        reason = "the losses of a batch change with the batch before it, through state outside the model"
        events.append(Event("state", "", None, ("losses",), reason))
    if past.drifts:
        reason = "the same batch has other losses at each call: something outside the model counts or remembers"
        events.append(Event("unproven", "", None, ("losses",), reason))
    if capture is not None:
        before = {**capture.parameters, **capture.buffers}
        after = {**capture.parameters_after, **capture.buffers_after}
        for name in past.changed:
            if name in before and after[name] is before[name]:
                reason = f"{name!r} is replaced past autograd, which the graph does not show"
                events.append(Event("unproven", "", origin_of_write(model, name), ("losses",), reason))
    return events


def known_names(model: nn.Module) -> set[str]:
    return {name for name, _ in (*model.named_parameters(), *model.named_buffers())}


def with_written(model: nn.Module, buffers: tuple[BufferFact, ...], past: History) -> tuple[BufferFact, ...]:
    """Buffer facts, corrected by what the calls showed: written from data, or created by a call."""
    found = {fact.name: fact for fact in buffers}
    parameters = {name for name, _ in model.named_parameters()}
    for name in past.written:
        if name in parameters:
            continue
        fact = found.get(name, BufferFact(name, "data"))
        location = fact.location
        if location is None:
            origin = origin_of_write(model, name)
            location = origin.location if origin else None
        found[name] = replace(fact, kind="data", location=location)
    return tuple(found.values())


def origin_of_write(model: nn.Module, name: str) -> Origin | None:
    """The statement of a module's class that writes ``path.attribute``, found in its source."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    for kind in type(module).__mro__:
        location = _written_in(kind, attribute) if issubclass(kind, nn.Module) and kind is not nn.Module else None
        if location is not None:
            inside = is_library(location.file)
            modules = tuple(".".join(path.split(".")[:i]) for i in range(path.count(".") + 2)) if path else ("",)
            return Origin(None if inside else location, location if inside else None, modules)
    return None


def _written_in(kind: type, attribute: str) -> Location | None:
    try:
        lines, first = inspect.getsourcelines(kind)
        file = inspect.getsourcefile(kind)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    indent = len(lines[0]) - len(lines[0].lstrip())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name != "__init__":
            for node in _writes(function, attribute):
                end, stop = node.end_lineno or node.lineno, node.end_col_offset
                return Location(
                    file or "",
                    first + node.lineno - 1,
                    first + end - 1,
                    node.col_offset + indent,
                    None if stop is None else stop + indent,
                    function.name,
                )
    return None


def _writes(function: ast.FunctionDef, attribute: str) -> Iterator[ast.stmt]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            leaves = [leaf for t in targets for leaf in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]
            if any(_is_attribute(leaf, attribute) for leaf in leaves):
                yield node
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value.func
            method = call.attr if isinstance(call, ast.Attribute) else ""
            written = method in _GROWS or (method.endswith("_") and not method.endswith("__"))
            if written and isinstance(call, ast.Attribute) and _is_attribute(call.value, attribute):
                yield node
            elif method == "register_buffer" and node.value.args:
                name = node.value.args[0]
                if isinstance(name, ast.Constant) and name.value == attribute:
                    yield node


def _is_attribute(node: ast.expr, attribute: str) -> bool:
    """Whether an expression is ``self.attribute``, a part of it, or its ``.data``."""
    while isinstance(node, ast.Subscript | ast.Call) or (isinstance(node, ast.Attribute) and node.attr != attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
