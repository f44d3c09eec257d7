"""Arguments that a fix turns off: ``sparse=True``, ``max_norm=1.0``, ``track_running_stats=True``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping

from dpcheck.rewrite.names import Names
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.text import Edit, SourceFile

# Rule -> the argument, and what it is when it is off.
SWITCHES = {
    "DP104": ("scale_grad_by_freq", "False"),
    "DP501": ("sparse", "False"),
    "DP302": ("max_norm", "None"),
    "DP301": ("track_running_stats", "False"),
}


def off(source: SourceFile, names: Names, call: ast.Call, arguments: Mapping[str, str]) -> list[Edit]:
    """The edits after which a call no longer passes some arguments: left out by name, off by position.

    Raises:
        CannotWrite: if the call does not write one of them.
    """
    written = source.arguments(call)
    named = {given.name: given for given in written}
    positional = [given for given in written if given.name is None]
    order = _parameters(names.value(call.func))
    edits, removed = [], []
    for argument, nothing in arguments.items():
        if argument in named:
            removed.append(named[argument])
        elif argument in order[: len(positional)] and not any(given.unpacks for given in positional):
            given = positional[order.index(argument)]
            edits.append(Edit(given.start, given.end, nothing))
        else:
            raise CannotWrite(f"the call does not write {argument}")
    return [*edits, *(source.without(removed, written) if removed else [])]


def _parameters(function: object) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []
