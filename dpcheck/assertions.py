"""Assertions about data: ``assert lengths.max() <= n``, ``if x.isnan().any(): raise ...``.

A graph cannot branch on data, but the other branch of an assertion computes nothing. The model is run once to see what
each assertion asks of this batch, and the trace is given the same numbers; the graph has no assertions.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpcheck.diagnostic import Location
from dpcheck.source import is_torch_or_ours, origin_here

_NUMBER = torch.ops.aten._local_scalar_dense.default
Numbers = dict[Location, list[Any]]


class Asked(TorchDispatchMode):
    """Notes the numbers that assertions ask for while a model runs, called from the frame ``root``."""

    def __init__(self, root: FrameType) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root, self.numbers = root, defaultdict[Location, list[Any]](list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is _NUMBER and (place := assertion_here(self.root)) is not None:
            self.numbers[place].append(out)
        return out


def assertion_here(root: FrameType) -> Location | None:
    """The expression that is being evaluated, if it is one of an assertion whose error nothing catches."""
    origin = origin_here({}, root)
    here = origin.library or origin.user
    if here is None or here.column is None or here.end_line is None or here.end_column is None:
        return None
    first, last = (here.line, here.column), (here.end_line, here.end_column)
    if not any(start <= first and last <= end for start, end in _read(here.file).assertions):
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not root:
        file = frame.f_code.co_filename
        if not is_torch_or_ours(file) and any(a <= frame.f_lineno <= b for a, b in _read(file).caught):
            return None
        frame = frame.f_back
    return here


Position = tuple[int, int]


@dataclass(frozen=True)
class _Source:
    """Of a file: assertions, from (line, column) to (line, column); lines whose errors may be caught."""

    assertions: tuple[tuple[Position, Position], ...]
    caught: tuple[tuple[int, int], ...]


@lru_cache(maxsize=256)
def _read(file: str) -> _Source:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return _Source((), ())
    assertions, caught = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) or (isinstance(node, ast.If) and _only_raises(node)):
            keeps = any(isinstance(part, ast.NamedExpr | ast.Lambda) for part in ast.walk(node.test))
            if not keeps and node.end_lineno is not None and node.end_col_offset is not None:
                # The whole statement: a jump, or what pytest rewrote, has no narrower place.
                assertions.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))
        # A context manager may suppress errors; torch's do not.
        torchs = isinstance(node, ast.With) and all(_is_torchs(item.context_expr) for item in node.items)
        if isinstance(node, ast.Try | ast.TryStar | ast.With) and not torchs:
            caught.append((node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno))
    return _Source(tuple(assertions), tuple(caught))


# Python itself catches others: StopIteration and IndexError in loops, AttributeError in hasattr.
_ERRORS = frozenset({"ValueError", "TypeError", "RuntimeError", "AssertionError", "NotImplementedError", "Exception",
                     "ArithmeticError", "FloatingPointError", "OverflowError", "ZeroDivisionError"})  # fmt: skip


def _only_raises(node: ast.If) -> bool:
    if node.orelse or len(node.body) != 1 or not isinstance(node.body[0], ast.Raise):
        return False
    error = node.body[0].exc
    error = error.func if isinstance(error, ast.Call) else error
    return isinstance(error, ast.Name) and error.id in _ERRORS


def _is_torchs(expression: ast.expr) -> bool:
    return ast.unparse(expression).startswith("torch.")
