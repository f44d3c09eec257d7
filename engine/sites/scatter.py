"""Sites that add gradients into indexed places: ``table[ids]``, ``gather``, ``index_select`` of a parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from dpcheck.engine.sites.base import Place, Site, Template, maker
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor, fx

from dpcheck.samplesets.op import packet_of


@dataclass(frozen=True)
class ScatterSite(Site):
    """An accumulating scatter into zeros, which is linear in its source.

    Attributes:
        source: position of the operand that the result is linear in.
        layouts: of every operand, how it is cut by sample; ``None`` for one that all samples share. ``None`` in the
            place of all of them where operands cannot be cut: each sample's part of the source is then put in alone.
    """

    target: Any
    template: Template
    source: int
    layout: Layout
    layouts: tuple[Layout | None, ...] | None
    kind: ClassVar[str] = "scatter"

    def _call(self, values: list[Tensor]) -> Tensor:
        result: Tensor = self.target(*self.template.filled(values))
        return result

    def per_sample(self, *values: Tensor) -> Tensor:
        if self.layouts is None:
            alone = torch.eye(self.batch, dtype=values[self.source].dtype, device=values[self.source].device)
            return torch.stack([self.weighted(one, *values) for one in alone])
        parts = [v if lay is None else lay.blocks(v) for v, lay in zip(values, self.layouts, strict=True)]
        rows = []
        for i in range(self.batch):
            own = [p if lay is None else p[i] for p, lay in zip(parts, self.layouts, strict=True)]
            rows.append(self._call(own))
        return torch.stack(rows)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        source = values[self.source]
        scaled = list(values)
        scaled[self.source] = source * self.layout.spread(factors.to(source.dtype), source.dim())
        return self._call(scaled)

    def keeps(self) -> bool:
        return False


_SOURCE = {"index_put": 2, "_unsafe_index_put": 2, "index_add": 3, "scatter_add": 3}


@maker(*_SOURCE)
def make(place: Place) -> Site | None:
    template, packet = Template.of(place.node), packet_of(place.node.target)
    base, source = place.node.args[0], place.node.args[_SOURCE[packet]]
    layout = find_layout(place.samples(source))
    # What is in the base already would count once for every sample.
    if layout is None or not place.samples(base).zero:
        return None
    layouts: list[Layout | None] = []
    cut = True
    for node in template.nodes:
        samples = place.samples(node)
        found = layout if node is source else None if samples.empty() else find_layout(samples)
        if found is None and not samples.empty():
            return None
        if found is None and node is not base:
            fits, found = _like_the_source(place.node, node, source, layout)
            cut = cut and fits
        layouts.append(found)
    where, parts = template.nodes.index(source), tuple(layouts) if cut else None
    return ScatterSite(template.nodes, place.shape, place.batch, place.node.target, template, where, layout, parts)


def _like_the_source(node: fx.Node, index: fx.Node, source: Any, layout: Layout) -> tuple[bool, Layout | None]:
    """How an index without samples is cut along with the source: whether that is known, and ``None`` for not at all."""
    own, whole = tuple(index.meta["val"].shape), tuple(source.meta["val"].shape)
    packet = packet_of(node.target)
    if packet == "index_add":
        along = node.args[1] % len(whole) == layout.axis  # type: ignore[operator]
        return True, replace(layout, axis=0) if along else None
    if packet == "scatter_add":
        # A smaller index leaves a part of the source out.
        return own == whole, layout
    indices: Any = node.args[1]
    if any(i is None or i.meta["val"].dtype is torch.bool for i in indices):
        return False, None
    behind = len(node.meta["val"].shape) - len(indices)
    # Counted from the last axis of the places, behind which come those of the table that are not indexed.
    from_end = layout.axis - len(whole) + behind
    if from_end >= 0:
        return False, None
    axis = from_end + len(own)
    if axis < 0 or own[axis] == 1:
        return True, None
    return own[axis] == whole[layout.axis], replace(layout, axis=axis)
