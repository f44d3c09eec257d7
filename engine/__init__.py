"""The DP engine: per-sample clipping, noise, sampling, accounting, training."""

from dpcheck.engine.clipped import Clipped
from dpcheck.engine.clipping import Clipper, clipped_grads
from dpcheck.engine.declared import Sampler, register_site
from dpcheck.engine.kinds import AdaptiveQuantile, Automatic, Flat, PerGroup, PerLayer
from dpcheck.engine.per_sample import per_sample_grads

__all__ = [
    "AdaptiveQuantile", "Automatic", "Clipped", "Clipper", "Flat", "PerGroup", "PerLayer", "Sampler", "clipped_grads",
    "per_sample_grads", "register_site",
]  # fmt: skip
