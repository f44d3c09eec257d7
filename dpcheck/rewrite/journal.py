"""A record of what a fix writes, from which the next run puts files back if that one was killed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dpcheck.errors import DpcheckError
from dpcheck.writing import replace


def journal_of(file: Path) -> Path:
    """Where the record of fixes to a model file is, while one is written."""
    real = Path(os.path.realpath(file))
    return real.with_name(f".{real.name}.dpcheck-undo")


@contextmanager
def recorded(journal: Path, contents: Mapping[Path, tuple[bytes, bytes]]) -> Iterator[None]:
    """Hold a record of ``contents``, path -> (content now, new content), on the disk while they are written.

    It is locked, so that another run sees whether this one still lives.

    Raises:
        DpcheckError: if there is one already, or it cannot be written; nothing has been done then.
    """
    entries = [[str(path), *(base64.b64encode(data).decode() for data in pair)] for path, pair in contents.items()]
    try:
        handle = os.open(journal, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError as error:
        raise _busy(journal) from error
    except OSError as error:
        raise DpcheckError(f"the file cannot be written: {error}", where=str(journal)) from error
    with os.fdopen(handle, "wb") as file:
        try:
            _lock(file.fileno())
            file.write(json.dumps(entries).encode())
            file.flush()
            os.fsync(file.fileno())
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(journal)


def recover(file: Path) -> tuple[Path, ...]:
    """Put back what a fix of a model file had written when it was killed, and remove what it left.

    A file that was saved by somebody else since then stays as it is.

    Returns:
        The files that were put back.

    Raises:
        DpcheckError: if another run is writing these files now.
    """
    journal = journal_of(file)
    if not journal.exists():
        return ()
    with open(journal, "rb") as held:
        if not _lock(held.fileno()):
            raise _busy(journal)
        try:
            entries = json.loads(held.read())
        except ValueError:  # it was killed before it wrote anything else
            entries = []
        put_back = []
        for name, old, new in entries:
            path, (before, after) = Path(name), (base64.b64decode(data) for data in (old, new))
            if path.exists() and path.read_bytes() == after:
                replace(path, before)
                put_back.append(path)
            real = Path(os.path.realpath(path))
            for left in real.parent.glob(f".{real.name}.*.dpcheck"):
                left.unlink()
        os.unlink(journal)
    return tuple(put_back)


def _busy(journal: Path) -> DpcheckError:
    return DpcheckError(
        "another run of dpcheck writes this file, or one was killed while it did",
        where=str(journal),
        next="wait until it has ended and run dpcheck --fix again, which puts back what was left half done",
    )


def _lock(handle: int) -> bool:
    """Whether nobody else holds the lock; the system gives it back when its holder ends in any way."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
