"""From what the fixer changed in memory to edits of the files that say so."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from torch import nn

from dpcheck.diagnostic import Location
from dpcheck.fixer import Change, FixResult
from dpcheck.fixes import in_forward
from dpcheck.fixes.layers import is_frozen_batch_norm
from dpcheck.fixes.plans import lines_of
from dpcheck.rewrite import forwards, norms, sizes, switches
from dpcheck.rewrite.files import Project
from dpcheck.rewrite.losses import LossFix
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.page import Page, base_of, in_order
from dpcheck.rewrite.references import references, served, tests_of_type
from dpcheck.rewrite.text import Edit
from dpcheck.rewrite.whole import whole_model
from dpcheck.source import is_torch_or_ours
from dpcheck.target import Target
from dpcheck.unit import adapted


@dataclass(frozen=True)
class Mended:
    """A change that has an edit, at ``file:line`` of the file as it was."""

    change: Change
    file: Path
    line: int


@dataclass(frozen=True)
class SourceFix:
    """What ``--fix`` writes.

    Attributes:
        contents: path -> (content now, new content).
        mended: changes that the new contents have.
        refused: changes that they do not have, with the reason.
        notes: what else a reader must know.
        whole: whether the model goes through ``dpcheck.fix``.
    """

    contents: Mapping[Path, tuple[bytes, bytes]]
    mended: tuple[Mended, ...]
    refused: tuple[tuple[Change, str], ...]
    notes: tuple[str, ...] = ()
    whole: bool = False


def plan(
    target: Target, result: FixResult, *, to: str = "group", only_whole: bool = False, loss: LossFix | None = None
) -> SourceFix:
    """The edits of the user's files that have the effect of ``result``.

    Args:
        loss: the edits of the loss with which ``target`` was fixed, if it has some.
        to: what batch norm becomes; as for :func:`dpcheck.fix`.
        only_whole: put the model through ``dpcheck.fix``, and leave everything else as it is.

    Raises:
        DpcheckError: if a file cannot be read any more.
    """
    return _Planner(target, result, to).plan(only_whole, loss)


class _Planner:
    def __init__(self, target: Target, result: FixResult, to: str) -> None:
        self.target, self.to = target, to
        self.project = Project.of(target.path)
        self.report, self.diagnostics = result.before, result.before.diagnostics
        # A frozen batch norm has no finding: nothing is wrong with the file as it is.
        wrong = {(d.code, d.module or "") for d in self.diagnostics}
        self.changes = [c for c in result.changes if c.applied and (c.code, c.module) in wrong]
        self.pages: dict[Path, Page] = {}
        self.mended: dict[Mended, None] = {}
        self.refused: dict[Change, str] = {}
        given = target.model, *adapted(target.unit, target.loss_fn, target.batch)
        norm = any(c.code in ("DP101", "DP102") for c in self.changes)
        self.sizes = sizes.of_modules(*given) if norm else {}
        self.called = sizes.of_calls(*given) if norm else {}

    def plan(self, only_whole: bool, loss: LossFix | None) -> SourceFix:
        # The running statistics are known after the weights are; the convolution is told by what it is used for.
        if only_whole or self.to in ("frozen", "standardised"):
            self.refused = dict.fromkeys(self.changes, "")
        else:
            self._functional()
            self._forwards()
            self._constructors()
            self._subclasses()
            self._references()
            self._switches()
            self._freezes()
            self.refused |= dict.fromkeys(self._left(), "no edit of the file has this effect")
        whole = bool(self.refused) and self._whole()
        page = self._page(str(self.target.path)) if loss else None
        if loss and page:
            page.edits += loss.edits
            self.mended[Mended(loss.change, page.source.path, loss.line)] = None
        notes = tuple(self._notes())
        contents = {path: (page.source.data, page.content()) for path, page in self.pages.items() if page.edits}
        return SourceFix(contents, tuple(self.mended), tuple(self.refused.items()), notes, whole)

    def _left(self, *codes: str) -> list[Change]:
        done = {m.change for m in self.mended} | set(self.refused)
        return [c for c in self.changes if c not in done and (c.code in codes or not codes)]

    def _page(self, file: str) -> Page | None:
        if not self.project.holds(file):
            return None
        path = Path(file).resolve()
        if path not in self.pages:
            self.pages[path] = Page(path, self.to)
        return self.pages[path]

    def _call(self, at: Location) -> tuple[Page, ast.Call] | None:
        page = self._page(at.file)
        call = page.source.call_at(at) if page else None
        return (page, call) if page and call else None

    def _built(self, path: str) -> tuple[Page, ast.Call] | None:
        """The user's call that built a module, if nothing but torch came between."""
        calls = self.target.built.get(path, ())
        first = next((at for at in calls if not is_torch_or_ours(at.file)), None)
        return self._call(first) if first else None

    def _edit(self, page: Page, line: int, changes: list[Change], make: Callable[[], list[Edit]]) -> None:
        """Take the edits of ``make`` for some changes, or note why there are none."""
        try:
            page.edits += make()
        except CannotWrite as error:
            self.refused |= dict.fromkeys(changes, f"{page.source.path.name}:{line}: {error}")
        else:
            self.mended |= dict.fromkeys(Mended(change, page.source.path, line) for change in changes)

    def _functional(self) -> None:
        for change in self._left("DP101", "DP102"):
            found = [d for d in self.diagnostics if (d.code, d.module or "") == (change.code, change.module)]
            calls = dict.fromkeys(at for d in found if d.location and (at := self._call(d.location)))
            for page, call in calls:
                if norms.is_batch_norm_call(page.names, call):
                    key = str(page.source.path), call.end_lineno, call.end_col_offset
                    held = in_order(self.called.get(key, ()))
                    self._edit(page, call.lineno, [change], partial(page.functional, call, held))
            if change.code == "DP102" and change not in {m.change for m in self.mended} | set(self.refused):
                self.refused[change] = "the call of batch norm is not in a file of the project"

    def _forwards(self) -> None:
        """What forwards compute over the batch themselves: the changes of all modules of a class together."""
        groups: dict[type, list[Change]] = {}
        for change in self._left(*in_forward.CODES):
            groups.setdefault(type(self.target.model.get_submodule(change.module)), []).append(change)
        for changes in groups.values():
            lines = {c.module: lines_of(self.report, c.module) for c in changes}
            places = list(dict.fromkeys(at for found in lines.values() for at in found))
            pages = {self._page(at.file) for at in places}
            page = pages.pop()
            if page is None or pages:
                files = ", ".join(sorted({Path(at.file).name for at in places}))
                self.refused |= dict.fromkeys(changes, f"{files}: the lines are not in one file of the project")
                continue
            make = cache(partial(forwards.edits, page, self.target, places, lines))
            for change in changes:
                found = (d for d in self.diagnostics if (d.code, d.module or "") == (change.code, change.module))
                line = next((d.location.line for d in found if d.location is not None), places[0].line)
                self._edit(page, line, [change], make)

    def _constructors(self) -> None:
        groups: dict[ast.Call, tuple[Page, type, list[Change]]] = {}
        for change in self._left("DP101"):
            calls = self.target.built.get(change.module, ())
            found = self._call(calls[0]) if calls else None
            kind = found[0].names.value(found[1].func) if found else None
            if found and isinstance(kind, type) and norms.is_constructor(kind):
                groups.setdefault(found[1], (found[0], kind, []))[2].append(change)
        for call, (page, kind, changes) in groups.items():
            self._edit(page, call.lineno, changes, partial(self._constructor, page, call, kind, changes))

    def _constructor(self, page: Page, call: ast.Call, kind: type, changes: list[Change]) -> list[Edit]:
        built = [path for path, calls in self.target.built.items() if calls and self._call(calls[0]) == (page, call)]
        modules = {path: self.target.model.get_submodule(path) for path in built}
        frozen = [path for path, module in modules.items() if is_frozen_batch_norm(module)]
        if frozen:
            raise CannotWrite(f"the same call builds {frozen[0]!r}, which is in eval mode and needs no fix")
        held = in_order(self.sizes[change.module] for change in changes)
        try:
            return norms.constructor(page.source, page.names, call, kind, held, self.to)
        except norms.Unpacked:
            if issubclass(kind, nn.modules.lazy.LazyModuleMixin):
                raise
            return page.put_adapter(call.func, kind, held)

    def _subclasses(self) -> None:
        """A class of the user's over batch norm gets another base."""
        groups: dict[ast.expr, tuple[Page, type, list[Change]]] = {}
        for change in self._left("DP101"):
            found = base_of(type(self.target.model.get_submodule(change.module)), self._page)
            if found:
                groups.setdefault(found[1], (found[0], found[2], []))[2].append(change)
        for node, (page, kind, changes) in groups.items():
            self._adapt(page, node, kind, changes)

    def _adapt(self, page: Page, node: ast.expr, kind: type, changes: list[Change]) -> None:
        held = in_order(self.sizes[change.module] for change in changes)
        self._edit(page, node.lineno, changes, partial(page.put_adapter, node, kind, held))

    def _references(self) -> None:
        left = self._left("DP101")
        files = {at.file for change in left for at in self.target.built.get(change.module, ())}
        pages = [page for file in sorted(files) if (page := self._page(file))]
        found = [r for page in pages for r in references(page.source, page.names)]
        why = ""
        try:
            sources = served(self.target, found, self.project) if found else {}
        except Exception as error:  # whatever the user's file raises
            sources, why = {}, f"; a second run of the file raised {type(error).__name__}"
        groups: dict[ast.expr, list[Change]] = {}
        for change in left:
            if change.module in sources:
                groups.setdefault(sources[change.module].node, []).append(change)
            else:
                self.refused[change] = self._where(change.module) + why
        for reference in found:
            if reference.node in groups:
                page = self.pages[reference.source.path]
                self._adapt(page, reference.node, reference.kind, groups[reference.node])

    def _where(self, path: str) -> str:
        calls = self.target.built.get(path, ())
        if not calls:
            return "the file does not build this layer"
        inside = "" if self.project.holds(calls[0].file) else ", outside the project"
        return f"it is built at {Path(calls[0].file).name}:{calls[0].line}{inside}, by no call that can be edited"

    def _switches(self) -> None:
        groups: dict[ast.Call, tuple[Page, list[Change]]] = {}
        for change in self._left(*switches.SWITCHES):
            found = self._built(change.module)
            if found:
                groups.setdefault(found[1], (found[0], []))[1].append(change)
            else:
                self.refused[change] = self._where(change.module)
        for call, (page, changes) in groups.items():
            arguments = dict(switches.SWITCHES[change.code] for change in changes)
            self._edit(page, call.lineno, changes, partial(switches.off, page.source, page.names, call, arguments))

    def _freezes(self) -> None:
        """``nn.Linear(4, 3)`` -> ``nn.Linear(4, 3).requires_grad_(False)``, where no loss reaches what it builds."""
        groups: dict[ast.Call, tuple[Page, list[Change]]] = {}
        for change in self._left("DP201"):
            found = self._built(change.module)
            kind = found[0].names.value(found[1].func) if found else None
            if found and isinstance(kind, type) and issubclass(kind, nn.Module):
                groups.setdefault(found[1], (found[0], []))[1].append(change)
            else:
                self.refused[change] = self._where(change.module)
        for call, (page, changes) in groups.items():
            self._edit(page, call.lineno, changes, partial(self._frozen, page, call))

    def _frozen(self, page: Page, call: ast.Call) -> list[Edit]:
        built = tuple(f"{path}." for path in self.target.built if self._built(path) == (page, call))
        unreached = {d.parameter for d in self.diagnostics if d.code == "DP201"}
        held = [n for n, p in self.target.model.named_parameters() if p.requires_grad and n.startswith(built)]
        reached = [name for name in held if name not in unreached]
        if reached:
            raise CannotWrite(f"the same call makes {reached[0]!r}, which the loss reaches")
        end = page.source.span(call)[1]
        return [Edit(end, end, ".requires_grad_(False)")]

    def _whole(self) -> bool:
        page = self._page(str(self.target.path.resolve()))
        if page is None:
            return False
        unsafe = any(change.applicability == "unsafe" for change in self.refused)
        try:
            line, edits = whole_model(page.source, page.names, self.target, unsafe=unsafe, to=self.to)
        except CannotWrite as error:
            self.refused = {c: "; ".join(filter(None, (reason, str(error)))) for c, reason in self.refused.items()}
            return False
        page.edits += edits
        self.mended |= dict.fromkeys(Mended(change, page.source.path, line) for change in self.refused)
        self.refused = {}
        return True

    def _notes(self) -> Iterator[str]:
        for path, page in self.pages.items():
            lines = sorted(set(tests_of_type(page.source, page.names)))
            if lines and any(m.change.code == "DP101" and m.file == path for m in self.mended):
                shown = ", ".join(map(str, lines[:5]))
                yield f"{path.name}:{shown}: what was changed is no batch norm any more for these isinstance tests"
