"""Transfer rules of ops that create, move, index or write elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpcheck.samplesets.lattice import Samples, compact, moved, none, parted, reduced, reshaped, spread
from dpcheck.samplesets.op import Op, broadcast, transfer

aten = torch.ops.aten

_ZEROS = ("zero", "zeros", "zeros_like", "new_zeros")


@transfer(
    *_ZEROS, "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "empty", "empty_like", "new_empty",
    "empty_strided", "new_empty_strided", "empty_permuted", "arange", "linspace", "logspace", "eye", "scalar_tensor",
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "tril_indices", "triu_indices",
    "hann_window", "bartlett_window", "hamming_window", "blackman_window",
)  # fmt: skip
def create(op: Op) -> Samples:
    """Shapes and chance are no samples; the numbers that it is filled with may be."""
    copies_shape = op.packet.endswith("_like") or op.packet.startswith("new_") or op.packet == "zero"
    fills = [v for v in op.values() if not (copies_shape and v is op.args[0])]
    if any(not v.empty() for v in fills):
        return op.join(*[reduced(v, None, keepdim=False) for v in fills])
    at = {"full": 1, "full_like": 1, "scalar_tensor": 0, "new_full": 2}.get(op.packet)
    fill = None if at is None else op.arg(at, "s" if at == 0 else "fill_value")
    return none(op.out.shape, op.batch, zero=op.packet in _ZEROS or (fill == 0 and not isinstance(fill, Samples)))


@transfer("fill")
def fill(op: Op) -> Samples:
    """Nothing of what was there before is left."""
    value = op.args[1]
    return op.join(value) if isinstance(value, Samples) else op.none()


@transfer(
    "view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze",
    "slice", "select", "flip", "roll", "split", "split_with_sizes", "unbind", "repeat", "clone", "contiguous",
    "diagonal", "unfold", "as_strided", "rot90", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "lift_fresh_copy",
    "slice_backward", "select_backward", "diagonal_backward", "tril", "triu", "diag_embed",
    "repeat_interleave", "unsafe_split", "split_copy",
    "view_copy", "expand_copy", "permute_copy", "slice_copy", "select_copy", "squeeze_copy", "unsqueeze_copy",
    "transpose_copy", "as_strided_copy", "diagonal_copy", "t_copy", "unbind_copy",
)  # fmt: skip
def move(op: Op) -> Any:
    """The same op on the abstract value; zeros that it fills in depend on nothing."""
    value = op.args[0]
    rest = op.args[1:]
    if any(isinstance(v, Samples) for v in rest):
        return unknown(op)
    kwargs = {k: v for k, v in op.kwargs.items() if k not in ("memory_format", "dtype", "device", "layout")}
    target = op.target
    if op.packet in ("view", "reshape", "_reshape_alias", "view_copy"):
        if op.target is aten.view.dtype:
            return op.join(spread(value, [-1], op.out.shape) if value.shape != op.out.shape else value)
        return _named(op, value, moved(value, lambda t: reshaped(t, op.out.shape)))
    if op.packet in ("clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy"):
        return value.with_(const=None)
    if op.packet in ("as_strided", "as_strided_copy"):
        dense = moved(value, lambda t: t.contiguous())
        low, high = dense.low.contiguous(), dense.high.contiguous()
        low, high = (compact(target(t, *rest, **kwargs)) for t in (low, high))
        return Samples(low, high, op.batch, inexact=value.inexact)
    if not isinstance(op.out, Tensor):
        return parted(value, lambda t: target(t, *rest, **kwargs))
    return _named(op, value, moved(value, lambda t: target(t, *rest, **kwargs)))


def _named(op: Op, value: Samples, result: Samples) -> Samples:
    """Zeros stay zeros under a move."""
    return result.with_(zero=True) if value.zero else result


@transfer("_conj", "_neg_view")
def signs(op: Op) -> Samples:
    """Views that read every element with another sign."""
    return op.join(op.args[0])


@transfer("view_as_real")
def as_real(op: Op) -> Samples:
    return moved(op.args[0], lambda t: t.unsqueeze(-1).expand(op.out.shape))


@transfer("view_as_complex")
def as_complex(op: Op) -> Samples:
    return reduced(op.args[0], [-1], keepdim=False)


@transfer("cat", "stack")
def cat(op: Op) -> Samples:
    values = op.args[0]
    rest = op.args[1:]
    low = op.target([v.low for v in values], *rest, **op.kwargs)
    high = op.target([v.high for v in values], *rest, **op.kwargs)
    return Samples(compact(low), compact(high), op.batch, inexact=any(v.inexact for v in values))


@transfer("constant_pad_nd")
def pad(op: Op) -> Samples:
    fill = op.arg(2, "value", 0)
    result: Samples = moved(op.args[0], lambda t: aten.constant_pad_nd.default(t, op.args[1], 0))
    return result.with_(zero=op.args[0].zero and fill == 0)


@transfer("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "copy")
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
        return unknown(op)  # type: ignore[no-any-return]
    blurred = spread(value, [i for i, p in enumerate(picks) if not known(p)])
    stand_in = [
        None if p is None else p.const if p.const is not None else torch.zeros(p.shape, dtype=torch.long) for p in picks
    ]
    result: Samples = moved(blurred, lambda t: aten.index.Tensor(t, stand_in))
    result = op.join(result, _placed(op, value, picks))
    return result.with_(inexact=result.inexact or (result.mixed() and not value.mixed()))


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


@transfer("index_select", "gather")
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
    return result.with_(inexact=result.inexact or (result.mixed() and not value.mixed()))


@transfer("embedding")
def embedding(op: Op) -> Samples:
    table, picks = op.args[:2]
    width = op.out.shape[-1:]
    rows = spread(table, [0], (1, *width)) if not table.empty() else none((1, *width), op.batch)
    flat = moved(picks, lambda t: t.unsqueeze(-1))
    return op.join(flat, moved(rows, lambda t: t[0]))


@transfer("embedding_renorm")
def renorm(op: Op) -> Samples:
    """Scales the rows that are looked up. A sample finds its own rows scaled whatever others look up; that the table
    itself is rewritten from data is seen where the parameter is not the one that went in."""
    table: Samples = op.args[0]
    return table


@transfer("_sparse_coo_tensor_with_dims_and_tensors")
def sparse(op: Op) -> Samples:
    """The sparse gradient of an embedding: a sum of rows [n, D] at indices [1, n]."""
    indices, values = op.args[3:5]
    view = (-1, *[1] * (len(values.shape) - 1))
    return op.summed(op.out.shape, op.join(values, moved(indices, lambda t: t[0].reshape(view)), shape=values.shape))


@transfer("embedding_dense_backward")
def embedding_backward(op: Op) -> Samples:
    grad, picks = op.args[:2]
    slots = op.join(grad, moved(picks, lambda t: t.unsqueeze(-1)), shape=grad.shape)
    result = op.summed(op.out.shape, slots)
    return result.with_(additive=result.additive and not op.args[4])


@transfer("unfold_backward")
def unfold_backward(op: Op) -> Samples:
    """Windows fold back: a place is the sum of the windows that cover it."""
    grad, sizes, dim, size, step = op.args
    axis = dim % max(len(sizes), 1)
    result = op.none()
    for k in range(size):
        # Element k of window w lies at w * step + k.
        shift = grad.with_(low=grad.low.select(-1, k), high=grad.high.select(-1, k))
        places = torch.arange(shift.shape[axis]) * step + k
        blank = torch.zeros(tuple(sizes), dtype=torch.int16)
        low, high = (blank.index_copy(axis, places, t) for t in (shift.low, shift.high))
        part = Samples(compact(low), compact(high), op.batch, inexact=grad.inexact)
        if not part.empty():
            result = op.join(result, part)
    if op.backward and result.mixed() and not grad.mixed():
        return op.summed(op.out.shape, grad)
    return result


def unknown(op: Op) -> Any:
    """No rule: every output may depend on every input. Never a proof."""

    def make(out: Tensor) -> Samples:
        merged = op.join(*[reduced(v, None, keepdim=False) for v in op.values()], shape=out.shape)
        return merged.with_(inexact=not merged.empty(), additive=False)

    return op.each(make)
