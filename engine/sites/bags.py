"""Sites of embedding bags. The clipped sum is the op itself, of scaled gradients: no entry is looked up twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from dpcheck.engine.sites.base import Place, Site, maker, wide
from dpcheck.engine.sites.embedding import LookupSite
from dpcheck.engine.sites.layout import find_layout
from torch import Tensor

from dpcheck.samplesets.bags import MAX, bags_of, per_bag
from dpcheck.samplesets.lattice import joined, reduced

_backward = torch.ops.aten._embedding_bag_backward.default
_MEAN = 1


@dataclass(frozen=True)
class BagSite(LookupSite):
    """``_embedding_bag_backward``: gradients of bags [bags, D], ``layout.each`` of which belong to a sample.

    Each entry of a bag adds the bag's gradient, times its weight, divided by the number of entries for a mean, to its
    row of the table. Entries that name ``padding`` count for nothing. For a maximum, each column of a bag's gradient
    goes to the row that had the largest number there: a lookup of one number in a table of ``rows = rows * D``.
    """

    mode: int
    padding: int
    even: bool  # all samples have as many entries
    kind: ClassVar[str] = "embedding-bag"

    @property
    def regular(self) -> bool:
        return self.even and self.mode != MAX

    def flat(self, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad = wide(values[0])
        bags, rows, factors = self._entries(*values)
        if self.mode == MAX:
            return self._largest(grad, values[5].long(), bags[factors != 0])
        owners = self._owners(bags)
        if self.layout.outer > 1:
            order = owners.argsort(stable=True)
            bags, rows, factors, owners = bags[order], rows[order], factors[order], owners[order]
        return grad[bags] * factors.unsqueeze(1), rows, owners

    def _owners(self, bags: Tensor) -> Tensor:
        return bags // self.layout.inner % self.batch

    def _entries(self, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all entries: bags [n], rows [n] and what their bag's gradient is multiplied with [n]."""
        grad, indices, offsets = values[:3]
        bags = bags_of(offsets, grad.shape[0], len(indices))
        assert bags is not None, "the offsets are the constants that the analysis saw"
        factors = wide(values[6]) if len(values) > 6 else wide(grad).new_ones(len(indices))
        counted = (indices != self.padding).to(factors.dtype)
        if self.mode == _MEAN:
            sizes = factors.new_zeros(grad.shape[0]).index_add_(0, bags, counted)
            factors = factors / sizes.clamp_min(1)[bags]
        return bags.long(), indices.long(), factors * counted

    def _largest(self, grad: Tensor, largest: Tensor, bags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bags without entries have no largest one."""
        filled = torch.zeros(grad.shape[0], dtype=torch.bool, device=grad.device)
        filled[bags] = True
        owners = self._owners(filled.nonzero()).expand(-1, grad.shape[1])
        columns = torch.arange(grad.shape[1], device=grad.device)
        places = largest[filled] * grad.shape[1] + columns
        return grad[filled].view(-1, 1), places.flatten(), owners.flatten()

    def per_sample(self, *values: Tensor) -> Tensor:
        return super().per_sample(*values).to(values[0].dtype)

    def square_norms(self, *values: Tensor) -> Tensor:
        if self.mode == MAX or self.layout.each > 1:
            return super().square_norms(*values)
        # All entries of a sample have one gradient: its norm times that of the factors of each row.
        bags, rows, factors = self._entries(*values)
        own = torch.linalg.vector_norm(wide(values[0]), dim=1).square()
        result: Tensor = own * self.square_norms_of_flat(factors.unsqueeze(1), rows, bags)
        return result

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        grad, indices, offsets, bags, sizes, largest = values[:6]
        scaled = grad * self.layout.spread(factors.to(grad.dtype), 2)
        weights = values[6] if len(values) > 6 else None
        options = (self.shape[0], False, self.mode, False, weights, self.padding)
        result: Tensor = _backward(scaled, indices, offsets, bags, sizes, largest, *options)
        return result


@maker("_embedding_bag_backward")
def make(place: Place) -> Site | None:
    arguments: tuple[Any, ...] = place.node.args
    grad, picked, offsets, _, _, _, rows, by_frequency, mode, sparse, weights = arguments[:11]
    padding = arguments[11] if len(arguments) > 11 else -1
    known = place.samples(offsets).const
    if by_frequency or sparse or known is None:
        return None
    gradient, picks = place.samples(grad), place.samples(picked)
    bags = bags_of(known, gradient.shape[0], picks.shape[0])
    if bags is None:
        return None
    own = [per_bag(place.samples(v), bags, gradient.shape[0]) for v in (picked, weights) if v is not None]
    slots = joined([reduced(gradient, [1], keepdim=False), *own], (gradient.shape[0],), place.batch)
    layout = find_layout(slots)
    if layout is None:
        return None
    entries = torch.bincount(bags, minlength=gradient.shape[0])
    each = layout.blocks(entries).sum(1)
    numbers = rows * gradient.shape[1] if mode == MAX else rows
    operands = (*arguments[:6], *([weights] if weights is not None else []))
    even = bool((each == each[0]).all())
    return BagSite(operands, place.shape, place.batch, layout, numbers, mode, padding, even)
