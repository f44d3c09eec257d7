"""Where a traced op came from: the user's line, the library's line, and the path of modules around it."""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType

from dpcheck.diagnostic import Location


def _folder(package: str) -> str:
    """The folder of a package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed as a folder of source files")
    return os.path.dirname(os.path.abspath(spec.origin)) + os.sep


_TORCH = _folder("torch")
_OURS = tuple(_folder(package) for package in ("dpcheck", "dpcheck.engine", "dpcheck.rules"))
_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple({_PATHS[key] + os.sep for key in ("purelib", "platlib", "stdlib", "platstdlib")})
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_GENERATED = ("<frozen", "<eval_with_key")
_CALLS = frozenset({"_call_impl", "_wrapped_call_impl"})


@dataclass(frozen=True)
class Origin:
    """The source of one op.

    Attributes:
        user: the innermost line in the user's own files (outside site-packages, the standard library and dpcheck).
        library: the innermost line outside torch and dpcheck, when it is not the user's.
        modules: paths of the modules whose ``forward`` was running, outermost first; empty in the loss function.
    """

    user: Location | None
    library: Location | None
    modules: tuple[str, ...]

    @property
    def location(self) -> Location | None:
        return self.user or self.library

    @property
    def module(self) -> str | None:
        return self.modules[-1] if self.modules else None


def is_ours(file: str) -> bool:
    return file.startswith(_OURS)


def is_torch_or_ours(file: str) -> bool:
    """Whether a file belongs to torch or to dpcheck."""
    return is_ours(file) or file.startswith(_TORCH)


def is_library(file: str) -> bool:
    """Whether a file is not the user's: installed, of the standard library, or code that some tool generated.

    Code without a file is the user's where its source is known, as that of a notebook's cell is.
    """
    if file.startswith("<"):
        return not linecache.getlines(file)
    return file.startswith((*_LIBRARIES, _TORCH)) or any(name in file for name in _INSTALLED)


def span_of(code: object, instruction: int, line: int, file: str) -> Location:
    positions = list(code.co_positions())  # type: ignore[attr-defined]
    first, last, column, end_column = positions[instruction // 2] if instruction >= 0 else (line, line, None, None)
    name = code.co_name  # type: ignore[attr-defined]
    return Location(file, first or line, last, column, end_column, None if name == "<module>" else name)


def _locate(frames: list[FrameType]) -> tuple[Location | None, Location | None]:
    """The user's and the library's location, from frames ordered innermost first."""
    library = nameless = None
    for frame in frames:
        file = frame.f_code.co_filename
        if is_torch_or_ours(file):
            continue
        here = span_of(frame.f_code, frame.f_lasti, frame.f_lineno, file)
        if not is_library(file):
            return here, library
        if not file.startswith("<"):
            library = library or here
        elif not file.startswith(_GENERATED):
            nameless = nameless or here
    return None, library or nameless


def origin_here(paths: Mapping[int, str], root: FrameType | None = None) -> Origin:
    """The origin of the op that is being dispatched now.

    Args:
        paths: ``id(module) -> path`` of the model's modules.
        root: the frame below which nothing belongs to the model.
    """
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not root:
        frames.append(frame)
        frame = frame.f_back
    modules: list[str] = []
    for caller in reversed(frames):
        if caller.f_code.co_name in _CALLS:
            path = paths.get(id(caller.f_locals.get("self")))
            if path is not None and (not modules or modules[-1] != path):
                modules.append(path)
    return Origin(*_locate(frames), tuple(modules))


def location_of(traceback: TracebackType | None) -> Location | None:
    """The innermost line of the user's files in a traceback, else the innermost outside torch and dpcheck."""
    found: Location | None = None
    fallback: Location | None = None
    while traceback is not None:
        code, file = traceback.tb_frame.f_code, traceback.tb_frame.f_code.co_filename
        if not is_ours(file):
            here = span_of(code, traceback.tb_lasti, traceback.tb_lineno, file)
            if not is_library(file):
                found = here
            elif not file.startswith((_TORCH, "<")):
                fallback = here
        traceback = traceback.tb_next
    return found or fallback
