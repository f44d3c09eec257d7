"""Where a finding lies, in the words of other tools: paths below the working folder, columns from 1 in characters."""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass
from pathlib import Path

from dpcheck.diagnostic import Diagnostic, Location


@dataclass(frozen=True)
class Place:
    """A span of a file; lines and columns count from 1, and ``end_column`` is behind the last character.

    Attributes:
        path: with slashes, relative to the working folder if it is below it.
        width: characters of the last line, at least 1; an empty line has its end.
    """

    path: str
    line: int
    end_line: int
    column: int | None = None
    end_column: int | None = None
    width: int = 1


def place_of(location: Location) -> Place:
    """The span in characters: Python counts bytes of UTF-8."""
    end_line = location.end_line or location.line
    column = _character(location.file, location.line, location.column)
    end = _character(location.file, end_line, location.end_column)
    width = max(1, len(linecache.getline(location.file, end_line).rstrip("\r\n")))
    return Place(path_of(location.file), location.line, end_line, column, end if column is not None else None, width)


def place_of_finding(d: Diagnostic, target: str) -> Place:
    """Its own, or the first line of the target's file for a finding that no line shows."""
    return Place(path_of(target), 1, 1) if d.location is None else place_of(d.location)


def path_of(file: str) -> str:
    """With slashes, relative to the working folder if it is below it, else absolute."""
    return Path(_below(file) or os.path.abspath(file)).as_posix()


def short(file: str | Path) -> str:
    """For people: relative to the working folder if it is below it, else as it is."""
    return _below(file) or str(file)


def _below(file: str | Path) -> str | None:
    relative = os.path.relpath(file)
    return None if relative.startswith("..") else relative


def told(d: Diagnostic) -> str:
    """The finding in a sentence or two: what is wrong, and what to do."""
    return f"{d.message}. {d.help}" if d.help else d.message


def _character(file: str, line: int, column: int | None) -> int | None:
    if column is None:
        return None
    return len(linecache.getline(file, line).encode()[:column].decode(errors="ignore")) + 1
