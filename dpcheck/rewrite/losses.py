"""A loss that is a mean over the batch becomes one loss per sample, where the mean of those is what it was."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcheck import inputs
from dpcheck.capture import run_losses
from dpcheck.determinism import FixedChance
from dpcheck.errors import DpcheckError
from dpcheck.fixer import Change
from dpcheck.rewrite.files import Project
from dpcheck.rewrite.names import Names, assigns
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.text import Edit, SourceFile
from dpcheck.target import Target

_REST = ".flatten(1).mean(1)"
_MOST_PLACES = 4
_SIZES = ("len", "shape", "size")
_CLOSE = 1e-4


@dataclass(frozen=True)
class LossFix:
    """Edits after which a file's ``loss_fn`` returns losses [B].

    Attributes:
        target: with the new loss, from the edited text.
        edits: of the model file.
        line: of ``loss_fn``.
        change: what it does; that losses are [B] is a contract, so it has no rule's code.
    """

    target: Target
    edits: tuple[Edit, ...]
    line: int
    change: Change


_MEAN = Change("loss", "", "one loss per sample, whose mean is what loss_fn returned", "safe", True)
_DIVIDED = Change("loss", "", "losses are not divided by the number of samples any more", "unsafe", True)


@dataclass(frozen=True)
class _Place:
    """Something that is reduced over the batch, and the edits with which it is not; one of them will do."""

    choices: tuple[tuple[Edit, ...], ...]


def per_sample(target: Target, *, unsafe: bool) -> LossFix | None:
    """The edits for a loss that is one number, or losses that are divided by the batch size, found by trying.

    Where ``loss_fn`` returns one number, the new losses have it as their mean, on the batch and on parts of it. Losses
    [B] are multiplied by B, if ``unsafe``: that changes their scale.

    Returns:
        ``None`` if there is nothing to do.

    Raises:
        CannotWrite: if ``loss_fn`` returns one number, and no edits lead to such losses.
    """
    if target.unit is not None or inputs.batch_size(target.batch) < 2:
        return None
    parts = _parts(target.batch)
    old = [_value(target, part) for part in parts]
    if any(value is None for value in old):
        return _undivided(target, parts) if unsafe else None
    source, function = _source(target)
    places = list(_places(source, Names(source), function))
    if not 0 < len(places) <= _MOST_PLACES:
        raise CannotWrite("loss_fn has no mean that can be left out" if not places else "loss_fn has too many means")
    for choice in itertools.product(*(place.choices for place in places)):
        edits = tuple(edit for chosen in choice for edit in chosen)
        fixed = _with(source, edits, target)
        if fixed and _same(old, [None if n is None else n.mean() for n in (_losses(fixed, part) for part in parts)]):
            return LossFix(fixed, edits, function.lineno, _MEAN)
    raise CannotWrite("no loss per sample was found whose mean over the batch is what loss_fn returns")


def _undivided(target: Target, parts: list[Any]) -> LossFix | None:
    old = [_losses(target, part) for part in parts]
    if any(losses is None for losses in old):
        return None
    try:
        source, function = _source(target)
    except CannotWrite:
        return None
    edits = tuple(_division(source, node) for node in ast.walk(function) if _is_division(node))
    fixed = _with(source, edits, target) if edits else None
    if fixed is None:
        return None
    scaled = [None if losses is None else losses * len(losses) for losses in old]
    same = _same(scaled, [_losses(fixed, part) for part in parts])
    return LossFix(fixed, edits, function.lineno, _DIVIDED) if same else None


def _source(target: Target) -> tuple[SourceFile, ast.FunctionDef]:
    path = target.path.resolve()
    if not Project.of(target.path).holds(str(path)):
        raise CannotWrite("the file is outside the project")
    source = SourceFile(path)
    function = _loss_fn(source.tree)
    if function is None:
        raise CannotWrite("the file does not define loss_fn by a function of its own")
    return source, function


def _loss_fn(tree: ast.Module) -> ast.FunctionDef | None:
    """Of several the last one counts."""
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "loss_fn"]
    return found[-1] if found else None


def _parts(batch: Any) -> list[Any]:
    size = inputs.batch_size(batch)
    rows = [range(size), range(max(2, size // 2)), range(size - 1, max(-1, size - 4), -1)]
    return [inputs.take(batch, list(part)) for part in rows if size > 1]


def _value(target: Target, batch: Any) -> Tensor | None:
    """What ``loss_fn`` returns, if that is one number."""
    size = inputs.batch_size(batch)
    shapes: list[torch.Size] = []

    def spread(model: nn.Module, batch: Any) -> Any:
        loss = target.loss_fn(model, batch)
        shapes.append(loss.shape if isinstance(loss, Tensor) else torch.Size([size]))
        return loss.reshape(()).expand(size) if isinstance(loss, Tensor) and loss.numel() == 1 else loss

    found = _losses(replace(target, loss_fn=spread), batch)
    return found[0] if found is not None and shapes and shapes[-1].numel() == 1 and size > 1 else None


def _losses(target: Target, batch: Any) -> Tensor | None:
    try:
        with FixedChance():
            return run_losses(target.model, target.loss_fn, batch)
    except DpcheckError:
        return None


def _same(old: list[Tensor | None], new: list[Tensor | None]) -> bool:
    pairs = list(zip(old, new, strict=True))
    return all(
        a is not None and b is not None and torch.allclose(a.double(), b.double(), rtol=_CLOSE, atol=_CLOSE / 10)
        for a, b in pairs
    )


def _with(source: SourceFile, edits: tuple[Edit, ...], target: Target) -> Target | None:
    """The target with ``loss_fn`` as the edited file would define it, over the names that the file has now."""
    try:
        tree = ast.parse(source.edited(edits))
    except (DpcheckError, SyntaxError):  # two edits at one place
        return None
    space = dict(vars(target.module))
    wanted = [n for n in tree.body if isinstance(n, ast.Assign) and _is_criterion(n, space)]
    function = _loss_fn(tree)
    assert function is not None
    exec(compile(ast.Module([*wanted, function], []), str(source.path), "exec"), space)
    return replace(target, loss_fn=space["loss_fn"])


def _is_criterion(node: ast.Assign, space: dict[str, Any]) -> bool:
    target = node.targets[0]
    value = space.get(target.id) if len(node.targets) == 1 and isinstance(target, ast.Name) else None
    return isinstance(value, nn.Module) and hasattr(value, "reduction")


def _places(source: SourceFile, names: Names, function: ast.FunctionDef) -> Iterator[_Place]:
    for node in ast.walk(function):
        if _is_division(node):
            yield _Place(((_division(source, node),), ()))
        if not isinstance(node, ast.Call):
            continue
        made = _construction(source, names, node)
        if made is not None:
            yield _Place(_unreduced(source, made, node))
        elif names.value(node.func) is torch.mean and len(node.args) == 1 and not node.keywords:
            start, end = source.span(node)
            without = Edit(start, source.tokens(node)[0][1], "")
            yield _Place(((without,), (without, Edit(end, end, _REST))))
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "mean" and not node.args and not node.keywords:
            start, end = source.span(node.func.value)[1], source.span(node)[1]
            yield _Place(((Edit(start, end, ""),), (Edit(start, end, _REST),)))


def _construction(source: SourceFile, names: Names, call: ast.Call) -> ast.Call | None:
    """The call that says how a loss is reduced: this one of a function, or the one that made what is called."""
    called = names.value(call.func)
    if isinstance(called, nn.Module):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        assigned = [n for n in source.tree.body if isinstance(n, ast.Assign) and assigns(n, name)]
        made = assigned[0].value if len(assigned) == 1 else None
    else:
        made = call.func if isinstance(call.func, ast.Call) else call
    value = names.value(made.func) if isinstance(made, ast.Call) else None
    known = value is not None and getattr(value, "__module__", "").startswith("torch.nn.") and _reduces(value)
    if isinstance(value, type) and made is call:
        return None  # a criterion that is only made here, and called elsewhere
    return made if known and isinstance(made, ast.Call) else None


def _reduces(function: Callable[..., Any]) -> bool:
    if function is F.ctc_loss or function is nn.CTCLoss:
        return False
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _unreduced(source: SourceFile, made: ast.Call, call: ast.Call) -> tuple[tuple[Edit, ...], ...]:
    """With ``reduction="none"``: as it is, its other axes averaged, or rows of a sample put together."""
    written = source.arguments(made)
    given = [argument for argument in written if argument.name == "reduction"]
    if given:
        start, end = source.span(given[0].value)
        none = Edit(start, end, '"none"')
    elif written:
        none = Edit(written[-1].end, written[-1].end, ', reduction="none"')
    else:
        at = source.tokens(made)[0][2]
        none = Edit(at, at, 'reduction="none"')
    end = source.span(call)[1]
    choices = [(none,), (none, Edit(end, end, _REST))]
    rows = call.args[1] if len(call.args) > 1 else None
    if isinstance(rows, ast.Call) and isinstance(rows.func, ast.Attribute) and rows.func.attr in _FLATTENS:
        whole = source.of(rows.func.value)
        choices.append((none, Edit(end, end, f".reshape(len({whole}), -1).mean(1)")))
    return tuple(choices)


_FLATTENS = ("view", "reshape", "flatten")


def _is_division(node: ast.AST) -> TypeGuard[ast.BinOp]:
    """Whether a node divides by ``len(x)``, ``x.shape[0]`` or ``x.size(0)``."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
        return False
    by = node.right
    if isinstance(by, ast.Call):
        name = by.func.id if isinstance(by.func, ast.Name) else getattr(by.func, "attr", "")
        return name in _SIZES
    return isinstance(by, ast.Subscript) and isinstance(by.value, ast.Attribute) and by.value.attr in _SIZES


def _division(source: SourceFile, node: ast.BinOp) -> Edit:
    before = source.text[: source.text.index("/", source.span(node.left)[1])].rstrip()
    return Edit(len(before), source.span(node)[1], "")
