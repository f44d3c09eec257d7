"""Sites of the affine parameters of layer and group norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpcheck.engine.sites.base import Place, Site, maker, weighted_of, wide
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor


@dataclass(frozen=True)
class LayerNormSite(Site):
    """Gradient of the scale (``scale``) or shift of layer norm: ``sum(dy * x_hat)`` or ``sum(dy)``."""

    layout: Layout
    normalised: int
    scale: bool
    kind: ClassVar[str] = "layer-norm"

    def per_sample(self, *values: Tensor) -> Tensor:
        grad = wide(values[0])
        if self.scale:
            value, mean, rstd = (wide(v) for v in values[1:])
            grad = grad * ((value - mean) * rstd)
        parts = self.layout.blocks(grad)
        lead = list(range(1, parts.dim() - self.normalised))
        return parts.sum(lead) if lead else parts

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        return weighted_of(factors, self.per_sample(*values)).to(values[0].dtype)


@maker("native_layer_norm_backward")
def make_layer_norm(place: Place) -> Site | None:
    grad, value, shape, mean, rstd = place.node.args[:5]
    lead = range(len(place.samples(value).shape) - len(shape))  # type: ignore[arg-type]
    layout = _common(place, grad, value, lead)
    if layout is None:
        return None
    scale = place.output == 1
    operands: Any = (grad, value, mean, rstd) if scale else (grad,)
    return LayerNormSite(operands, place.shape, place.batch, layout, len(shape), scale)  # type: ignore[arg-type]


def _common(place: Place, grad: Any, value: Any, axes: range) -> Layout | None:
    """The layout that both the output gradient and the input have."""
    first, second = find_layout(place.samples(grad), axes), find_layout(place.samples(value), axes)
    if place.samples(value).empty():
        return first
    return first if first == second else None


@dataclass(frozen=True)
class GroupNormSite(Site):
    """Gradient of the scale or shift of group norm, [N, C, *] with statistics [N, G]."""

    layout: Layout
    groups: int
    scale: bool
    kind: ClassVar[str] = "group-norm"

    def per_sample(self, *values: Tensor) -> Tensor:
        grad = wide(values[0]).unsqueeze(-1).flatten(2)
        if self.scale:
            value, mean, rstd = (wide(v) for v in values[1:])
            rows = value.shape[0]
            grouped = value.reshape(rows, self.groups, -1)
            hat = (grouped - mean.reshape(rows, -1, 1)) * rstd.reshape(rows, -1, 1)
            grad = grad * hat.reshape(grad.shape)
        return self.layout.blocks(grad.sum(2)).sum(1)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        return weighted_of(factors, self.per_sample(*values)).to(values[0].dtype)


@maker("native_group_norm_backward")
def make_group_norm(place: Place) -> Site | None:
    grad, value, mean, rstd = place.node.args[:4]
    layout = _common(place, grad, value, range(1))
    if layout is None:
        return None
    scale = place.output == 1
    operands: Any = (grad, value, mean, rstd) if scale else (grad,)
    return GroupNormSite(operands, place.shape, place.batch, layout, place.node.args[8], scale)  # type: ignore[arg-type]
