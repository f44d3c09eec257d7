"""One parameter used at several sites: their contributions are added before the norm is taken, cross terms included.

A sum of matrix products is one product with a longer contracted axis, so a weight that is used at every step of a
recurrent layer has one norm and one sum. A table that is looked up and also multiplied with (a tied head) has
``|E + M|^2 = |E|^2 + |M|^2 + 2 <E, M>``, and the cross term needs no gradient of the table's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from dpcheck.engine.sites.base import Site, Work, contractions, square_norms_of, wide
from dpcheck.engine.sites.embedding import LookupSite
from dpcheck.engine.sites.matmul import MatmulSite
from dpcheck.engine.sites.pairs import ghost_square_norms, gram_flops, products_are_cheaper
from torch import Tensor

from dpcheck.kernels import matmul


@dataclass(frozen=True)
class Term:
    """One site of the sum, and whether its output is transposed before it is added."""

    site: Site
    transposed: bool


@dataclass(frozen=True)
class JointSite(Site):
    """The sum of matrix products and embedding lookups of one matrix [m, n]."""

    terms: tuple[Term, ...]
    kind: ClassVar[str] = "joint"

    def _split(self, values: tuple[Tensor, ...]) -> list[tuple[Term, tuple[Tensor, ...]]]:
        found, at = [], 0
        for term in self.terms:
            count = len(term.site.operands)
            found.append((term, values[at : at + count]))
            at += count
        return found

    def _product(self, values: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """All matrix products as one: [B, m, L] and [B, L, n]."""
        lefts, rights = [], []
        for term, own in self._split(values):
            if isinstance(term.site, MatmulSite):
                left, right = term.site.parts(*own)
                if term.transposed:
                    left, right = right.transpose(-1, -2), left.transpose(-1, -2)
                # Rows by position, as they mostly lie in memory.
                lefts.append(left.transpose(-1, -2))
                rights.append(right)
        if not lefts:
            return None
        if len(lefts) == 1:
            return lefts[0].transpose(-1, -2), rights[0]
        return torch.cat(lefts, 1).transpose(-1, -2), torch.cat(rights, 1)

    def _lookups(self, values: tuple[Tensor, ...]) -> list[tuple[LookupSite, tuple[Tensor, ...]]]:
        return [(t.site, own) for t, own in self._split(values) if isinstance(t.site, LookupSite)]

    def per_sample(self, *values: Tensor) -> Tensor:
        product, total = self._product(values), None
        if product is not None:
            total = matmul(*product)
        for site, own in self._lookups(values):
            each = site.per_sample(*own)
            total = each if total is None else total + each
        assert total is not None
        return total

    def square_norms(self, *values: Tensor) -> Tensor:
        if self.keeps():
            return square_norms_of(self.per_sample(*values))
        product, lookups = self._product(values), self._lookups(values)
        flat = [site.flat(*own) for site, own in lookups]
        total: Tensor | None = ghost_square_norms(*product) if product is not None else None
        if flat:
            joined = tuple(torch.cat(parts) for parts in zip(*flat, strict=True))
            own_norms = lookups[0][0].square_norms_of_flat(*joined)
            total = own_norms if total is None else total + own_norms
        assert total is not None
        if product is not None:
            for site, own in lookups:
                total = total + 2 * self._cross(site, own, product)
        return total.clamp_min(0)

    def _cross(self, site: LookupSite, own: tuple[Tensor, ...], product: tuple[Tensor, Tensor]) -> Tensor:
        """``<E_i, M_i> = sum over t, s of left[id_t, s] <e_t, right[s]>``, [B]."""
        left, right = (wide(part) for part in product)
        grad, row, _ = site.flat(*own)
        grad, row = wide(grad).view(self.batch, -1, grad.shape[-1]), row.view(self.batch, -1)
        rows = torch.gather(left, 1, row.unsqueeze(-1).expand(-1, -1, left.shape[-1]))
        return (rows * torch.matmul(grad, right.transpose(-1, -2))).flatten(1).sum(1)

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        total: Tensor | None = None
        for term, own in self._split(values):
            each = term.site.weighted(factors, *own)
            each = each.t() if term.transposed else each
            total = each if total is None else total.add_(each)
        assert total is not None
        return total

    def keeps(self) -> bool:
        if any(isinstance(term.site, LookupSite) for term in self.terms):
            return False
        return products_are_cheaper(self.batch, 1, self.shape[0], self.shape[1], self._length)

    @property
    def _length(self) -> int:
        return sum(term.site.left.each for term in self.terms if isinstance(term.site, MatmulSite))

    def work(self, kept: bool) -> Work:
        m, n = self.shape
        pairs = 2.0 * self.batch * self._length
        return contractions(kept, self.batch, m * n, pairs * m * n, gram_flops(pairs, self._length, m + n))


def join(terms: list[Term], shape: tuple[int, ...]) -> JointSite | None:
    """The joint site of ``terms``; ``None`` if one of them is of another kind."""
    for term in terms:
        plain = isinstance(term.site, MatmulSite) and len(term.site.shape) == 2
        looked_up = isinstance(term.site, LookupSite) and term.site.regular and not term.transposed
        if not plain and not looked_up:
            return None
    operands = tuple(node for term in terms for node in term.site.operands)
    return JointSite(operands, shape, terms[0].site.batch, tuple(terms))
