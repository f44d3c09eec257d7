"""How samples lie along an axis: index k belongs to sample ``(k // inner) % batch``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpcheck.samplesets.lattice import Samples, reduced


@dataclass(frozen=True)
class Layout:
    """Samples along one axis of length ``outer * batch * inner``."""

    axis: int
    outer: int
    batch: int
    inner: int

    @property
    def each(self) -> int:
        """How many indices of the axis belong to one sample."""
        return self.outer * self.inner

    def blocks(self, t: Tensor) -> Tensor:
        """``t`` split by sample: [batch, *shape], the axis cut to the part of one sample."""
        parts: Tensor = t.unflatten(self.axis, (self.outer, self.batch, self.inner)).movedim(self.axis + 1, 0)
        return parts.flatten(self.axis + 1, self.axis + 2)

    def spread(self, factors: Tensor, rank: int) -> Tensor:
        """``factors`` [batch], each at the indices of its sample, to be multiplied with a tensor of ``rank`` axes."""
        along = factors.view(1, -1, 1).expand(self.outer, self.batch, self.inner).reshape(-1)
        return along.view(-1, *[1] * (rank - self.axis - 1))


def find_layout(value: Samples, axes: range | None = None) -> Layout | None:
    """The layout of a value whose samples lie regularly along one axis; ``None`` if they do not.

    Elements that depend on no sample fit anywhere.
    """
    for axis in axes if axes is not None else range(len(value.shape)):
        others = [a for a in range(len(value.shape)) if a != axis]
        line = reduced(value, others, keepdim=False)
        if line.mixed():
            continue
        owners = line.owners()
        found = _regular(owners, value.batch)
        if found is not None:
            return Layout(axis, found[0], value.batch, found[1])
    return None


def _regular(owners: Tensor, batch: int) -> tuple[int, int] | None:
    length = owners.numel()
    if length % batch:
        return None
    each = length // batch
    positions = torch.arange(length)
    for inner in (d for d in range(1, each + 1) if each % d == 0):
        expected = (positions // inner) % batch
        if bool(((owners == expected) | (owners == -1)).all()):
            return each // inner, inner
    return None
