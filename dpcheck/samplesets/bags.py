"""Transfer rules of embedding bags: flat indices [N], cut into bags at ``offsets``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpcheck.samplesets.lattice import Samples, compact, joined, moved, reduced, spread, squash
from dpcheck.samplesets.moves import unknown
from dpcheck.samplesets.op import Op, transfer

MAX = 2


def bags_of(offsets: Tensor, count: int, entries: int) -> Tensor | None:
    """The bag of each of ``entries`` indices, [entries]; ``None`` if ``count`` bags do not take all of them in order.

    Args:
        offsets: where each bag starts, [count], or [count + 1] with the end of the last one.
    """
    starts = offsets[:count]
    regular = count > 0 and int(starts[0]) == 0 and bool((starts.diff() >= 0).all())
    if not regular or (len(offsets) > count and int(offsets[-1]) != entries):
        return None
    return torch.searchsorted(starts, torch.arange(entries, dtype=starts.dtype, device=starts.device), right=True) - 1


@transfer("_embedding_bag", "_embedding_bag_forward_only")
def bag(op: Op) -> Any:
    """A bag depends on its own indices and weights. Offsets that are no constants decide what is in which bag."""
    table, picks, offsets = op.args[:3]
    count = op.out[0].shape[0]
    given = op.join(picks, op.arg(6, "per_sample_weights"), shape=picks.shape)
    bags = _bags(offsets, count, picks.shape[0])
    if bags is None:
        return _cut_by_data(op, offsets, count)
    rows = spread(table, [0], (1, *table.shape[1:])) if not table.empty() else None
    own = per_bag(given, bags, count)

    def make(out: Tensor) -> Samples:
        # The bag of each index is a constant, but kernels may leave it out.
        if out is op.out[1]:
            return op.none(out.shape)
        wide = moved(own, lambda t: t.reshape(-1, *[1] * (out.dim() - 1)))
        return op.join(wide, rows if out.dim() == 2 else None, shape=out.shape)

    return op.each(make)


def _cut_by_data(op: Op, offsets: Samples, count: int) -> Any:
    """A bag ends where the next one starts, so it depends on both offsets; and what is in it may be anybody's."""
    ends = moved(offsets, lambda t: torch.maximum(t[:count], torch.cat([t[1:], t[-1:]])[:count]))
    if not ends.mixed():
        return unknown(op)
    everything = [reduced(v, None, keepdim=False) for v in op.values()]
    return op.each(lambda out: op.join(*everything, shape=out.shape))


def per_bag(entries: Samples, bags: Tensor, count: int) -> Samples:
    """The join of the entries of each bag, [count]."""

    def fold(t: Tensor) -> Tensor:
        empty = torch.zeros(count, dtype=torch.long)
        return compact(empty.scatter_reduce(0, bags, t.long(), "amax").to(torch.int16))

    return Samples(fold(entries.low), fold(entries.high), entries.batch, inexact=entries.inexact)


def _per_entry(rows: Samples, bags: Tensor) -> Samples:
    """Each entry's row of a value by bag."""

    def pick(t: Tensor) -> Tensor:
        small = squash(t)
        return small.expand(t.shape[0], *small.shape[1:])[bags].expand(len(bags), *t.shape[1:])

    return moved(rows, pick)


@transfer("_embedding_bag_backward")
def bag_backward(op: Op) -> Samples:
    """A sum over the entries of all bags, or over the largest entries (``max``)."""
    grad, picks, offsets, _, sizes, largest, _, by_frequency, mode, _, weights = op.args[:11]
    if mode == MAX:
        if largest.shape != grad.shape:
            return unknown(op)  # type: ignore[no-any-return]
        slots = op.join(grad, largest, moved(sizes, lambda t: t.unsqueeze(1)), shape=grad.shape)
    else:
        bags = _bags(offsets, grad.shape[0], picks.shape[0])
        if bags is None:
            return unknown(op)  # type: ignore[no-any-return]
        own = op.join(picks, weights, _per_entry(sizes, bags), shape=picks.shape)
        slots = op.join(_per_entry(grad, bags), moved(own, lambda t: t.unsqueeze(1)), shape=(len(bags), grad.shape[1]))
    result = op.summed(op.out.shape, slots)
    return result.with_(additive=result.additive and not by_frequency)


def _bags(offsets: Samples, count: int, entries: int) -> Tensor | None:
    return None if offsets.const is None else bags_of(offsets.const, count, entries)


@transfer("_embedding_bag_per_sample_weights_backward")
def bag_weights_backward(op: Op) -> Samples:
    """The gradient of each entry's weight: its bag's gradient times its row of the table."""
    grad, table, picks, offsets = op.args[:4]
    bags = _bags(offsets, grad.shape[0], picks.shape[0])
    if bags is None:
        return unknown(op)  # type: ignore[no-any-return]
    rows = reduced(_per_entry(grad, bags), [1], keepdim=False)
    everywhere = joined([reduced(table, None, keepdim=False)], (), op.batch)
    return op.join(rows, picks, everywhere)
