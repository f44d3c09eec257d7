"""The user's files: which ones may be edited, and writing them so that all of it happens or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpcheck.errors import DpcheckError
from dpcheck.source import is_library, is_ours
from dpcheck.writing import replace

_MARKS = ("pyproject.toml", "setup.py", "setup.cfg", ".git", ".hg")


@dataclass(frozen=True)
class Project:
    """The folder of the user's project: the nearest one above the model file that looks like one, else the file's."""

    root: Path

    @classmethod
    def of(cls, file: Path) -> Project:
        folder = Path(os.path.abspath(file)).parent
        marked = (above for above in (folder, *folder.parents) if any((above / mark).exists() for mark in _MARKS))
        return cls(next(marked, folder).resolve())

    def holds(self, file: str) -> bool:
        """Whether a file, its links followed, lies in the project and was not installed there."""
        if file.startswith("<"):  # code that no file holds, such as the import system's
            return False
        path = os.path.realpath(file)
        return path.startswith(str(self.root) + os.sep) and not is_library(path) and not is_ours(path)


@contextmanager
def written(contents: Mapping[Path, tuple[bytes, bytes]]) -> Iterator[None]:
    """Write files, given as path -> (content now, new content). What raises within puts every file back.

    Every file is replaced at once by a temporary file beside it; a link stays a link, and the mode is kept.

    Raises:
        DpcheckError: if a file cannot be written, or no longer has the content that it had; nothing is written then.
    """
    for path, (old, _) in contents.items():
        if not os.access(path, os.W_OK):
            raise DpcheckError("the file is read-only", where=str(path), next=f"chmod u+w {path}")
        if path.read_bytes() != old:
            raise DpcheckError("the file has changed since it was loaded", where=str(path), next="run dpcheck again")
    done: list[Path] = []
    try:
        for path, (_, new) in contents.items():
            try:
                replace(path, new)
            except OSError as error:
                raise DpcheckError(f"the file cannot be written: {error}", where=str(path)) from error
            done.append(path)
        yield
    except BaseException:
        for path in done:
            # What the user saved meanwhile is not overwritten.
            if path.read_bytes() == contents[path][1]:
                replace(path, contents[path][0])
        raise
