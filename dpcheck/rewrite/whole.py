"""One line for a model that a library builds: ``dpcheck.fix`` where the file makes it."""

from __future__ import annotations

import ast
import itertools

from torch import nn

from dpcheck.rewrite.names import Names, assigns, bound_in
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.text import Edit, SourceFile
from dpcheck.target import Target

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def whole_model(source: SourceFile, names: Names, target: Target, *, unsafe: bool, to: str) -> tuple[int, list[Edit]]:
    """The edits that fix the whole model where it is made, and the line that they change.

    Raises:
        CannotWrite: if the file has no one place for it, with what to write instead.
    """
    space, symbol = vars(target.module), target.symbol
    call = _Call(target, unsafe, to)
    if isinstance(space[symbol], type):
        raise CannotWrite(f"where you make a {symbol}, write {call.around(f'{symbol}()', 'dpcheck.fix')}")
    functions = [n for n in source.tree.body if isinstance(n, _Function) and n.name == symbol]
    if len(functions) == 1 and not isinstance(space[symbol], nn.Module):
        return _in_function(source, names, functions[0], call)
    assigned = [n for n in source.tree.body if assigns(n, symbol)]
    if len(assigned) == 1 and isinstance(space[symbol], nn.Module):
        return _at_assignment(source, names, assigned[0], symbol, call)
    raise CannotWrite(f"the file has no one place that makes {symbol}; write {call.around(symbol, 'dpcheck.fix')}")


class _Call:
    """The text of the call of ``dpcheck.fix``; ``uses`` are the file's names in it."""

    def __init__(self, target: Target, unsafe: bool, to: str) -> None:
        space = vars(target.module)
        batch = "sample_batch" if space.get("sample_batch") is not None else "batch"
        self.uses = ["loss_fn", batch]
        options = ", unsafe=True" * unsafe + f', batch_norm_to="{to}"' * (to != "group")
        if target.unit is not None:
            self.uses.append("unit")
            options += ", unit=unit"
        self.after = f", loss_fn, {batch}{'()' * callable(space[batch])}{options}).model"

    def around(self, text: str, fix: str) -> str:
        return f"{fix}({text}{self.after}"

    def edits(self, source: SourceFile, node: ast.expr, fix: str) -> list[Edit]:
        start, end = source.span(node)
        return [Edit(start, start, f"{fix}("), Edit(end, end, self.after)]


def _in_function(source: SourceFile, names: Names, function: _Function, call: _Call) -> tuple[int, list[Edit]]:
    returns = [n for n in ast.walk(function) if isinstance(n, ast.Return) and _inside(source, n) is function]
    local = set(bound_in(function)) & set(call.uses)
    value = returns[0].value if len(returns) == 1 else None
    if value is None or function.decorator_list or local or isinstance(function, ast.AsyncFunctionDef):
        raise CannotWrite(
            f"call it where {function.name}() is used: {call.around(f'{function.name}()', 'dpcheck.fix')}"
        )
    return returns[0].lineno, call.edits(source, value, names.spell("dpcheck.fix", value))


def _inside(source: SourceFile, node: ast.AST) -> ast.AST | None:
    return next((n for n in source.ancestors(node) if isinstance(n, _Function | ast.Lambda)), None)


def _at_assignment(
    source: SourceFile, names: Names, node: ast.stmt, symbol: str, call: _Call
) -> tuple[int, list[Edit]]:
    assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
    defined = {name: n.lineno for n in source.tree.body for name in call.uses if assigns(n, name) or _defines(n, name)}
    if all(defined.get(name, node.lineno) < node.lineno for name in call.uses):
        return node.lineno, call.edits(source, node.value, names.spell("dpcheck.fix", node.value))
    uses = [
        n
        for n in ast.walk(source.tree)
        if isinstance(n, ast.Name) and n.id == symbol and n.lineno > node.lineno and not _stays_true(source, n)
    ]
    if uses or any(name not in defined for name in call.uses):
        raise CannotWrite(
            f"{symbol} is used before loss_fn and the batch are defined; define them above, and write "
            f"{symbol} = {call.around(symbol, 'dpcheck.fix')} where it is made"
        )
    end = len(source.text)
    start = "" if source.text.endswith("\n") else "\n"
    fix = names.spell("dpcheck.fix", source.tree.body[-1])
    return source.text.count("\n") + 1, [Edit(end, end, f"{start}{symbol} = {call.around(symbol, fix)}\n")]


def _stays_true(source: SourceFile, name: ast.Name) -> bool:
    """Whether a use of the model before it is fixed does no harm: in a function, or a change of the model in place."""
    if _inside(source, name) is not None:
        return True
    above = list(itertools.islice(source.ancestors(name), 3))
    changed = isinstance(above[0], ast.Attribute)
    called = len(above) == 3 and isinstance(above[1], ast.Call) and isinstance(above[2], ast.Expr)
    return changed and (called or isinstance(above[1], ast.Assign))


def _defines(node: ast.stmt, name: str) -> bool:
    return isinstance(node, _Function) and node.name == name
