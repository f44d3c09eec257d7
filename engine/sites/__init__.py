"""Gradient samplers, one for every op that sums gradients over samples."""

from dpcheck.engine.sites import bags, convolution, embedding, matmul, norms, scatter, sums
from dpcheck.engine.sites.base import Place, Site, make_site

__all__ = ["Place", "Site", "bags", "convolution", "embedding", "make_site", "matmul", "norms", "scatter", "sums"]
