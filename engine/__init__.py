"""The DP engine: per-sample clipping, noise, sampling, accounting, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpcheck.engine.clipped import Clipped
from dpcheck.engine.clipping import Clipper, clipped_grads
from dpcheck.engine.declared import Sampler, register_site
from dpcheck.engine.kinds import AdaptiveQuantile, Automatic, Flat, PerGroup, PerLayer
from dpcheck.engine.per_sample import per_sample_grads

if TYPE_CHECKING:
    from dpcheck.engine.auditing.audit import audit

__all__ = [
    "AdaptiveQuantile", "Automatic", "Clipped", "Clipper", "Flat", "PerGroup", "PerLayer", "Sampler", "audit",
    "clipped_grads", "per_sample_grads", "register_site",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The audit is loaded on first use: it needs the trainer and more of scipy."""
    if name == "audit":
        from dpcheck.engine.auditing.audit import audit

        return audit
    raise AttributeError(f"module 'dpcheck.engine' has no attribute {name!r}")
