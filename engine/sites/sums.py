"""Sites that sum a tensor whose elements belong to one sample each: biases, scales, shared positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dpcheck.engine.sites.base import Place, Site, maker
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor

from dpcheck.samplesets.op import axes_of


@dataclass(frozen=True)
class SumSite(Site):
    """``value.sum(axes, keepdim)``, divided by ``divisor`` for a mean."""

    layout: Layout
    axes: tuple[int, ...]
    keepdim: bool
    divisor: int
    kind: ClassVar[str] = "sum"

    def per_sample(self, *values: Tensor) -> Tensor:
        parts = self.layout.blocks(values[0])
        axes = [axis + 1 for axis in self.axes]
        return (parts.sum(axes, keepdim=self.keepdim) / self.divisor).reshape(self.batch, *self.shape)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        (value,) = values
        scaled = value * self.layout.spread(factors.to(value.dtype), value.dim())
        return (scaled.sum(list(self.axes), keepdim=self.keepdim) / self.divisor).reshape(self.shape)


@maker("sum", "mean")
def make(place: Place) -> Site | None:
    value = place.node.args[0]
    samples = place.samples(value)
    rank = len(samples.shape)
    dims = place.node.args[1] if len(place.node.args) > 1 else place.node.kwargs.get("dim")
    axes = axes_of(dims, rank)
    axes = list(range(rank)) if axes is None else axes
    layout = find_layout(samples)
    if layout is None or layout.axis not in axes:
        return None
    count = 1
    if "mean" in str(place.node.target):
        for axis in axes:
            count *= samples.shape[axis]
    keepdim = bool(place.node.args[2]) if len(place.node.args) > 2 else bool(place.node.kwargs.get("keepdim", False))
    return SumSite((value,), place.shape, place.batch, layout, tuple(axes), keepdim, count)  # type: ignore[arg-type]
