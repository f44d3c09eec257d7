"""Transfer rules of ops that write elements to indexed places: assignments, scatters, accumulations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpcheck.samplesets.lattice import Samples, compact, moved, reduced, spread
from dpcheck.samplesets.moves import known, unknown
from dpcheck.samplesets.op import Op, transfer

aten = torch.ops.aten


@transfer("index_put", "_unsafe_index_put")
def index_put(op: Op) -> Samples:
    """Known indices are followed; an unknown one may write anywhere along its axis."""
    base, picks, source = op.args[0], list(op.args[1]), op.args[2]
    mask = _leading_mask(picks)
    if mask is not None:
        return _masked_put(op, base, mask, source)
    if any(p is not None and p.boolean and p.const is None for p in picks):
        return unknown(op)  # type: ignore[no-any-return]
    if any(p is not None and p.boolean for p in picks) and not all(known(p) for p in picks):
        return unknown(op)  # type: ignore[no-any-return]
    places = aten.index.Tensor(_numbered(base.shape), [None if p is None else _index(p) for p in picks])
    doubtful = [p for p in picks if p is not None and p.const is None]
    axes = [axis for axis, p in enumerate(picks) if p is not None and p.const is None]
    slots = op.join(source, *[_in_place(p, picks, places) for p in doubtful], shape=places.shape)
    return _written(op, base, slots, places, axes, bool(op.arg(3, "accumulate", False)))


def _index(pick: Samples) -> Tensor:
    """The index where it is known; the first place, from where it is spread, where it is not."""
    return torch.zeros(pick.shape, dtype=torch.long) if pick.const is None else pick.const


def _leading_mask(picks: list[Samples | None]) -> Samples | None:
    """The mask of ``x[mask] = ...`` when it is the only index, on the leading axes, and not a constant."""
    given = [p for p in picks if p is not None]
    alone = len(given) == 1 and given[0] is picks[0] and given[0].boolean and given[0].const is None
    return given[0] if alone else None


def _masked_put(op: Op, base: Samples, mask: Samples, source: Samples) -> Samples:
    """``x[mask] = number`` is elementwise. Other sources are lined up by counting the mask, which is not followed."""
    if source.low.numel() != 1:
        return unknown(op)  # type: ignore[no-any-return]
    wide = moved(mask, lambda t: t.reshape(*t.shape, *[1] * (len(op.out.shape) - len(t.shape))))
    return op.join(base, wide, moved(source, lambda t: t.reshape(())))


def _in_place(pick: Samples, picks: list[Samples | None], places: Tensor) -> Samples:
    """An index, laid out along the axes that the indices take in the indexed result."""
    used = [axis for axis, p in enumerate(picks) if p is not None]
    rank = max(len(p.shape) for p in picks if p is not None)
    adjacent = used == list(range(used[0], used[-1] + 1))
    before = used[0] if adjacent else 0
    after = places.dim() - before - rank
    return moved(pick, lambda t: t.reshape(*[1] * (before + rank - t.dim()), *t.shape, *[1] * after))


@transfer("scatter_add", "index_add", "scatter", "scatter_reduce", "index_copy")
def scatter(op: Op) -> Samples:
    """Along one axis; known indices are followed, unknown ones may write anywhere along it."""
    base, dim, picks = op.args[:3]
    source = op.args[3] if len(op.args) > 3 and isinstance(op.args[3], Samples) else None
    axis = dim % max(len(base.shape), 1)
    chosen, doubtful = _index(picks), picks.const is None
    numbers = _numbered(base.shape)
    if op.packet in ("index_add", "index_copy"):
        places = numbers.index_select(axis, chosen.reshape(-1))
        picks = moved(picks, lambda t: t.reshape([-1 if a == axis else 1 for a in range(places.dim())]))
    else:
        places = numbers.gather(axis, chosen)
        if source is not None:
            corner = tuple(slice(0, n) for n in places.shape)
            source = moved(source, lambda t: t[corner])
    slots = op.join(source, picks if doubtful else None, shape=places.shape)
    accumulate = op.packet in ("scatter_add", "index_add", "scatter_reduce") or "reduce" in op.name
    additive = op.packet in ("scatter_add", "index_add")
    return _written(op, base, slots, places, [axis] if doubtful else [], accumulate, additive)


def _numbered(shape: Any) -> Tensor:
    """The place of each element, counted in row-major order."""
    return torch.arange(torch.Size(shape).numel()).reshape(tuple(shape))


def _written(
    op: Op, base: Samples, slots: Samples, places: Tensor, doubtful: list[int], keep: bool, additive: bool = True
) -> Samples:
    """``base`` after ``slots`` were written to ``places``, each of them anywhere along the ``doubtful`` axes.

    Args:
        keep: whether what was there before still counts.
        additive: whether several writes to one place are added up.
    """
    if keep and additive and op.backward and base.empty() and not slots.mixed():
        hit = spread(_hit(base, slots, places), doubtful) if doubtful else _hit(base, slots, places)
        return op.summed(op.out.shape, slots) if hit.mixed() else op.join(hit)
    hit = _hit(base, slots, places)
    if doubtful:
        result = op.join(base, spread(hit, doubtful))
        return result.with_(inexact=result.inexact or result.mixed())
    if not keep:
        left = torch.ones(torch.Size(base.shape).numel(), dtype=torch.int16)
        left[places.reshape(-1)] = 0
        base = moved(base, lambda t: t * left.reshape(t.shape))
    return op.join(base, hit)


def _hit(base: Samples, slots: Samples, places: Tensor) -> Samples:
    """The join of all slots that are written to each place."""
    size = torch.Size(base.shape).numel()

    def fold(t: Tensor) -> Tensor:
        flat = torch.zeros(size, dtype=torch.long)
        flat = flat.scatter_reduce(0, places.reshape(-1), t.reshape(-1).long(), "amax")
        return compact(flat.reshape(tuple(base.shape)).to(torch.int16))

    return Samples(fold(slots.low), fold(slots.high), slots.batch, inexact=slots.inexact)


@transfer("index_fill")
def index_fill(op: Op) -> Samples:
    """One number written to places along an axis; what was there before is kept, which may claim too much."""
    base, _, picks, number = op.args
    fill = moved(number, lambda t: t.reshape(())) if isinstance(number, Samples) else None
    where = None if known(picks) else reduced(picks, None, keepdim=False)
    result = op.join(base, fill, where)
    return result.with_(inexact=result.inexact or (result.mixed() and not base.mixed()))


@transfer("masked_scatter")
def masked_scatter(op: Op) -> Any:
    return unknown(op)


@transfer("linalg_cross")
def cross(op: Op) -> Samples:
    """Three elements of each argument along one axis."""
    axis = op.arg(2, "dim", -1)
    return spread(op.join(*op.args[:2]), None if axis is None else [axis], op.out.shape)
