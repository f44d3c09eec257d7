"""One file of the user's, and what is to be written in it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dpcheck.rewrite import norms
from dpcheck.rewrite.names import Names
from dpcheck.rewrite.norms import Size
from dpcheck.rewrite.text import Edit, SourceFile


class Page:
    """A file, its names and its edits. Raises as :class:`SourceFile`."""

    def __init__(self, path: Path, to: str) -> None:
        self.source = SourceFile(path)
        self.names = Names(self.source)
        self.edits: list[Edit] = []
        self._to = to
        self._adapters: dict[type, tuple[str, set[Size]]] = {}

    def put_adapter(self, node: ast.expr, kind: type, served: Iterable[Size]) -> list[Edit]:
        """The edit that names, at ``node``, the class that takes the place of ``kind`` in this file.

        Raises:
            CannotWrite: if no norm over one sample suits what it serves.
        """
        name, held = self._adapters.get(kind) or (self._name(kind), set())
        norms.divisor([*held, *served], self._to)
        self._adapters[kind] = name, held | set(served)
        return [Edit(*self.source.span(node), name)]

    def functional(self, call: ast.Call, served: list[Size]) -> list[Edit]:
        """The edits that turn a functional call into one of group norm; raises as :func:`norms.functional`."""
        return norms.functional(self.source, self.names, call, served, self._to)

    def _name(self, kind: type) -> str:
        return self.names.free(kind.__name__.lstrip("_").replace("BatchNorm", "GroupNorm"))

    def content(self) -> bytes:
        """The new content of the file."""
        top = self.source.tree
        written = []
        for name, held in self._adapters.values():
            base, gcd = self.names.spell("torch.nn.GroupNorm", top), self.names.spell("math.gcd", top)
            written.append(norms.adapter(name, in_order(held), self._to, base, gcd))
        return self.source.edited([*self.edits, *self.names.header(written)])


def in_order(found: Iterable[Size]) -> list[Size]:
    """Each once, in an order that does not change between runs."""
    return sorted(set(found), key=lambda size: (size.channels, size.positions))


def base_of(kind: type, page_of: Callable[[str], Page | None]) -> tuple[Page, ast.expr, type] | None:
    """Where a class of the user's names the batch norm that it derives from, and which one that is."""
    for owner in kind.__mro__:
        if norms.is_constructor(owner):
            return None
        page = page_of(str(getattr(sys.modules.get(owner.__module__), "__file__", None) or ""))
        classes = [n for n in ast.walk(page.source.tree) if isinstance(n, ast.ClassDef)] if page else []
        for base in [base for node in classes if node.name == owner.__name__ for base in node.bases]:
            if page and norms.is_constructor(page.names.value(base)):
                return page, base, page.names.value(base)
    return None
