"""A baseline: the findings of an old project, so that only new ones fail."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpcheck.diagnostic import Diagnostic
from dpcheck.errors import DpcheckError
from dpcheck.writing import replace

SCHEMA = 1
_KEYS = {"id", "target", "code", "path", "module", "message"}
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Baseline:
    """The known findings of ``path``, an entry each."""

    path: Path
    entries: tuple[dict[str, Any], ...]

    @property
    def known(self) -> Counter[str]:
        """How often each id was found."""
        return Counter(entry["id"] for entry in self.entries)

    def of(self, target: str) -> Counter[str]:
        """The same for one target."""
        name = _relative(target, self.path.parent)
        return Counter(entry["id"] for entry in self.entries if entry["target"] == name)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read what :func:`write` wrote.

        Raises:
            DpcheckError: for a file that is not there, cannot be read, or is no baseline.
        """
        again = f"write it with --write-baseline {path}"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            entries = tuple(document["findings"])
            fits = document["schema"] == SCHEMA and all(set(entry) == _KEYS for entry in entries)
        except OSError as error:
            raise DpcheckError(f"the baseline cannot be read: {error.strerror}", str(path), again) from error
        except (ValueError, TypeError, KeyError) as error:
            raise DpcheckError("this is no baseline of dpcheck", str(path), again) from error
        if not fits:
            raise DpcheckError("this baseline is of another version of dpcheck", str(path), again)
        return cls(path, entries)


def entries_of(diagnostics: Iterable[Diagnostic], target: str, file: str, folder: Path) -> list[dict[str, Any]]:
    """One entry for each finding on ``target`` (``model.py:symbol``).

    It tells rule, file, module, parameter, buffer, op and message, but no line, so that findings may move. Paths are
    relative to ``folder``, the baseline's own, or below site-packages, so that they are the same on another machine.
    """
    name = _relative(target, folder)
    entries = []
    for d in diagnostics:
        path = _relative(d.location.file if d.location else file, folder)
        text = "\0".join(map(str, (name, d.code, path, d.module, d.parameter, d.buffer, d.op, d.message)))
        entries.append(
            {
                "id": hashlib.sha256(text.encode()).hexdigest()[:32],
                "target": name,
                "code": d.code,
                "path": path,
                "module": d.module,
                "message": d.message,
            }
        )
    return entries


def write(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a baseline, whole or not at all.

    Raises:
        DpcheckError: if that is not possible.
    """
    ordered = sorted(entries, key=lambda e: (e["target"], e["path"], e["code"], e["id"]))
    text = json.dumps({"schema": SCHEMA, "findings": ordered}, indent=1, ensure_ascii=False)
    try:
        replace(path, (text + "\n").encode())
    except OSError as error:
        raise DpcheckError(
            f"{path} cannot be written: {error.strerror}", "--write-baseline", "pass another path"
        ) from error


def _relative(file: str, folder: Path) -> str:
    parts = Path(file).parts
    for i, part in enumerate(parts):
        if part in _INSTALLED:
            return Path(*parts[i + 1 :]).as_posix()
    return Path(os.path.relpath(os.path.abspath(file), folder.resolve())).as_posix()
