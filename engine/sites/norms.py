"""Sites of the affine parameters of layer and group norm, and of batch norm with constant statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dpcheck.engine.sites.base import Part, Place, Site, maker, weighted_of, wide
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor, fx

_group_norm_backward = torch.ops.aten.native_group_norm_backward.default


@dataclass(frozen=True)
class AffineSite(Site):
    """Gradient of the scale (``scale``) or shift of a norm: ``sum(dy * x_hat)`` or ``sum(dy)``.

    The operands are dy and, for a scale, x and its statistics.
    """

    layout: Layout
    scale: bool

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        return weighted_of(factors, self.per_sample(*values)).to(values[0].dtype)


@dataclass(frozen=True)
class LayerNormSite(AffineSite):
    """Of layer norm over the last ``normalised`` axes."""

    normalised: int
    kind: ClassVar[str] = "layer-norm"

    def per_sample(self, *values: Tensor) -> Tensor:
        grad = wide(values[0])
        if self.scale:
            value, mean, rstd = (wide(v) for v in values[1:])
            grad = grad * ((value - mean) * rstd)
        parts = self.layout.blocks(grad)
        lead = list(range(1, parts.dim() - self.normalised))
        return parts.sum(lead) if lead else parts


@maker("native_layer_norm_backward")
def make_layer_norm(place: Place) -> Site | None:
    grad, value, shape, mean, rstd = place.node.args[:5]
    lead = range(len(place.samples(value).shape) - len(shape))  # type: ignore[arg-type]
    layout = _common(place, grad, value, lead)
    if layout is None:
        return None
    scale = place.output == 1
    operands: Any = (grad, value, mean, rstd) if scale else (grad,)
    return LayerNormSite(operands, place.shape, place.batch, layout, scale, len(shape))  # type: ignore[arg-type]


def _common(place: Place, grad: Any, value: Any, axes: range) -> Layout | None:
    """The layout that both the output gradient and the input have."""
    first, second = find_layout(place.samples(grad), axes), find_layout(place.samples(value), axes)
    if place.samples(value).empty():
        return first
    return first if first == second else None


@dataclass(frozen=True)
class GroupNormPart(Part):
    """Gradients of scale and shift of every sample, [B, C] each, of group norm over [N, C, *]."""

    layout: Layout
    groups: int

    def compute(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        grad, value, mean, rstd = (wide(v) for v in values)
        rows, channels = value.shape[:2]
        # With the rows as channels of one row, what the kernel sums over rows is summed over nothing.
        flat = [t.reshape(1, rows * channels, -1) for t in (grad, value)]
        statistics = [t.reshape(1, -1) for t in (mean, rstd)]
        sizes = (1, rows * channels, flat[0].shape[2], rows * self.groups)
        ones = value.new_ones(rows * channels)
        _, scale, shift = _group_norm_backward(*flat, *statistics, ones, *sizes, [False, True, True])
        return self._sum(scale.view(rows, channels)), self._sum(shift.view(rows, channels))

    def _sum(self, each: Tensor) -> Tensor:
        blocks = self.layout.blocks(each)
        return blocks.sum(1) if blocks.shape[1] > 1 else blocks[:, 0]


@dataclass(frozen=True)
class GroupNormSite(Site):
    """Gradient of the scale or shift of group norm."""

    scale: bool
    kind: ClassVar[str] = "group-norm"

    def per_sample(self, *values: Any) -> Tensor:
        each: Tensor = values[0][0 if self.scale else 1]
        return each

    def weighted(self, factors: Tensor, *values: Any) -> Tensor:
        return weighted_of(factors, self.per_sample(*values))


@maker("native_group_norm_backward")
def make_group_norm(place: Place) -> Site | None:
    grad, value, mean, rstd = place.node.args[:4]
    layout = _common(place, grad, value, range(1))
    if layout is None:
        return None
    part = GroupNormPart((grad, value, mean, rstd), layout, place.node.args[8])  # type: ignore[arg-type]
    return GroupNormSite((part,), place.shape, place.batch, place.output == 1)


@dataclass(frozen=True)
class BatchNormSite(AffineSite):
    """Of batch norm in eval mode, [N, C, *], with running mean and variance [C]."""

    eps: float
    kind: ClassVar[str] = "batch-norm"

    def per_sample(self, *values: Tensor) -> Tensor:
        grad = wide(values[0])
        if self.scale:
            value, mean, variance = (wide(v) for v in values[1:])
            channels = (-1, *[1] * (grad.dim() - 2))
            grad = grad * ((value - mean.view(channels)) * torch.rsqrt(variance + self.eps).view(channels))
        rows = grad.flatten(2).sum(2) if grad.dim() > 2 else grad
        return self.layout.blocks(rows).sum(1)


@maker("native_batch_norm_backward")
def make_batch_norm(place: Place) -> Site | None:
    grad, value, _, mean, variance, _, _, training, eps = place.node.args[:9]
    statistics = (mean, variance)
    if training or not all(isinstance(s, fx.Node) and place.samples(s).empty() for s in statistics):
        return None
    layout = _common(place, grad, value, range(1))
    if layout is None:
        return None
    scale = place.output == 1
    operands: Any = (grad, value, *statistics) if scale else (grad,)
    return BatchNormSite(operands, place.shape, place.batch, layout, scale, float(eps))  # type: ignore[arg-type]
