"""Batch norm classes that are passed around: defaults, arguments, dictionaries, ``partial``. Which built which module?

The file is loaded once more, with a subclass of its own in the place of every such reference; the class of a module
then says which reference it came from.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, cast

from dpcheck.rewrite.files import Project
from dpcheck.rewrite.names import Names
from dpcheck.rewrite.norms import is_constructor
from dpcheck.rewrite.text import SourceFile
from dpcheck.target import Target, load_model

_NUMBER, _CALL = "_dpcheck_reference", "__dpcheck_numbered__"
_TYPE_TESTS = ("isinstance", "issubclass")


@dataclass(frozen=True)
class Reference:
    """A name or dotted name that stands for ``kind`` at a place where it is not called."""

    source: SourceFile
    node: ast.expr
    kind: type


def references(source: SourceFile, names: Names) -> list[Reference]:
    """Where a file passes a batch norm class of torch's around, not where it only names one (annotations, tests)."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_passed(source, node):
            kind = names.value(node)
            if is_constructor(kind):
                found.append(Reference(source, node, kind))
    return found


def _is_passed(source: SourceFile, node: ast.expr) -> bool:
    child: ast.AST = node
    for parent in source.ancestors(node):
        if isinstance(parent, ast.Attribute | ast.Subscript) and child is parent.value:
            return False
        if isinstance(parent, ast.Call):
            tests = isinstance(parent.func, ast.Name) and parent.func.id in _TYPE_TESTS
            return child is not parent.func and not (tests and child in parent.args[1:])
        if isinstance(parent, ast.ClassDef | ast.Compare | ast.Import | ast.ImportFrom):
            return False
        if isinstance(parent, ast.AnnAssign | ast.arg):
            return child is not parent.annotation
        if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            return child is not parent.returns
        if isinstance(parent, ast.stmt):
            return True
        child = parent
    return True


def tests_of_type(source: SourceFile, names: Names) -> Iterator[int]:
    """The lines of ``isinstance(x, nn.BatchNorm2d)`` and the like."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _TYPE_TESTS:
            classes = [n for a in node.args[1:] for n in ast.walk(a) if isinstance(n, ast.Name | ast.Attribute)]
            if any(is_constructor(names.value(n)) for n in classes):
                yield node.lineno


def served(target: Target, found: Sequence[Reference], project: Project) -> Mapping[str, Reference]:
    """Which reference built the module at each path; paths that none of them built are left out.

    Raises:
        Exception: whatever the file raises when it is loaded a second time.
    """
    with _numbered(found, project):
        model = load_model(target.path, target.symbol)
    kinds = {path: type(module) for path, module in model.named_modules(remove_duplicate=False)}
    numbers = {path: getattr(kind, _NUMBER) for path, kind in kinds.items() if hasattr(kind, _NUMBER)}
    return {path: found[number] for path, number in numbers.items()}


@contextmanager
def _numbered(found: Sequence[Reference], project: Project) -> Iterator[None]:
    """Within it, the project's files are loaded anew, with a class of its own for every reference."""

    def numbered(number: int, kind: type) -> type:
        return types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update({_NUMBER: number}))

    trees = {source.path: _with_calls(source, found) for source in {r.source for r in found}}
    original = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> Any:
        tree = trees.get(Path(loader.path).resolve())
        return original(loader, name) if tree is None else compile(tree, loader.path, "exec", dont_inherit=True)

    kept = _modules_of(project)
    for name in kept:
        del sys.modules[name]
    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    setattr(builtins, _CALL, numbered)
    try:
        yield
    finally:
        delattr(builtins, _CALL)
        SourceFileLoader.get_code = original  # type: ignore[method-assign]
        for name in _modules_of(project):
            del sys.modules[name]
        sys.modules.update(kept)


def _modules_of(project: Project) -> dict[str, Any]:
    """What is loaded of the user's files; ``__main__`` is what runs this."""
    files = {name: getattr(m, "__file__", None) for name, m in sys.modules.items() if name != "__main__"}
    return {name: sys.modules[name] for name, file in files.items() if isinstance(file, str) and project.holds(file)}


def _with_calls(source: SourceFile, found: Sequence[Reference]) -> ast.Module:
    numbers = {_place(r.node): i for i, r in enumerate(found) if r.source is source}

    class Wrap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            number = numbers.get(_place(node)) if isinstance(node, ast.Name | ast.Attribute) else None
            if number is None:
                return self.generic_visit(node)
            kind = cast(ast.expr, node)
            call = ast.Call(ast.Name(_CALL, ast.Load()), [ast.Constant(number), kind], [])
            return ast.fix_missing_locations(ast.copy_location(call, node))

    tree: ast.Module = Wrap().visit(ast.parse(source.data))
    return tree


def _place(node: Any) -> tuple[type, int, int, int, int]:
    return type(node), node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
