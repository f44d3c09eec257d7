"""Sites of convolution weights and biases: any number of spatial axes, groups, dilation, stride, transposed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from dpcheck.engine.sites.base import (
    FLOPS_PER_BYTE,
    Place,
    Site,
    Work,
    chosen,
    contractions,
    maker,
    square_norms_of,
    wide,
)
from dpcheck.engine.sites.layout import Layout, find_layout
from dpcheck.engine.sites.pairs import KEEP_BYTES
from torch import Tensor

_backward = torch.ops.aten.convolution_backward.default

_PIECE_BYTES = 2 << 20


@dataclass(frozen=True)
class Geometry:
    """The options of ``aten.convolution``, and the weight's shape [out or in, channels per group, *kernel]."""

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def contract(self, grad: Tensor, value: Tensor, copies: int = 1) -> Tensor:
        """The weight's gradient, summed over axis 0, for each of ``copies`` convolutions that lie along axis 1.

        Of the weight only its shape matters: [copies * out or in, channels per group, *kernel].
        """
        weight = value.new_empty(copies * self.weight[0], *self.weight[1:])
        options = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding)
        result: Tensor = _backward(grad, value, weight, [0], *options, self.groups * copies, [False, True, False])[1]
        return result

    def kept_bytes(self, batch: int) -> int:
        """Of the gradients of ``batch`` samples in float32."""
        return 4 * batch * math.prod(self.weight)

    @property
    def at_once(self) -> int:
        """Of how many samples gradients are computed in one call."""
        return max(1, _PIECE_BYTES // self.kept_bytes(1))

    def windows(self, slid: Tensor, sizes: tuple[int, ...], axes: tuple[int, int]) -> Iterator[Tensor]:
        """What each place of the kernel meets: views of ``slid``, whose padded spatial axes start at both ``axes``."""
        for place in itertools.product(*(range(k) for k in self.weight[2:])):
            view = slid
            for axis in axes:
                for i, (k, size) in enumerate(zip(place, sizes, strict=True)):
                    start, stride = k * self.dilation[i], self.stride[i]
                    view = view[(slice(None),) * (axis + i) + (slice(start, start + stride * (size - 1) + 1, stride),)]
            yield view


@dataclass(frozen=True)
class ConvolutionSite(Site):
    """The weight's gradient. Rows are [R, C, *], and ``layout.each`` rows belong to a sample.

    Every sample's gradient comes from one convolution with the samples as groups (Rochette et al. 2019). The ghost norm
    multiplies Grams of patches, and those are sums of shifted Grams of pixels: no patch is unfolded.
    """

    layout: Layout
    geometry: Geometry
    sizes: tuple[tuple[int, ...], tuple[int, ...]]  # spatial sizes of the output gradient and of the input
    kind: ClassVar[str] = "convolution"

    def per_sample(self, *values: Tensor) -> Tensor:
        # Into one tensor as they come: the memory of a piece serves the next one.
        each = values[0].new_empty(self.batch, *self.shape)
        for own, piece in zip(each.split(self.geometry.at_once), self._pieces(*values), strict=True):
            own.copy_(piece)
        return each

    def _pieces(self, *values: Tensor) -> Iterator[Tensor]:
        """Gradients of a few samples at a time, which stay in the cache."""
        rows = [self.layout.blocks(v) for v in values]
        for few in zip(*(r.split(self.geometry.at_once) for r in rows), strict=True):
            grad, value = (r.transpose(0, 1).flatten(1, 2) for r in few)
            yield self.geometry.contract(grad, value, len(few[0])).reshape(-1, *self.shape)

    def square_norms(self, *values: Tensor) -> Tensor:
        if self._by_grams():
            return self._ghost(*values)
        return torch.cat([square_norms_of(piece) for piece in self._pieces(*values)])

    def _ghost(self, grad: Tensor, value: Tensor) -> Tensor:
        g = self.geometry
        slid, still = (grad, value) if g.transposed else (value, grad)
        sizes = tuple(still.shape[2:])
        slid = F.pad(slid, [p for p in reversed(g.padding) for _ in range(2)])
        pixels, outputs = self._gram(slid), self._gram(still)
        patches: Tensor | None = None
        for window in g.windows(pixels, sizes, (3, 4 + len(sizes))):
            patches = window.clone() if patches is None else patches.add_(window)
        assert patches is not None
        return (patches.flatten(1) * outputs.flatten(1)).sum(1).clamp_min(0)

    def _gram(self, t: Tensor) -> Tensor:
        """Products of all pixels of a sample over the channels of a group: [B, G, each, *, each, *]."""
        pixels = self.layout.blocks(wide(t)).unflatten(2, (self.geometry.groups, -1))
        spatial = pixels.shape[1], *pixels.shape[4:]
        flat = pixels.movedim(1, 3).flatten(3)
        return torch.matmul(flat.transpose(-1, -2), flat).view(*flat.shape[:2], *spatial, *spatial)

    def _by_grams(self) -> bool:
        # Neither kept nor by Grams: every sample's gradient is computed for its norm, and once more in the sum.
        cheaper = self._grams_are_cheaper() or not chosen(True)
        return not self.keeps() and cheaper and self._gram_bytes() <= KEEP_BYTES

    def _grams_are_cheaper(self) -> bool:
        return self._gram_flops(1) < self.geometry.kept_bytes(1) * FLOPS_PER_BYTE

    def _gram_flops(self, batch: int) -> float:
        g = self.geometry
        still, slid = self.sizes if not g.transposed else self.sizes[::-1]
        padded = [s + 2 * p for s, p in zip(slid, g.padding, strict=True)]
        positions, pixels = (self.layout.each * math.prod(n) for n in (still, padded))
        flops = 2.0 * (positions**2 * g.weight[0] + pixels**2 * g.weight[1] * g.groups)
        # Grams of a few positions stay in the cache, unlike the products.
        moved = 2.0 * positions**2 * g.groups * math.prod(g.weight[2:])
        return batch * (flops + moved * FLOPS_PER_BYTE)

    def _gram_bytes(self) -> int:
        still, slid = (self.layout.each * math.prod(n) for n in self.sizes)
        return 4 * self.batch * self.geometry.groups * (still**2 + slid**2)

    def work(self, kept: bool) -> Work:
        still = self.sizes[1 if self.geometry.transposed else 0]
        size = math.prod(self.shape)
        products = 2.0 * self.batch * self.layout.each * math.prod(still) * size
        if not kept and not self._by_grams():
            return Work("recompute", 2 * products + 2.0 * self.batch * size, 0)
        return contractions(kept, self.batch, size, products, self._gram_flops(self.batch))

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        grad, value = values
        if grad.numel() <= value.numel():
            grad = grad * self.layout.spread(factors.to(grad.dtype), grad.dim())
        else:
            value = value * self.layout.spread(factors.to(value.dtype), value.dim())
        return self.geometry.contract(grad, value)

    def keeps(self) -> bool:
        return chosen(self.geometry.kept_bytes(self.batch) <= KEEP_BYTES and not self._grams_are_cheaper())


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
    options: Any = place.node.args[4:10]
    stride, padding, dilation, transposed, output_padding, groups = options
    rank = len(samples.shape) - 2

    def full(option: Any) -> tuple[int, ...]:
        return tuple(option) * (rank if len(option) == 1 else 1)

    shape = tuple(weight.meta["val"].shape)  # type: ignore[union-attr]
    geometry = Geometry(
        shape, full(stride), full(padding), full(dilation), bool(transposed), full(output_padding), int(groups)
    )
    sizes = tuple(place.samples(grad).shape[2:]), tuple(samples.shape[2:])
    return ConvolutionSite((grad, value), place.shape, place.batch, layout, geometry, sizes)  # type: ignore[arg-type]
