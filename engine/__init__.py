"""The DP engine: per-sample clipping, noise, sampling, accounting, training.

The names below and the modules are imported on first use, so that the accountant does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpcheck.engine import accounting
    from dpcheck.engine.auditing.audit import audit
    from dpcheck.engine.checkpoint import load_checkpoint, save_checkpoint
    from dpcheck.engine.clipped import Clipped
    from dpcheck.engine.clipping import Clipper, clipped_grads
    from dpcheck.engine.declared import Sampler, register_site
    from dpcheck.engine.kinds import AdaptiveQuantile, Automatic, Flat, PerGroup, PerLayer
    from dpcheck.engine.per_sample import per_sample_grads

__all__ = [
    "AdaptiveQuantile", "Automatic", "Clipped", "Clipper", "Flat", "PerGroup", "PerLayer", "Sampler", "accounting",
    "audit", "clipped_grads", "load_checkpoint", "per_sample_grads", "register_site", "save_checkpoint",
]  # fmt: skip

_HOMES = {
    "AdaptiveQuantile": "kinds",
    "Automatic": "kinds",
    "Clipped": "clipped",
    "Clipper": "clipping",
    "Flat": "kinds",
    "PerGroup": "kinds",
    "PerLayer": "kinds",
    "Sampler": "declared",
    "audit": "auditing.audit",
    "clipped_grads": "clipping",
    "load_checkpoint": "checkpoint",
    "per_sample_grads": "per_sample",
    "register_site": "declared",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
