"""Which rules fail a run: ``--select``, ``--ignore``, ``--extend-select`` and ignores by file."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpcheck.diagnostic import Diagnostic, Ignored
from dpcheck.errors import DpcheckError
from dpcheck.rules import RULES

_NAMES = {rule.name: rule.code for rule in RULES}
_CODES = tuple(rule.code for rule in RULES)


def split(values: Iterable[str]) -> list[str]:
    """The selectors of repeated options, each a list with commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def code_of(selector: str, where: str) -> str:
    """What a selector's codes begin with: ``ALL``, a code, the beginning of one, or a rule's name.

    Raises:
        DpcheckError: naming the nearest rule, if there is none.
    """
    prefix = "" if selector.upper() == "ALL" else _NAMES.get(selector.lower(), selector.upper())
    if any(code.startswith(prefix) for code in _CODES) and (prefix or selector):
        return prefix
    near = difflib.get_close_matches(selector.upper(), _CODES, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(selector.lower(), _NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DpcheckError(f"there is no rule {selector!r}", where, f"{hint}`dpcheck rule --all` lists the rules")


@dataclass(frozen=True)
class Selection:
    """Prefixes of codes. Of two that match a rule, the longer decides; of two equal ones, the ignored.

    Attributes:
        select, ignore: prefixes; an empty one is every code.
        per_file: pattern of a path and the prefixes that are ignored there. Patterns are of the path relative to
            ``root`` or of the file's name alone.
        root: the project's folder.
    """

    select: tuple[str, ...] = ("",)
    ignore: tuple[str, ...] = ()
    per_file: tuple[tuple[str, tuple[str, ...]], ...] = ()
    root: Path = Path()

    def of(self, d: Diagnostic, file: str) -> Ignored | None:
        """Why a finding in ``file`` is ignored, if it is."""
        chosen, left_out = (max(_lengths(d.code, by), default=-1) for by in (self.select, self.ignore))
        if left_out >= 0 and left_out >= chosen:
            return Ignored("ignore")
        if chosen < 0:
            return Ignored("select")
        relative = Path(os.path.relpath(os.path.abspath(file), self.root.resolve())).as_posix()
        for pattern, prefixes in self.per_file:
            matches = any(fnmatch.fnmatchcase(path, pattern) for path in (relative, Path(file).name))
            if matches and any(_lengths(d.code, prefixes)):
                return Ignored("per-file-ignores", pattern)
        return None


def _lengths(code: str, prefixes: Iterable[str]) -> list[int]:
    return [len(prefix) for prefix in prefixes if code.startswith(prefix)]


def selection(
    *,
    select: Iterable[str] | None,
    extend: Iterable[str],
    ignore: Iterable[str],
    project: Mapping[str, object],
    root: Path,
) -> Selection:
    """What the options say, and where they are silent the project. ``select`` takes the place of the project's.

    Raises:
        DpcheckError: for a selector of no rule.
    """
    place = str(root / "pyproject.toml")

    def of_project(key: str) -> list[str]:
        values = project.get(key, [])
        assert isinstance(values, list)
        return [code_of(value, f"{place}: {key}") for value in values]

    chosen = None if select is None else [code_of(value, "--select") for value in select]
    if chosen is None and "select" in project:
        chosen = of_project("select")
    extended = [*of_project("extend-select"), *(code_of(value, "--extend-select") for value in extend)]
    ignored = [*of_project("ignore"), *(code_of(value, "--ignore") for value in ignore)]
    per_file = project.get("per-file-ignores", {})
    assert isinstance(per_file, dict)
    by_file = tuple(
        (pattern, tuple(code_of(value, f"{place}: per-file-ignores") for value in values))
        for pattern, values in per_file.items()
    )
    return Selection((*([""] if chosen is None else chosen), *extended), tuple(ignored), by_file, root)
