"""Sites that add gradients into indexed places: ``table[ids]``, ``gather``, ``index_select`` of a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dpcheck.engine.sites.base import Place, Site, maker
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor, fx


@dataclass(frozen=True)
class ScatterSite(Site):
    """An accumulating scatter, run for one sample at a time on that sample's part of the operands."""

    target: Any
    template: tuple[Any, ...]  # the op's arguments, operands as their positions
    layouts: tuple[Layout | None, ...]
    source: int  # which operand the result is linear in
    kind: ClassVar[str] = "scatter"

    def _call(self, values: list[Tensor]) -> Tensor:
        def fill(item: Any) -> Any:
            if isinstance(item, _Slot):
                return values[item.position]
            return [fill(i) for i in item] if isinstance(item, list | tuple) else item

        result: Tensor = self.target(*[fill(item) for item in self.template])
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


@dataclass(frozen=True)
class _Slot:
    position: int


_SOURCE = {"index_put": 2, "_unsafe_index_put": 2, "index_add": 3, "scatter_add": 3}


@maker(*_SOURCE)
def make(place: Place) -> Site | None:
    operands: list[fx.Node] = []

    def mark(item: Any) -> Any:
        if isinstance(item, fx.Node):
            if item not in operands:
                operands.append(item)
            return _Slot(operands.index(item))
        return [mark(i) for i in item] if isinstance(item, list | tuple) else item

    template = tuple(mark(arg) for arg in place.node.args)
    source = place.node.args[_SOURCE[str(place.node.target).split(".")[1]]]
    layouts: list[Layout | None] = []
    for node in operands:
        samples = place.samples(node)
        layout = None if samples.empty() else find_layout(samples)
        if layout is None and not samples.empty():
            return None
        layouts.append(layout)
    where = operands.index(source)  # type: ignore[arg-type]
    if layouts[where] is None:
        return None
    return ScatterSite(tuple(operands), place.shape, place.batch, place.node.target, template, tuple(layouts), where)
