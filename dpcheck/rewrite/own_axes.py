"""Source of statistics over the samples and of numbers of samples, as :mod:`dpcheck.fixes.in_forward` has them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import torch

from dpcheck.fixes.own_axes import EXTREMES, KEEP_SHAPE, STATISTICS, axes, of_one_sample
from dpcheck.rewrite.names import FUNCTIONS, Names
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.text import Argument, Edit, SourceFile

_SHAPING = ("view", "reshape", "unsqueeze")
_BY_METHOD = ("div", "mul", "add", "sub", "true_divide", "div_", "mul_", "add_", "sub_")


def statistic(source: SourceFile, names: Names, call: ast.Call, rank: int) -> list[Edit]:
    """The edits after which a call takes its statistic over axes of one sample, and keeps those.

    ``x.mean(0)`` becomes ``x.mean(1, keepdim=True)``; where the result was given its axes back, as by
    ``[None, :, None, None]``, that goes.

    Args:
        rank: how many axes the tensor has.

    Raises:
        CannotWrite: if the call is no such statistic, or its axes are not written there.
    """
    written = source.arguments(call)
    name, given = _called(names, call, written)
    if any(argument.unpacks for argument in written):
        raise CannotWrite("its arguments are unpacked from a list or a dictionary")
    order = STATISTICS[name][1]
    by_name = dict(zip(order, (a for a in given if a.name is None), strict=False))
    by_name |= {("dim" if a.name == "axis" else str(a.name)): a for a in given if a.name is not None}
    dim = by_name.get("dim")
    before = axes(_literal(dim), rank)
    if before is None or 0 not in before:
        raise CannotWrite("the axes are not written as numbers in the call")
    after = of_one_sample(name, before, rank)
    edits: list[Edit] = []
    if name in EXTREMES and dim is None:
        edits.append(_extreme(source, names, call, name))
    elif name in EXTREMES and len(after) > 1:
        raise CannotWrite(f"{name} of more than one axis has no places")
    text = str(after[0]) if len(after) == 1 else f"({', '.join(map(str, after))})"
    added = []
    if dim is not None:
        edits.append(Edit(*source.span(dim.value), text))
    else:
        added.append(f"dim={text}")
    if name not in KEEP_SHAPE:
        keepdim = by_name.get("keepdim")
        if keepdim is not None:
            edits.append(Edit(*source.span(keepdim.value), "True"))
        else:
            added.append("keepdim=True")
        edits += _given_back(source, call)
    at = written[-1].end if written else source.tokens(call)[0][2]
    if added:
        edits.append(Edit(at, at, ", " * bool(written) + ", ".join(added)))
    return edits


def _called(names: Names, call: ast.Call, written: list[Argument]) -> tuple[str, list[Argument]]:
    """The statistic, and the arguments after the tensor."""
    function = names.value(call.func)
    name = str(getattr(function, "__name__", "")) if function is not None else getattr(call.func, "attr", "")
    if name not in STATISTICS or not isinstance(call.func, ast.Attribute | ast.Name):
        raise CannotWrite("what is called there is no statistic that could be taken over one sample")
    if function is None:
        return name, written
    if not written or written[0].name not in (None, "input"):
        raise CannotWrite(f"{name} is called without a tensor first")
    return name, written[1:]


def _literal(argument: Argument | None) -> object:
    if argument is None:
        return None
    try:
        return ast.literal_eval(argument.value)
    except ValueError:
        return "no number"


def _extreme(source: SourceFile, names: Names, call: ast.Call, name: str) -> Edit:
    """``x.max()`` -> ``x.amax(...)``, ``torch.max(x)`` -> ``torch.amax(x, ...)``."""
    function = EXTREMES[name].__name__
    if names.value(call.func) in (torch.max, torch.min):
        return Edit(*source.span(call.func), names.spell(f"torch.{function}", call))
    end = source.span(call.func)[1]
    return Edit(end - len(name), end, function)


def _given_back(source: SourceFile, call: ast.Call) -> Iterator[Edit]:
    """Without what only gives the result its axes back, at the call or where its name is used."""
    parent = source.parents.get(call)
    held: list[ast.expr] = [call]
    if isinstance(parent, ast.Tuple):
        statement = source.parents.get(parent)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple):
            names = statement.targets[0].elts
            at = parent.elts.index(call)
            held += _uses(source, names[at]) if len(names) == len(parent.elts) else []
    elif isinstance(parent, ast.Assign) and len(parent.targets) == 1:
        held += _uses(source, parent.targets[0])
    for node in held:
        end, shaped = source.span(node)[1], _shaped(source, node)
        if shaped is not None:
            yield Edit(end, source.span(shaped)[1], "")


def _uses(source: SourceFile, target: ast.expr) -> list[ast.expr]:
    if not isinstance(target, ast.Name):
        return []
    scope = next((n for n in source.ancestors(target) if isinstance(n, FUNCTIONS)), source.tree)
    uses = [n for n in ast.walk(scope) if isinstance(n, ast.Name) and n.id == target.id and n.lineno >= target.lineno]
    return [n for n in uses if isinstance(n.ctx, ast.Load)]


def _shaped(source: SourceFile, node: ast.expr) -> ast.expr | None:
    """What is around a node and only adds axes of length 1, if so."""
    parent = source.parents.get(node)
    if isinstance(parent, ast.Subscript) and parent.value is node:
        index = parent.slice
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        return parent if all(map(_is_whole, parts)) else None
    called = source.parents.get(parent) if isinstance(parent, ast.Attribute) and parent.attr in _SHAPING else None
    return called if isinstance(called, ast.Call) and called.func is parent else None


def _is_whole(part: ast.expr) -> bool:
    none = isinstance(part, ast.Constant) and part.value is None
    return none or (isinstance(part, ast.Slice) and not (part.lower or part.upper or part.step))


def number(source: SourceFile, node: ast.AST, rows: int) -> list[Edit]:
    """The edits after which arithmetic has ``rows`` where it had the number of samples.

    Raises:
        CannotWrite: if no operand is written as ``x.shape[0]``, ``x.size(0)``, ``len(x)``, or a name for these.
    """
    if isinstance(node, ast.BinOp):
        operands = [node.left, node.right]
    elif isinstance(node, ast.AugAssign):
        operands = [node.value]
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in _BY_METHOD:
        operands = list(node.args)
    else:
        operands = []
    found = [size for operand in operands for size in _sizes(source, operand)]
    if not found:
        raise CannotWrite("the number of samples is not written there")
    return [Edit(*source.span(size), str(rows)) for size in found]


def _sizes(source: SourceFile, node: ast.expr) -> list[ast.expr]:
    """The numbers of samples in an expression of nothing but these and constants."""
    if _is_size(node) or (isinstance(node, ast.Name) and _names_size(source, node)):
        return [node]
    if isinstance(node, ast.BinOp):
        left, right = _sizes(source, node.left), _sizes(source, node.right)
        whole = all(found or isinstance(side, ast.Constant) for found, side in ((left, node.left), (right, node.right)))
        return left + right if whole else []
    return _sizes(source, node.operand) if isinstance(node, ast.UnaryOp) else []


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == 0 and _is_shape(node.value)
    if isinstance(node, ast.Call) and len(node.args) == 1:
        argument = node.args[0]
        zero = isinstance(argument, ast.Constant) and argument.value == 0
        by_method = isinstance(node.func, ast.Attribute) and node.func.attr == "size" and zero
        return by_method or (isinstance(node.func, ast.Name) and node.func.id == "len")
    return False


def _is_shape(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and not node.args and not node.keywords
    inner = node.func if isinstance(node, ast.Call) else node
    return isinstance(inner, ast.Attribute) and inner.attr == ("size" if called else "shape")


def _names_size(source: SourceFile, name: ast.Name) -> bool:
    """Whether a name is bound once in its function, to a number of samples."""
    scope = next((n for n in source.ancestors(name) if isinstance(n, FUNCTIONS)), None)
    if scope is None:
        return False
    bound = [n for n in ast.walk(scope) if isinstance(n, ast.Name) and n.id == name.id and isinstance(n.ctx, ast.Store)]
    parent = source.parents.get(bound[0]) if len(bound) == 1 else None
    if isinstance(parent, ast.Tuple) and parent.elts[0] is bound[0]:
        statement = source.parents.get(parent)
        return isinstance(statement, ast.Assign) and _is_shape(statement.value)
    return isinstance(parent, ast.Assign) and _is_size(parent.value)
