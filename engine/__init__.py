"""The DP engine: per-sample clipping, noise, sampling, accounting, training."""

from dpcheck.engine.clipping import Clipped, Clipper, clipped_grads, per_sample_grads

__all__ = ["Clipped", "Clipper", "clipped_grads", "per_sample_grads"]
