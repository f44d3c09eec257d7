"""What the user's code raises becomes an error of ours that names the user's line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpcheck.errors import DpcheckError
from dpcheck.source import location_of


@contextmanager
def blaming(what: str, path: Path) -> Iterator[None]:
    """Turns what the user's code raises inside into an error that says ``what`` and names the user's line.

    Raises:
        DpcheckError: for every exception, :class:`SystemExit` too.
    """
    try:
        yield
    except DpcheckError:
        raise
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}" if error.filename else str(path)
        raise DpcheckError(
            f"{error.filename or path} is not valid Python: {error.msg}",
            where=where,
            next=f"python -m py_compile {error.filename or path}",
        ) from error
    except (Exception, SystemExit) as error:
        location = location_of(error.__traceback__)
        raise DpcheckError(
            f"{what}: {type(error).__name__}: {error}".rstrip(": "),
            where=str(location) if location else str(path),
            next="mend that line; --traceback shows the whole traceback",
        ) from error
