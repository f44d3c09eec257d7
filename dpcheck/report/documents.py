"""What a run found, printed or written in one piece when the run is over."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpcheck.errors import DpcheckError
from dpcheck.report import json
from dpcheck.writing import refuse_unwritable, replace


@contextlib.contextmanager
def printed(format: str = "json", path: str | None = None) -> Iterator[dict[str, Any]]:
    """A document that is printed in the end, or written to ``path``, and not at all if the run fails.

    Standard output is for it alone, whatever the user's file prints.

    Raises:
        DpcheckError: if the file cannot be written; before anything runs where that can be told.
    """
    if path is not None:
        refuse_unwritable(path, "--output-file")
    document: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        yield document
    emit(_rendered(document, format), path)


def in_form(form: str, run: Callable[[dict[str, Any], bool], int]) -> int:
    """``run(document, quiet)``: unless ``form`` is full, what it puts into the document is all that is printed."""
    if form == "full":
        return run({}, False)
    with printed() as document:
        return run(document, True)


def emit(text: str, path: str | None) -> None:
    """Print a document, or write it to ``path``."""
    if path is None:
        print(text)
    else:
        write(Path(path), text + "\n", "--output-file")


def _rendered(document: Mapping[str, Any], format: str) -> str:
    if format == "json":
        return json.render(document)
    # A format that nobody asked for is not loaded.
    module = importlib.import_module(f"dpcheck.report.{format}")
    whole = format == "html"
    text: str = module.render(document) if whole else module.render(document["check"], document["target"])
    return text


def write(path: Path, text: str, option: str) -> None:
    """Whole or not at all: another process sees the old file or the new one.

    Raises:
        DpcheckError: if that is not possible, naming the ``option`` that gave the path.
    """
    try:
        replace(path, text.encode())
    except OSError as error:
        raise DpcheckError(f"{path} cannot be written: {error.strerror}", option, "pass another path") from error
