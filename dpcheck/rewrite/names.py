"""What names in a file mean, and how to write what a fix needs there: from what is imported, else with an import."""

from __future__ import annotations

import ast
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpcheck.rewrite.text import Edit, SourceFile

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*FUNCTIONS, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_UNKNOWN = object()
# How a module is imported where nothing else leads to it, and the name that it has then.
_IMPORTS = {"torch.nn": ("from torch import nn", "nn"), "torch.nn.functional": ("import torch.nn.functional as F", "F")}


class Names:
    """The names of one file, by its syntax tree and its loaded module."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.space = next((vars(m) for m in list(sys.modules.values()) if _file(m) == source.path), {})
        self.taken = {n.id for n in ast.walk(source.tree) if isinstance(n, ast.Name)} | set(self.space)
        self._imported = dict(_imports(source.tree.body))
        self._new: dict[str, str] = {}
        self._statements: dict[str, str] = {}
        self._head = list(itertools.takewhile(_is_import, _without_docstring(source.tree.body)))

    def value(self, node: ast.expr) -> Any:
        """What a name or dotted name stands for; ``None`` if it is anything else, or a local name."""
        found = self._value(node)
        return None if found is _UNKNOWN else found

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            scopes = [scope for scope in self.source.ancestors(node) if isinstance(scope, _SCOPES)]
            for scope in scopes:
                local = bound_in(scope)
                if node.id in local:
                    return local[node.id]
            return self.space.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            base = self._value(node.value)
            return getattr(base, node.attr, _UNKNOWN) if isinstance(base, types.ModuleType | type) else _UNKNOWN
        return _UNKNOWN

    def spell(self, dotted: str, at: ast.AST) -> str:
        """How to write ``dotted`` (such as ``torch.nn.GroupNorm``) at a node; an import is added if need be."""
        module, _, attribute = dotted.rpartition(".")
        wanted = _resolve(dotted)
        after_imports = 1 + max((node.lineno for node in self._head), default=0)
        line = next((n.lineno for n in (at, *self.source.ancestors(at)) if isinstance(n, ast.stmt)), after_imports)
        shadowed = {
            name for scope in self.source.ancestors(at) if isinstance(scope, _SCOPES) for name in bound_in(scope)
        }
        usable = {name for name, first in self._imported.items() if first < line and name not in shadowed}
        for name in sorted(usable, key=lambda name: self._imported[name]):
            if self.space.get(name, _UNKNOWN) is wanted:
                return name
        for length in range(module.count(".") + 1):
            parts = module.split(".")
            inner = ".".join(parts[: len(parts) - length])
            for name in sorted(usable):
                if self.space.get(name, _UNKNOWN) is _resolve(inner):
                    return ".".join([name, *parts[len(parts) - length :], attribute])
        if module not in self._new:
            self._new[module] = self._import(module)
        return f"{self._new[module]}.{attribute}"

    def _import(self, module: str) -> str:
        statement, name = _IMPORTS.get(module, (f"import {module}", module))
        if name in self.taken and self.space.get(name, _UNKNOWN) is not _resolve(module):
            name = f"_{module.replace('.', '_')}"
            statement = f"import {module} as {name}"
        self._statements[module] = statement
        return name

    def free(self, name: str) -> str:
        """``name``, or one like it that the file does not use."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def header(self, definitions: list[str]) -> list[Edit]:
        """The edits that add the imports, and definitions after them, to the imports at the head of the file."""
        own = sorted(s for module, s in self._statements.items() if module.partition(".")[0] in sys.stdlib_module_names)
        other = sorted(set(self._statements.values()) - set(own))
        text = "".join(f"{line}\n" for line in other) + "".join(f"\n\n{definition}" for definition in definitions)
        if not self._head:
            before = "".join(f"{line}\n" for line in own)
            at = self._first()
            return [Edit(at, at, before + text + self._apart(at))] if before or text else []
        at = self._after(self._head[-1])
        edits = [Edit(at, at, text + (self._apart(at) if definitions else ""))] if text else []
        if own:
            later = [node for node in self._head if not _is_future(node)]
            at = self.source.span(later[0])[0] if later else self._after(self._head[-1])
            apart = "" if later and _is_of_python(later[0]) else "\n"
            edits.insert(0, Edit(at, at, "".join(f"{line}\n" for line in own) + apart))
        return edits

    def _apart(self, at: int) -> str:
        """The line ends that are missing for two empty lines before what follows."""
        following = self.source.text[at:]
        return "\n" * max(0, 2 - following[: len(following) - len(following.lstrip())].count("\n"))

    def _after(self, node: ast.stmt) -> int:
        """The start of the line after a statement."""
        end = self.source.span(node)[1]
        found = self.source.text.find("\n", end)
        return found + 1 if found >= 0 else len(self.source.text)

    def _first(self) -> int:
        """The start of the first line that is code: comments at the head (an encoding, a licence) stay there."""
        at = 0
        for line in self.source.text.splitlines(keepends=True):
            if line.strip() and not line.lstrip().startswith("#"):
                break
            at += len(line)
        return at


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    return body[1:] if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else body


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_of_python(node: ast.stmt) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
    return any(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def _file(module: Any) -> Path | None:
    try:
        return Path(module.__file__).resolve()
    except (AttributeError, TypeError):
        return None


def _resolve(dotted: str) -> Any:
    parts = dotted.split(".")
    found: Any = sys.modules.get(parts[0])
    for part in parts[1:]:
        found = getattr(found, part, None)
    return found


def _imports(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Names that imports of the module bind, also within ``try`` and ``if``, with the line."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name.partition(".")[0]), node.lineno
        elif isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse]
            yield from _imports(inner)


def assigns(node: ast.stmt, name: str) -> bool:
    """Whether a statement assigns to one name, this one."""
    targets: list[Any] = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == name


def bound_in(scope: ast.AST) -> dict[str, Any]:
    """The names that a function binds, and what those are that it imports."""
    found: dict[str, Any] = {}
    if isinstance(scope, FUNCTIONS):
        a = scope.args
        given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *[extra for extra in (a.vararg, a.kwarg) if extra]]
        found = {argument.arg: _UNKNOWN for argument in given}
    inner: list[ast.AST] = list(ast.iter_child_nodes(scope))
    while inner:
        node = inner.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, _UNKNOWN)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = _resolve(alias.name if alias.asname else first)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = _resolve(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, _UNKNOWN)
        if not isinstance(node, (*_SCOPES, ast.ClassDef)):
            inner += ast.iter_child_nodes(node)
    return found
