"""Sites ``left @ right`` whose contracted axis runs over samples: linear layers, attention, einsum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from dpcheck.engine.sites.base import Place, Site, Work, contractions, maker
from dpcheck.engine.sites.layout import Layout, find_layout
from dpcheck.engine.sites.pairs import ghost_square_norms, gram_flops, products_are_cheaper
from torch import Tensor

from dpcheck.kernels import matmul
from dpcheck.samplesets.lattice import joined, moved, reduced


@dataclass(frozen=True)
class MatmulSite(Site):
    """``left`` [*, m, K] times ``right`` [*, K, n]; K holds ``each`` indices for every sample."""

    left: Layout
    right: Layout
    sizes: tuple[int, int, int]  # leading (product), m, n
    kind: ClassVar[str] = "matmul"

    def parts(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of every sample: [B, *, m, each] and [B, *, each, n]."""
        return self.left.blocks(left), self.right.blocks(right)

    def per_sample(self, *values: Tensor) -> Tensor:
        left, right = self.parts(*values)
        return torch.matmul(left, right)

    def square_norms(self, *values: Tensor) -> Tensor:
        if self.keeps():
            return super().square_norms(*values)
        return ghost_square_norms(*self.parts(*values))

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        left, right = values
        if left.numel() <= right.numel():
            left = left * self.left.spread(factors.to(left.dtype), left.dim())
        else:
            right = right * self.right.spread(factors.to(right.dtype), right.dim())
        return matmul(left, right)

    def cancels(self) -> bool:
        # The norm of one outer product is the product of two norms.
        return self.left.each > 1

    def keeps(self) -> bool:
        return products_are_cheaper(self.batch, *self.sizes, self.left.each)

    def work(self, kept: bool) -> Work:
        lead, m, n = self.sizes
        pairs = 2.0 * self.batch * lead * self.left.each
        return contractions(kept, self.batch, lead * m * n, pairs * m * n, gram_flops(pairs, self.left.each, m + n))


@maker("mm", "bmm")
def make(place: Place) -> Site | None:
    left, right = place.node.args[:2]
    a, b = place.samples(left), place.samples(right)
    inner = joined(
        [reduced(a, range(len(a.shape) - 1), keepdim=False),
         moved(reduced(b, [-1], keepdim=False), lambda t: t.amax(list(range(t.dim() - 1))) if t.dim() > 1 else t)],
        (a.shape[-1],), place.batch,
    )  # fmt: skip
    layout = find_layout(inner)
    if layout is None:
        return None
    rank, split = len(a.shape), (layout.outer, layout.batch, layout.inner)
    lead = 1
    for size in a.shape[:-2]:
        lead *= size
    return MatmulSite(
        (left, right), place.shape, place.batch,  # type: ignore[arg-type]
        Layout(rank - 1, *split), Layout(rank - 2, *split), (lead, a.shape[-2], b.shape[-1]),
    )  # fmt: skip
