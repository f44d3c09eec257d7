"""Marking the findings of a report that are ignored, and telling which ignores are of no use."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dpcheck.diagnostic import Diagnostic, Ignored, Report
from dpcheck.ignores.baseline import Baseline, entries_of
from dpcheck.ignores.comments import Comment, comments_of
from dpcheck.ignores.selection import Selection
from dpcheck.report.places import short
from dpcheck.rewrite.files import Project


@dataclass(frozen=True)
class Ignores:
    """All that may ignore a finding on one target.

    Attributes:
        target: ``model.py:symbol``, as in a baseline.
        file: the target's file, for findings without a line.
        comments: those of the project's files that were run.
    """

    target: str
    file: str
    selection: Selection
    comments: tuple[Comment, ...] = ()
    baseline: Baseline | None = None

    def marked(self, report: Report) -> Report:
        """The report with every ignored finding marked. Verdict and findings stay what they are."""
        known = Counter(self.baseline.known if self.baseline else ())
        return replace(report, diagnostics=tuple(replace(d, ignored=self._by(d, known)) for d in report.diagnostics))

    def _by(self, d: Diagnostic, known: Counter[str]) -> Ignored | None:
        by = self.selection.of(d, d.location.file if d.location else self.file)
        for comment in self.comments if by is None else ():
            if _about(comment, d):
                return Ignored("comment", f"{short(comment.file)}:{comment.line}", comment.reason)
        if by is None and self.baseline is not None:
            (entry,) = entries_of([d], self.target, self.file, self.baseline.path.parent)
            if known[entry["id"]] > 0:
                known[entry["id"]] -= 1
                return Ignored("baseline", short(self.baseline.path))
        return by

    def warnings(self, report: Report) -> list[str]:
        """What is wrong with the comments and the baseline, given the report before any fix."""
        found = []
        for comment in self.comments:
            at = f"{short(comment.file)}:{comment.line}"
            if comment.wrong is not None:
                found.append(f"{at}: this comment ignores nothing: it {comment.wrong}")
                continue
            codes = [
                c for c in comment.codes if not any(d.code == c and _about(comment, d) for d in report.diagnostics)
            ]
            if codes:
                found.append(f"{at}: unused ignore[{', '.join(codes)}]: no such finding there in {self.target}")
        if self.baseline is not None:
            folder = self.baseline.path.parent
            now = Counter(e["id"] for e in entries_of(report.diagnostics, self.target, self.file, folder))
            gone = sum((self._known_here() - now).values())
            if gone:
                one = gone == 1
                found.append(
                    f"{short(self.baseline.path)}: {gone} finding{'' if one else 's'} of {self.target} "
                    f"{'is' if one else 'are'} gone; write the baseline again"
                )
        return found

    def _known_here(self) -> Counter[str]:
        assert self.baseline is not None
        return self.baseline.of(self.target)


def _about(comment: Comment, d: Diagnostic) -> bool:
    return (
        d.location is not None
        and Path(d.location.file).resolve() == Path(comment.file).resolve()
        and comment.covers(d.code, d.location)
    )


def comments_of_project(file: Path, report: Report) -> tuple[Comment, ...]:
    """The comments in the project's files that this process has imported, or that a finding lies in."""
    project = Project.of(file)
    imported: Iterable[str | None] = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    located = (d.location.file for d in report.diagnostics if d.location)
    files = {str(Path(f).resolve()) for f in (str(file), *imported, *located) if f and f.endswith(".py")}
    return tuple(c for f in sorted(files) if project.holds(f) or f == str(file.resolve()) for c in comments_of(f))
