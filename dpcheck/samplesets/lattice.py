"""The abstract value: which sample each element of a tensor depends on.

An element depends on no sample, on one, or on several. Two int16 numbers hold that, so that a join is an elementwise
maximum, a reduction is ``amax``, and an op that moves data or fills with zeros runs on them as it runs on the data:

    none      low = 0,      high = 0
    sample i  low = B - i,  high = i + 1        (low + high = B + 1)
    several   low + high > B + 1

This is the interval hull of the set of samples. It loses which samples lie between; no verdict needs that.
Values that are constant along an axis are kept expanded (stride 0), so most of the work is on small tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]


@dataclass(frozen=True)
class Samples:
    """The abstract value of one tensor.

    Attributes:
        low, high: int16, the tensor's shape (see the module's text).
        batch: B.
        additive: elements that depend on several samples are sums of terms that each depend on one; set in the
            backward half only, where DP-SGD can take the sum apart and clip each term.
        inexact: a rule that may claim too much (indices unknown, no rule for the op) had a part in it.
        zero: known to be all zeros.
        const: the concrete value, where it depends on neither samples nor weights nor chance.
        boolean: whether the tensor is boolean (an index of it is a mask).
    """

    low: Tensor
    high: Tensor
    batch: int
    additive: bool = False
    inexact: bool = False
    zero: bool = False
    const: Tensor | None = None
    boolean: bool = False

    @property
    def shape(self) -> torch.Size:
        return self.low.shape

    def empty(self) -> bool:
        """No element depends on any sample."""
        return not bool(squash(self.high).any())

    def mixed(self) -> bool:
        """Some element depends on two samples."""
        return bool((squash(self.low) + squash(self.high) > self.batch + 1).any())

    def owners(self) -> Tensor:
        """The sample of each element, int64: -1 for none, -2 for several."""
        low, high = self.low.long(), self.high.long()
        single = torch.where(high == 0, -1, high - 1)
        return torch.where(low + high > self.batch + 1, -2, single)

    def with_(self, **changes: Any) -> Samples:
        return replace(self, **changes)


def none(shape: Shape, batch: int, *, zero: bool = False, const: Tensor | None = None) -> Samples:
    """A value that depends on no sample."""
    flat = torch.zeros((), dtype=torch.int16).expand(tuple(shape))
    return Samples(flat, flat, batch, zero=zero, const=const)


def several(shape: Shape, batch: int, *, additive: bool, inexact: bool = False) -> Samples:
    """A value every element of which depends on several samples."""
    flat = torch.full((), batch, dtype=torch.int16).expand(tuple(shape))
    return Samples(flat, flat, batch, additive=additive, inexact=inexact)


def per_row(shape: Shape, batch: int) -> Samples:
    """A tensor of the batch: row i of axis 0 is sample i."""
    rows = torch.arange(batch, dtype=torch.int16).view(-1, *[1] * (len(shape) - 1))
    return Samples((batch - rows).expand(tuple(shape)), (rows + 1).expand(tuple(shape)), batch)


def squash(t: Tensor) -> Tensor:
    """The tensor with every constant (stride 0) axis cut to length 1."""
    for axis, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        if stride == 0 and size > 1:
            t = t.narrow(axis, 0, 1)
    return t


def compact(t: Tensor) -> Tensor:
    """The same values, expanded again along the axes on which they are constant."""
    shape = t.shape
    t = squash(t)
    for axis, size in enumerate(t.shape):
        if size > 1:
            first = t.narrow(axis, 0, 1)
            if torch.equal(t, first.expand_as(t)):
                t = first
    return t.expand(shape)


def reshaped(t: Tensor, shape: Shape) -> Tensor:
    """``t.reshape(shape)`` that stays expanded along the axes on which ``t`` is."""
    if t.numel() == 0:
        return t.reshape(tuple(shape))
    small: list[int] = []
    cut, i, j = t, 0, 0
    while i < t.dim() or j < len(shape):
        # The next axes, as few as possible, that hold the same number of elements in both shapes.
        first, start = i, j
        before = after = 1
        if i < t.dim():
            before, i = t.shape[i], i + 1
        if j < len(shape):
            after, j = shape[j], j + 1
        while before != after:
            if before < after:
                before, i = before * t.shape[i], i + 1
            else:
                after, j = after * shape[j], j + 1
        constant = all(t.stride(axis) == 0 or t.shape[axis] == 1 for axis in range(first, i))
        for axis in range(first, i) if constant else ():
            cut = cut.narrow(axis, 0, 1)
        small += [1] * (j - start) if constant else shape[start:j]
    return cut.reshape(small).expand(tuple(shape))


def joined(values: Iterable[Samples], shape: Shape, batch: int) -> Samples:
    """The join of broadcastable values, in ``shape``."""
    values = [v for v in values if not v.empty()]
    inexact = any(v.inexact for v in values)
    if not values:
        return none(shape, batch)
    low, high = squash(values[0].low), squash(values[0].high)
    for value in values[1:]:
        low = torch.maximum(low, squash(value.low))
        high = torch.maximum(high, squash(value.high))
    return Samples(low.expand(tuple(shape)), high.expand(tuple(shape)), batch, inexact=inexact)


def moved(value: Samples, run: Callable[[Tensor], Tensor]) -> Samples:
    """The value under an op that moves elements or fills with zeros."""
    return replace(value, low=compact(run(value.low)), high=compact(run(value.high)), const=None, zero=False)


def parted(value: Samples, run: Callable[[Tensor], Any]) -> list[Samples]:
    """The values under an op that moves elements to several outputs."""
    pairs = zip(run(value.low), run(value.high), strict=True)
    return [replace(value, low=compact(low), high=compact(high), const=None) for low, high in pairs]


def reduced(value: Samples, axes: Iterable[int] | None, keepdim: bool = True) -> Samples:
    """The join over ``axes`` (all, when ``None``)."""
    rank = value.low.dim()
    picked = range(rank) if axes is None else sorted({a % rank for a in axes} if rank else set())
    low, high = squash(value.low), squash(value.high)
    kept = [1 if axis in picked else size for axis, size in enumerate(value.shape)]
    over = [axis for axis in picked if low.shape[axis] > 1 or high.shape[axis] > 1]
    if any(value.shape[axis] == 0 for axis in picked):
        return none(kept if keepdim else [s for a, s in enumerate(kept) if a not in picked], value.batch)
    if over:
        low, high = low.amax(over, keepdim=True), high.amax(over, keepdim=True)
    low, high = low.expand(kept), high.expand(kept)
    if not keepdim:
        for axis in reversed(picked):
            low, high = low.squeeze(axis), high.squeeze(axis)
    return Samples(low, high, value.batch, inexact=value.inexact)


def spread(value: Samples, axes: Iterable[int] | None, shape: Shape | None = None) -> Samples:
    """The join over ``axes``, expanded back (to ``shape``)."""
    small = reduced(value, axes, keepdim=axes is not None)
    target = tuple(value.shape if shape is None else shape)
    return replace(small, low=small.low.expand(target), high=small.high.expand(target))
