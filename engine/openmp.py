"""Room for other threads on the cores that torch's OpenMP threads hold."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

_SOFT = 1  # omp_pause_soft of OpenMP 5.0


def rest() -> None:
    """Ends the OpenMP threads of this thread; torch starts others with its next operation.

    Otherwise they spin after an operation (with libgomp some 5 ms), each on a core of its own. Does nothing where
    OpenMP is older or is not there.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@lru_cache(maxsize=1)
def _pause() -> Callable[[int], int] | None:
    try:
        found = ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):  # no such function; no way to ask for it
        return None
    found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    return found
