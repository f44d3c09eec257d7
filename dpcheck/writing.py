"""Writing whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from dpcheck.errors import DpcheckError


def replace(path: Path, content: bytes) -> None:
    """Put ``content`` into a file at once: another process sees what was there or what is there now.

    A link stays a link, and a file that exists keeps its mode, and its owner where that is possible. What is no file
    (a device such as ``/dev/stdout``, a pipe) is written to, and stays what it is.

    Raises:
        OSError: if that cannot be done; nothing is left behind then.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with path.open("wb") as there:
            there.write(content)
        return
    real = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(prefix=f".{real.name}.", suffix=".dpcheck", dir=real.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if real.exists():
            shutil.copymode(real, name)
            with contextlib.suppress(OSError):  # only root may give a file away
                os.chown(name, real.stat().st_uid, real.stat().st_gid)
        else:
            os.chmod(name, 0o666 & ~_umask())
        os.replace(name, real)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def append_whole(path: Path, content: bytes) -> None:
    """Put ``content`` at the end of a file, and force it to disk before this returns.

    Raises:
        DpcheckError: if that cannot be done; the file is then as long as it was.
    """
    before = path.stat().st_size if path.exists() else None
    try:
        with path.open("ab", buffering=0) as file:
            written = file.write(content)
            if written != len(content):
                raise OSError(f"{written} of {len(content)} bytes were written")
            os.fsync(file.fileno())
    except OSError as error:
        # What follows a piece of a line would make both unreadable.
        with contextlib.suppress(OSError):
            os.truncate(path, before or 0)
        raise DpcheckError(
            f"{path} cannot be written: {error.strerror or error}",
            where=str(path),
            next="make room on the disk; no step was taken",
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_unwritable(path: str, option: str) -> None:
    """Raise for a path of ``option`` that cannot be written; before anything runs where that can be told.

    Raises:
        DpcheckError: for a folder, or a file in a folder that is not there or takes no file.
    """
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        return
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise DpcheckError(f"no file can be written to {path}", option, "pass a path in a folder that exists")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DpcheckError(
            f"no file can be written to {path}: {error.strerror}",
            option,
            "pass a path in a folder that you can write to",
        ) from error
