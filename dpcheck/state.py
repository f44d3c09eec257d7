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
from dpcheck.facts import Event, Write
from dpcheck.history import History
from dpcheck.source import Origin, is_library

_GROWS = frozenset({"append", "extend", "insert", "add", "update", "setdefault", "appendleft", "push", "put"})


def kept_events(model: nn.Module, past: History, capture: Capture | None) -> tuple[Event, ...]:
    """One event for each attribute that carries data from one batch to the next."""
    # The latest batch on an attribute is carried where the next losses read it.
    names = past.carried or (past.latest if past.losses else ())
    reason = "the attribute {!r} keeps data of one batch for the next"
    return tuple(
        Event("state", "", _origin_of_write(model, name, capture), ("losses",), reason.format(name)) for name in names
    )


def state_events(model: nn.Module, past: History, capture: Capture | None) -> list[Event]:
    """Events for the state that reaches the losses, and for writes that the graph does not show."""
    events = list(kept_events(model, past, capture)) if past.losses else []
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    if past.losses and not events and names.issuperset(past.written):
        reason = "the losses of a batch change with the batch before it, through state outside the model"
        events.append(Event("state", "", None, ("losses",), reason))
    if past.drifts:
        reason = "the same batch has other losses at each call: something outside the model counts or remembers"
        events.append(Event("unproven", "", None, ("losses",), reason))
    for write in writes(model, past, capture) if capture is not None else ():
        if not write.op and write.name in names:
            reason = f"{write.name!r} is replaced past autograd, which the graph does not show"
            events.append(Event("unproven", "", write.origin, ("losses",), reason))
    return events


def writes(model: nn.Module, past: History, capture: Capture | None) -> tuple[Write, ...]:
    """Parameters and buffers that the forward overwrites: those that the graph shows, and what the calls showed."""
    found = {}
    if capture is not None:
        before = {**capture.parameters, **capture.buffers}
        for name, after in {**capture.parameters_after, **capture.buffers_after}.items():
            if after is not before[name]:
                found[name] = Write(name, str(after.target), after.meta.get("origin"))
    for name in past.changed:
        if name not in found:
            found[name] = Write(name, "", _origin_of_write(model, name, capture))
    return tuple(found.values())


def with_written(
    model: nn.Module, buffers: tuple[BufferFact, ...], past: History, written: tuple[Write, ...]
) -> tuple[BufferFact, ...]:
    """Buffer facts, corrected by what the calls showed: written from data, or created by a call."""
    found = {fact.name: fact for fact in buffers}
    origins = {write.name: write.origin for write in written}
    parameters = {name for name, _ in model.named_parameters()}
    for name in past.written:
        if name not in parameters:
            fact, origin = found.get(name, BufferFact(name, "data")), origins.get(name)
            found[name] = replace(fact, kind="data", location=fact.location or (origin.location if origin else None))
    return tuple(found.values())


def _origin_of_write(model: nn.Module, name: str, capture: Capture | None) -> Origin | None:
    """The statement of a module's class that writes ``path.attribute``, found in its source.

    In a library, the user's line is the one that calls the module, where the graph shows it.
    """
    path, _, attribute = name.rpartition(".")
    for kind in type(model.get_submodule(path)).__mro__:
        location = _written_in(kind, attribute) if issubclass(kind, nn.Module) and kind is not nn.Module else None
        if location is not None:
            if is_library(location.file):
                return Origin(_call_of(path, capture), location, (path,))
            return Origin(location, None, (path,))
    return None


def _call_of(path: str, capture: Capture | None) -> Location | None:
    """The user's line in which a module runs."""
    for node in capture.graph.graph.nodes if capture is not None else ():
        origin: Origin | None = node.meta.get("origin")
        if origin is not None and path in origin.modules and origin.user is not None:
            return origin.user
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
