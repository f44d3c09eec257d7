"""Forwards that compute over the batch: edits of their lines, shown to be what was tried in memory."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import LossFn, first_line
from dpcheck.determinism import FixedChance
from dpcheck.diagnostic import Location
from dpcheck.errors import DpcheckError
from dpcheck.fixes import in_forward
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.own_axes import STATISTICS
from dpcheck.fixes.trial import Seen, observe
from dpcheck.inputs import batch_size
from dpcheck.rewrite import own_axes
from dpcheck.rewrite.calls import seen_at
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.page import Page
from dpcheck.rewrite.text import Edit
from dpcheck.sandbox import sandbox
from dpcheck.target import Target
from dpcheck.unit import adapted

# File, first line and column, last line and column.
Place = tuple[str, int, int | None, int | None, int | None]


def ranks_of_statistics(model: nn.Module, loss_fn: LossFn, batch: Any) -> Mapping[Place, set[int]]:
    """How many axes the tensors have of which statistics are taken, by the user's expression."""
    return seen_at(model, loss_fn, batch, _rank, _place)


def _rank(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    taken = getattr(func, "__name__", "") in STATISTICS and args and isinstance(args[0], Tensor)
    return args[0].dim() if taken else None


def edits(
    page: Page, target: Target, places: Sequence[Location], lines: Mapping[str, Sequence[Location]]
) -> list[Edit]:
    """The edits of the expressions at ``places``, where findings are.

    Args:
        lines: those of them that are in the forward of each module, by its path.

    Raises:
        CannotWrite: where one has no form over one sample, or is not what was tried in memory.
    """
    given = target.model, *adapted(target.unit, target.loss_fn, target.batch)
    ranks, seen = ranks_of_statistics(*given), observe(*given, lines)
    rows = batch_size(given[2]) * (target.unit.length if target.unit is not None else 1)
    made = [edit for at in places for edit in _edits_at(page, at, ranks, rows)]
    for path, found in lines.items():
        _refuse_others(page, made, target.model.get_submodule(path), seen.get(path), found)
    return made


def _edits_at(page: Page, at: Location, ranks: Mapping[Place, set[int]], rows: int) -> list[Edit]:
    """The edits of the expression at a finding."""
    nodes = [n for n in ast.walk(page.source.tree) if isinstance(n, ast.expr | ast.AugAssign) and _is_at(n, at)]
    held = ranks.get(_place(at), set())
    if held and nodes and isinstance(nodes[-1], ast.Call):
        if len(held) > 1:
            raise CannotWrite("tensors of different numbers of axes come here")
        return own_axes.statistic(page.source, page.names, nodes[-1], *held)
    if not nodes:
        raise CannotWrite("the expression was not found in the file")
    return own_axes.number(page.source, nodes[0], rows)


def _is_at(node: ast.expr | ast.AugAssign, at: Location) -> bool:
    span = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
    return span == (at.line, at.column, at.end_line, at.end_column)


def _place(at: Location) -> Place:
    return at.file, at.line, at.column, at.end_line, at.end_column


def _refuse_others(
    page: Page, edits: Sequence[Edit], given: nn.Module, seen: Seen | None, lines: Sequence[Location]
) -> None:
    """Run the edited forward and the one that was tried in memory on what the module saw, in both modes."""
    try:
        kind = _kind(page, edits, type(given))
        if seen is None or kind is None:
            raise CannotWrite("its class is not at the top of the file")
        written, tried = duplicate(given).model, in_forward.rewrite(duplicate(given).model, seen, lines)
        written.__class__ = kind
        for mode in (True, False):
            written.training = tried.training = mode
            if not _same(_leaves(written, seen), _leaves(tried, seen)):
                raise CannotWrite("the edited expression is not what was tried in memory")
    except (DpcheckError, CannotWrite) as error:
        raise CannotWrite(str(error)) from error
    except Exception as error:  # whatever the user's code does when it is run in another form
        raise CannotWrite(f"the edited forward raised {type(error).__name__}: {first_line(error)}") from error


def _kind(page: Page, edits: Sequence[Edit], old: type) -> type | None:
    """The class as the edited file would define it, over the names that the file has now."""
    tree = ast.parse(page.source.edited(edits))
    # What an edit names and the file does not import yet.
    space = {"torch": torch, **page.names.space}
    if space.get(old.__name__) is not old:
        return None
    defined: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    exec(compile(ast.Module(defined, []), str(page.source.path), "exec"), space)
    kind: type = space[old.__name__]
    return kind


def _leaves(module: nn.Module, seen: Seen) -> list[Any]:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (seen.args, dict(seen.kwargs)))
    with sandbox(module), torch.no_grad(), FixedChance():
        return pytree.tree_leaves(module(*args, **kwargs))


def _same(old: list[Any], new: list[Any]) -> bool:
    def agree(a: Any, b: Any) -> bool:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return bool(a == b)
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)

    return len(old) == len(new) and all(map(agree, old, new))
