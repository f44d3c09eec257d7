"""Sites of convolution weights and biases: any number of spatial axes, groups, dilation, stride, transposed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from dpcheck.engine.sites.base import Place, Site, chosen, maker, square_norms_of
from dpcheck.engine.sites.layout import Layout, find_layout
from dpcheck.engine.sites.pairs import KEEP_BYTES, ghost_square_norms, products_are_cheaper
from torch import Tensor

_backward = torch.ops.aten.convolution_backward.default


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

    @property
    def spatial(self) -> int:
        return len(self.weight) - 2

    def contract(self, grad: Tensor, value: Tensor) -> Tensor:
        """The weight's gradient, summed over axis 0. Of the weight only its shape matters."""
        weight = value.new_empty(1).expand(self.weight)
        options = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)
        result: Tensor = _backward(grad, value, weight, [0], *options, [False, True, False])[1]
        return result


@dataclass(frozen=True)
class ConvolutionSite(Site):
    """The weight's gradient: products of output gradients and unfolded patches (Rochette et al. 2019).

    Rows are [N, C, *]; for one and two spatial axes the patches are unfolded, for three samples are contracted alone.
    """

    layout: Layout
    geometry: Geometry
    positions: int
    kind: ClassVar[str] = "convolution"

    def _pairs(self, grad: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """[B, G, m, L] and [B, G, L, n] whose product is the weight's gradient, [G, m, n], of every sample."""
        g = self.geometry
        slid, still = (grad, value) if g.transposed else (value, grad)
        kernel, patches = g.weight[2:], slid
        if g.spatial == 1:
            patches = slid.unsqueeze(2)
        options = [((1,) * (2 - g.spatial) + k) for k in (kernel, g.dilation, g.stride)]
        pad = (0,) * (2 - g.spatial) + g.padding
        columns = F.unfold(patches, options[0], dilation=options[1], padding=pad, stride=options[2])
        length = math.prod(still.shape[2:])
        if columns.shape[2] != length:
            columns = self._cropped(columns, patches, still, options, pad)
        rows, groups = still.shape[0], g.groups
        left = still.reshape(rows, groups, -1, length)
        right = columns.view(rows, groups, -1, length)
        if self.layout.each == 1:
            return left, right.transpose(-1, -2)
        left, right = self.layout.blocks(left), self.layout.blocks(right)  # [B, each, G, *, L]
        return left.permute(0, 2, 3, 1, 4).flatten(-2), right.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def _cropped(
        self, columns: Tensor, slid: Tensor, still: Tensor, options: list[tuple[int, ...]], pad: tuple[int, ...]
    ) -> Tensor:
        """Only the windows that belong to an output position (a large output padding has more)."""
        kernel, dilation, stride = options
        sizes = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(slid.shape[2:], pad, dilation, kernel, stride, strict=True)
        ]
        wanted = (1,) * (2 - self.geometry.spatial) + tuple(still.shape[2:])
        grid: Tensor = columns.unflatten(2, sizes)[:, :, : wanted[0], : wanted[1]]
        return grid.reshape(*columns.shape[:2], -1)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        g = self.geometry
        m = g.weight[0] // g.groups
        return g.groups, m, math.prod(g.weight[1:]), self.positions * self.layout.each

    def per_sample(self, *values: Tensor) -> Tensor:
        if self.geometry.spatial > 2:
            grad, value = (self.layout.blocks(v) for v in values)
            return torch.vmap(self.geometry.contract)(grad, value)
        left, right = self._pairs(*values)
        return torch.matmul(left, right).reshape(self.batch, *self.shape)

    def square_norms(self, *values: Tensor) -> Tensor:
        if self.geometry.spatial > 2 or self._products():
            return square_norms_of(self.per_sample(*values))
        return ghost_square_norms(*self._pairs(*values))

    def _products(self) -> bool:
        lead, m, n, length = self._sizes
        # Unlike those of a linear layer, the columns are not shared with the forward: Grams need them as well.
        return chosen(products_are_cheaper(self.batch, lead, m, n, length) or m * n <= 2 * length**2)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        grad, value = values
        return self.geometry.contract(grad * self.layout.spread(factors.to(grad.dtype), grad.dim()), value)

    def keeps(self) -> bool:
        products = self.geometry.spatial > 2 or self._products()
        return chosen(products and 4 * self.batch * math.prod(self.shape) <= KEEP_BYTES)


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
    still = samples if transposed else place.samples(grad)
    positions = math.prod(still.shape[2:])
    return ConvolutionSite((grad, value), place.shape, place.batch, layout, geometry, positions)  # type: ignore[arg-type]
