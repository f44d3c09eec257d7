"""Transfer rules of ops that create, move, index or write elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpcheck.samplesets.lattice import Samples, compact, moved, none, parted, reduced, spread
from dpcheck.samplesets.op import Op, broadcast, transfer

aten = torch.ops.aten

_ZEROS = ("zeros", "zeros_like", "new_zeros", "_efficientzerotensor")


@transfer(
    *_ZEROS, "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "empty", "empty_like", "new_empty",
    "empty_strided", "new_empty_strided", "empty_permuted", "arange", "linspace", "logspace", "eye", "scalar_tensor",
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "tril_indices", "triu_indices",
    "hann_window", "bartlett_window", "hamming_window", "blackman_window", "sym_size", "complex_zeros",
)  # fmt: skip
def create(op: Op) -> Samples:
    """Shapes and chance are no samples. ``full`` may be filled from a tensor."""
    fill = op.arg(1, "fill_value") if op.packet in ("full", "full_like") else None
    if isinstance(fill, Samples):
        return op.join(fill)
    return none(op.out.shape, op.batch, zero=op.packet in _ZEROS or fill == 0)


@transfer(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze",
    "slice", "select", "narrow", "flip", "roll", "split", "split_with_sizes", "unbind", "chunk", "repeat", "clone",
    "contiguous", "alias", "detach", "diagonal", "unfold", "as_strided", "movedim", "rot90", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "lift_fresh_copy", "lift_fresh", "view_as", "expand_as", "flatten", "numpy_T",
    "slice_backward", "select_backward", "diagonal_backward", "unfold_backward", "tril", "triu", "diag_embed",
    "repeat_interleave", "unsafe_split", "split_copy", "unflatten", "swapaxes", "_conj", "_neg_view", "resolve_conj",
    "view_copy", "expand_copy", "permute_copy", "slice_copy", "select_copy", "squeeze_copy", "unsqueeze_copy",
    "transpose_copy", "as_strided_copy", "diagonal_copy", "tensor_split", "resolve_neg",
)  # fmt: skip
def move(op: Op) -> Any:
    """The same op on the abstract value; zeros that it fills in depend on nothing."""
    value = op.args[0]
    rest = op.args[1:]
    if any(isinstance(v, Samples) for v in rest):
        return unknown(op)
    kwargs = {k: v for k, v in op.kwargs.items() if k not in ("memory_format", "dtype", "device", "layout")}
    target = op.target
    if op.packet in ("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "flatten", "view_as"):
        if op.target is aten.view.dtype:
            return op.join(spread(value, [-1], op.out.shape) if value.shape != op.out.shape else value)
        return _named(op, value, moved(value, lambda t: t.reshape(op.out.shape)))
    if op.packet in ("as_strided", "as_strided_copy"):
        dense = moved(value, lambda t: t.contiguous())
        low, high = dense.low.contiguous(), dense.high.contiguous()
        return Samples(compact(target(low, *rest, **kwargs)), compact(target(high, *rest, **kwargs)), op.batch)
    if not isinstance(op.out, Tensor):
        return parted(value, lambda t: target(t, *rest, **kwargs))
    return _named(op, value, moved(value, lambda t: target(t, *rest, **kwargs)))


def _named(op: Op, value: Samples, result: Samples) -> Samples:
    """Zeros stay zeros under a move."""
    return result.with_(zero=True) if value.zero else result


@transfer("view_as_real")
def as_real(op: Op) -> Samples:
    return moved(op.args[0], lambda t: t.unsqueeze(-1).expand(op.out.shape))


@transfer("view_as_complex")
def as_complex(op: Op) -> Samples:
    return reduced(op.args[0], [-1], keepdim=False)


@transfer("cat", "stack", "concat", "hstack", "vstack")
def cat(op: Op) -> Samples:
    values = op.args[0]
    rest = op.args[1:]
    low = op.target([v.low for v in values], *rest, **op.kwargs)
    high = op.target([v.high for v in values], *rest, **op.kwargs)
    return Samples(compact(low), compact(high), op.batch, inexact=any(v.inexact for v in values))


@transfer("constant_pad_nd", "pad")
def pad(op: Op) -> Samples:
    fill = op.arg(2, "value", 0)
    result: Samples = moved(op.args[0], lambda t: aten.constant_pad_nd.default(t, op.args[1], 0))
    return result.with_(zero=op.args[0].zero and fill == 0)


@transfer("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "copy", "index_copy_")
def scatter_in(op: Op) -> Samples:
    base, source, rest = op.args[0], op.args[1], op.args[2:]
    if op.packet == "copy":
        return op.join(source)
    low, high = (op.target(a, b, *rest, **op.kwargs) for a, b in ((base.low, source.low), (base.high, source.high)))
    return Samples(compact(low), compact(high), op.batch, inexact=base.inexact or source.inexact)


def known(index: Samples | None) -> bool:
    return index is None or index.const is not None


@transfer("index", "_unsafe_index")
def index(op: Op) -> Samples:
    """Known indices are followed; unknown ones may pick anything along their axis."""
    value: Samples = op.args[0]
    picks: list[Samples | None] = list(op.args[1])
    if all(known(p) for p in picks):
        return moved(value, lambda t: aten.index.Tensor(t, [None if p is None else p.const for p in picks]))
    if any(p is not None and p.boolean for p in picks):
        return unknown(op)
    blurred = spread(value, [i for i, p in enumerate(picks) if not known(p)])
    stand_in = [
        None if p is None else p.const if p.const is not None else torch.zeros(p.shape, dtype=torch.long) for p in picks
    ]
    result: Samples = moved(blurred, lambda t: aten.index.Tensor(t, stand_in))
    result = op.join(result, _placed(op, value, picks))
    return result.with_(inexact=value.inexact or (result.mixed() and not value.mixed()))


def _bool_mask(op: Op) -> Samples | None:
    """The mask of ``x[mask]``, when the only index is one, on the leading axes."""
    picks = [p for p in op.args[1] if p is not None]
    return picks[0] if len(picks) == 1 and picks[0] is op.args[1][0] and picks[0].boolean else None


def _placed(op: Op, value: Samples, picks: list[Samples | None]) -> Samples:
    """The samples of the indices, at the place of the indexed axes in the result."""
    used = [i for i, p in enumerate(picks) if p is not None]
    index = [p for p in picks if p is not None and p.const is None]
    if all(p.empty() for p in index):
        return op.none()
    shape = broadcast(*[p for p in picks if p is not None])
    merged = op.join(*index, shape=shape)
    adjacent = used == list(range(used[0], used[-1] + 1))
    before = used[0] if adjacent else 0
    after = len(op.out.shape) - before - len(shape)
    view = [1] * before + list(shape) + [1] * after
    return moved(merged, lambda t: t.reshape(view).expand(op.out.shape))


@transfer("index_select", "gather", "take_along_dim")
def gather(op: Op) -> Samples:
    value, dim, picks = op.args[:3]
    if known(picks):
        return moved(value, lambda t: op.target(t, dim, picks.const))
    blurred = spread(value, [dim])
    zeros = torch.zeros(picks.shape, dtype=torch.long)
    result: Samples = moved(blurred, lambda t: op.target(t, dim, zeros))
    if op.packet == "index_select":
        view = [1] * len(op.out.shape)
        view[dim] = -1
        picks = moved(picks, lambda t: t.reshape(view).expand(op.out.shape))
    result = op.join(result, picks)
    return result.with_(inexact=value.inexact or (result.mixed() and not value.mixed()))


@transfer("embedding")
def embedding(op: Op) -> Samples:
    table, picks = op.args[:2]
    width = op.out.shape[-1:]
    rows = spread(table, [0], (1, *width)) if not table.empty() else none((1, *width), op.batch)
    flat = moved(picks, lambda t: t.unsqueeze(-1))
    return op.join(flat, moved(rows, lambda t: t[0]))


@transfer("embedding_dense_backward")
def embedding_backward(op: Op) -> Samples:
    grad, picks = op.args[:2]
    slots = op.join(grad, moved(picks, lambda t: t.unsqueeze(-1)), shape=grad.shape)
    result = op.summed(op.out.shape, slots)
    return result.with_(additive=result.additive and not op.args[4])


@transfer("index_put", "_unsafe_index_put", "index_put_")
def index_put(op: Op) -> Samples:
    base, picks, source = op.args[0], list(op.args[1]), op.args[2]
    accumulate = bool(op.arg(3, "accumulate", False))
    if not accumulate and all(known(p) for p in picks):
        stand_in = [None if p is None else p.const for p in picks]
        low = aten.index_put.default(base.low, stand_in, source.low)
        high = aten.index_put.default(base.high, stand_in, source.high)
        return Samples(compact(low), compact(high), op.batch, inexact=base.inexact or source.inexact)
    index = [p for p in picks if p is not None]
    mask = _bool_mask(op)
    if mask is not None and source.low.numel() == 1 and not accumulate:
        # `x[mask] = number`: elementwise.
        wide = moved(index[0], lambda t: t.reshape(*t.shape, *[1] * (len(op.out.shape) - len(t.shape))))
        return op.join(base, wide, moved(source, lambda t: t.reshape(())))
    slot_shape = broadcast(*index)
    slots = [source]
    tail = [1] * max(len(source.shape) - len(slot_shape), 0)
    slots += [moved(p, lambda t: t.reshape(*t.shape, *tail)) for p in index]
    return _accumulated(op, base, slots, source.shape, accumulate)


@transfer("scatter_add", "index_add", "scatter", "scatter_reduce", "index_copy", "masked_scatter")
def scatter(op: Op) -> Samples:
    base = op.args[0]
    if op.packet == "masked_scatter":
        return unknown(op)
    dim, picks, source = op.args[1:4]
    if isinstance(source, Samples) and known(picks) and op.packet in ("scatter", "index_copy"):
        low = op.target(base.low, dim, picks.const, source.low)
        high = op.target(base.high, dim, picks.const, source.high)
        return Samples(compact(low), compact(high), op.batch, inexact=base.inexact or source.inexact)
    inside = op.join(base, picks if picks.shape == op.out.shape else None)
    values = [source] if isinstance(source, Samples) else []
    axis = dim % max(len(base.shape), 1)
    if op.packet in ("index_add", "index_copy"):
        view = [1] * len(base.shape)
        view[axis] = -1
        picks = moved(picks, lambda t: t.reshape(view))
    slots = [picks, *values]
    if op.packet in ("scatter_add", "index_add") and op.backward and base.empty():
        shape = source.shape
        along = reduced(op.join(*slots, shape=shape), [a for a in range(len(shape)) if a != axis])
        rows = op.join(*slots, shape=shape)
        if not _same_owner_elsewhere(rows, axis):
            return op.summed(op.out.shape, rows).with_(inexact=along.inexact)
    # Anything along the axis may be hit by anything of the source.
    hit = spread(op.join(*slots, shape=picks.shape if picks.shape else (1,)), [axis])
    if hit.shape != op.out.shape:
        grown = [o if a == axis or s == o else -1 for a, (s, o) in enumerate(zip(hit.shape, op.out.shape, strict=True))]
        if -1 in grown:
            hit = spread(hit, None, op.out.shape)
        else:
            hit = moved(hit, lambda t: t.narrow(axis, 0, 1).expand(op.out.shape))
    result = op.join(inside, hit)
    return result.with_(inexact=base.inexact or result.mixed())


def _same_owner_elsewhere(rows: Samples, axis: int) -> bool:
    """Whether a scatter along ``axis`` stays within one sample: then it is no sum over samples."""
    return not reduced(rows, [axis]).mixed()


def _accumulated(op: Op, base: Samples, slots: list[Samples], shape: Any, accumulate: bool) -> Samples:
    merged = op.join(*slots, shape=shape)
    if accumulate and op.backward and base.empty():
        everything = reduced(merged, None)
        if everything.mixed():
            return op.summed(op.out.shape, merged)
        return op.join(spread(merged, None, op.out.shape))
    result = op.join(base, spread(merged, None, (1,) * max(len(op.out.shape), 1)) if op.out.shape else merged)
    return result.with_(inexact=True)


@transfer("masked_select", "nonzero", "unique", "_unique2", "unique_dim", "bincount", "histc", "tensordot_unknown")
def unknown(op: Op) -> Any:
    """No rule: every output may depend on every input. Never a proof."""

    def make(out: Tensor) -> Samples:
        merged = op.join(*[reduced(v, None, keepdim=False) for v in op.values()], shape=out.shape)
        return merged.with_(inexact=not merged.empty(), additive=False)

    return op.each(make)
