"""Autocast belongs to the user's forward and backward: norms and sums are computed in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_DEVICES = ("cpu", "cuda", "xpu", "mps")


def casting() -> tuple[Any, ...]:
    """What autocast does here, as a key: the devices for which it is on, with their dtypes."""
    return tuple((d, torch.get_autocast_dtype(d)) for d in _DEVICES if torch.is_autocast_enabled(d))


@contextmanager
def without_autocast() -> Iterator[None]:
    """For the engine's own sums, and for a graph, which has all casts in it."""
    with ExitStack() as stack:
        for device, dtype in casting():
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=False))
        yield


@contextmanager
def without_cache() -> Iterator[None]:
    """Autocast as it is, without its cache: that would keep a copy of what a fallback makes for every sample."""
    with ExitStack() as stack:
        for device, dtype in casting():
            stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
        yield
