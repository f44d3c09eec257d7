"""Sites that add gradients into indexed places: ``table[ids]``, ``gather``, ``index_select`` of a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dpcheck.engine.sites.base import Place, Site, Template, maker
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor


@dataclass(frozen=True)
class ScatterSite(Site):
    """An accumulating scatter, run for one sample at a time on that sample's part of the operands."""

    target: Any
    template: Template
    layouts: tuple[Layout | None, ...]
    source: int  # which operand the result is linear in
    kind: ClassVar[str] = "scatter"

    def _call(self, values: list[Tensor]) -> Tensor:
        result: Tensor = self.target(*self.template.filled(values))
        return result

    def per_sample(self, *values: Tensor) -> Tensor:
        parts = [v if lay is None else lay.blocks(v) for v, lay in zip(values, self.layouts, strict=True)]
        rows = []
        for i in range(self.batch):
            own = [p if lay is None else p[i] for p, lay in zip(parts, self.layouts, strict=True)]
            rows.append(self._call(own))
        return torch.stack(rows)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        layout = self.layouts[self.source]
        assert layout is not None
        source = values[self.source]
        scaled = list(values)
        scaled[self.source] = source * layout.spread(factors.to(source.dtype), source.dim())
        return self._call(scaled)

    def keeps(self) -> bool:
        return False


_SOURCE = {"index_put": 2, "_unsafe_index_put": 2, "index_add": 3, "scatter_add": 3}


@maker(*_SOURCE)
def make(place: Place) -> Site | None:
    template = Template.of(place.node)
    source = place.node.args[_SOURCE[str(place.node.target).split(".")[1]]]
    layouts: list[Layout | None] = []
    for node in template.nodes:
        samples = place.samples(node)
        layout = None if samples.empty() else find_layout(samples)
        if layout is None and not samples.empty():
            return None
        layouts.append(layout)
    where = template.nodes.index(source)
    if layouts[where] is None:
        return None
    return ScatterSite(template.nodes, place.shape, place.batch, place.node.target, template, tuple(layouts), where)
