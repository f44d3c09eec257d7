"""Sites of embedding tables. Of norms and sums, only the sum itself grows with the vocabulary."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from dpcheck.engine.sites.base import Place, Site, maker, wide
from dpcheck.engine.sites.layout import Layout, find_layout
from torch import Tensor

from dpcheck.samplesets.lattice import joined, moved


@dataclass(frozen=True)
class LookupSite(Site):
    """Gradients [n, D] added up into rows of a table."""

    layout: Layout
    rows: int

    @property
    def regular(self) -> bool:
        """Whether every sample has as many entries as every other, one after another."""
        return True

    @abstractmethod
    def flat(self, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients [n, D], the rows that they are added to [n], and their samples [n]."""

    def per_sample(self, *values: Tensor) -> Tensor:
        grad, row, owner = self.flat(*values)
        each = grad.new_zeros(self.batch * self.rows, grad.shape[-1])
        each.index_add_(0, owner * self.rows + row, grad)
        return each.view(self.batch, *self.shape)

    def square_norms(self, *values: Tensor) -> Tensor:
        return self.square_norms_of_flat(*self.flat(*values))

    def square_norms_of_flat(self, grad: Tensor, row: Tensor, owner: Tensor) -> Tensor:
        """Gradients of the same row of the same sample are added first: repeated indices are not separate rows."""
        keys, sums = self._added(grad, row, owner)
        return self.kept_square_norms((keys, sums))

    def _added(self, grad: Tensor, row: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Every sample's rows that are not zero: their places ``sample * rows + row`` [k] and values [k, D]."""
        keys, where = torch.unique(owner * self.rows + row, return_inverse=True)
        return keys, wide(grad).new_zeros(keys.numel(), grad.shape[-1]).index_add_(0, where, wide(grad))

    def keeps(self) -> bool:
        return False

    def kept(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        return self._added(*self.flat(*values))

    def kept_square_norms(self, kept: tuple[Tensor, Tensor]) -> Tensor:
        keys, sums = kept
        result = sums.new_zeros(self.batch)
        return result.index_add_(0, keys // self.rows, torch.einsum("kd,kd->k", sums, sums))

    def kept_weighted(self, factors: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
        keys, sums = kept
        total = sums.new_zeros(self.rows, sums.shape[1])
        scaled = sums * factors.to(sums.dtype)[keys // self.rows].unsqueeze(1)
        return total.index_add_(0, keys % self.rows, scaled).view(self.shape)


@dataclass(frozen=True)
class EmbeddingSite(LookupSite):
    """``embedding_dense_backward``: output gradients [*, D] added up into the rows that ``indices`` [*] name."""

    padding: int
    indexed: bool  # the indices carry the sample axis too (else they are shared, such as position ids)
    kind: ClassVar[str] = "embedding"

    def flat(self, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output gradients [B * L, D], table rows [B * L] and samples [B * L]; padding contributes nothing."""
        grad, indices = values
        parts = self.layout.blocks(grad).flatten(1, -2)
        picks = indices.expand(grad.shape[:-1]) if not self.indexed else indices
        rows = self.layout.blocks(picks).flatten(1)
        owner = torch.arange(self.batch, device=rows.device).unsqueeze(1).expand_as(rows)
        flat, row = parts.flatten(0, 1), rows.flatten()
        if self.padding >= 0:
            flat = flat.masked_fill((row == self.padding).unsqueeze(1), 0)
        return flat, row, owner.flatten()

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        grad, row, owner = self.flat(*values)
        total = grad.new_zeros(self.shape)
        return total.index_add_(0, row, grad * factors.to(grad.dtype)[owner].unsqueeze(1))


@maker("embedding_dense_backward")
def make(place: Place) -> Site | None:
    grad, indices, rows, padding, by_frequency = place.node.args[:5]
    if by_frequency:
        return None
    g, i = place.samples(grad), place.samples(indices)
    slots = joined([moved(g, lambda t: t.amax(-1)), i], g.shape[:-1], place.batch)
    layout = find_layout(slots)
    if layout is None:
        return None
    indexed = tuple(i.shape) == tuple(g.shape[:-1])
    return EmbeddingSite((grad, indices), place.shape, place.batch, layout, rows, padding, indexed)  # type: ignore[arg-type]
