"""Sites of convolution weights and biases: any number of spatial axes, groups, dilation, stride, transposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpcheck.engine.sites.base import Place, Site, maker
from dpcheck.engine.sites.layout import Layout, find_layout

_backward = torch.ops.aten.convolution_backward.default
_KEEP_BYTES = 256 << 20


@dataclass(frozen=True)
class ConvolutionSite(Site):
    """The weight's gradient of ``aten.convolution_backward`` (Rochette et al. 2019 for the per-sample form)."""

    layout: Layout
    weight_shape: tuple[int, ...]
    options: tuple[Any, ...]  # stride, padding, dilation, transposed, output_padding, groups
    kind: ClassVar[str] = "convolution"

    def _contract(self, grad: Tensor, value: Tensor) -> Tensor:
        # Only the weight's shape matters for its own gradient.
        weight = value.new_empty(1).expand(self.weight_shape)
        result: Tensor = _backward(grad, value, weight, [0], *self.options, [False, True, False])[1]
        return result

    def per_sample(self, *values: Tensor) -> Tensor:
        grad, value = (self.layout.blocks(v) for v in values)
        return torch.vmap(self._contract)(grad, value)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        grad, value = values
        return self._contract(grad * self.layout.spread(factors.to(grad.dtype), grad.dim()), value)

    def keeps(self) -> bool:
        numel = 4 * self.batch
        for size in self.weight_shape:
            numel *= size
        return numel <= _KEEP_BYTES


@dataclass(frozen=True)
class ConvolutionBiasSite(Site):
    """``grad.sum`` over rows and spatial axes."""

    layout: Layout
    kind: ClassVar[str] = "sum"

    def per_sample(self, *values: Tensor) -> Tensor:
        return self.layout.blocks(values[0].flatten(2).sum(2)).sum(1)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        rows = values[0].flatten(2).sum(2)
        return (rows * self.layout.spread(factors.to(rows.dtype), 2)).sum(0)


@maker("convolution_backward")
def make(place: Place) -> Site | None:
    grad, value, weight = place.node.args[:3]
    layout = find_layout(place.samples(grad), range(1))
    if layout is None:
        return None
    if place.output == 2:
        return ConvolutionBiasSite((grad,), place.shape, place.batch, layout)  # type: ignore[arg-type]
    samples = place.samples(value)
    if not samples.empty() and find_layout(samples, range(1)) != layout:
        return None
    options = tuple(place.node.args[4:10])
    shape = tuple(weight.meta["val"].shape)  # type: ignore[union-attr]
    return ConvolutionSite((grad, value), place.shape, place.batch, layout, shape, options)  # type: ignore[arg-type]
