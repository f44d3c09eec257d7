"""Transfer rules of normalisation layers and losses."""

from __future__ import annotations

from typing import Any

from dpcheck.samplesets.lattice import Samples, moved, reduced, spread
from dpcheck.samplesets.moves import unknown
from dpcheck.samplesets.op import Op, broadcast, transfer


@transfer("native_layer_norm", "_fused_rms_norm")
def layer_norm(op: Op) -> Any:
    value, shape = op.args[0], op.args[1]
    axes = range(-len(shape), 0)
    small = reduced(value, axes)
    affine = [v for v in op.values()[1:] if not v.empty()]

    def make(out: Any) -> Samples:
        if tuple(out.shape) == tuple(value.shape):
            return op.join(small, *affine, shape=out.shape)
        return op.join(small, shape=out.shape)

    return op.each(make)


@transfer("native_layer_norm_backward", "_fused_rms_norm_backward")
def layer_norm_backward(op: Op) -> list[Samples | None]:
    grad, value, shape = op.args[:3]
    axes = range(-len(shape), 0)
    stats = [v for v in op.args[3:5] if isinstance(v, Samples) and v.shape[: -len(shape)] == value.shape[: -len(shape)]]
    slots = op.join(grad, value, *[v for v in stats if len(v.shape) == len(value.shape)], shape=value.shape)
    weight = [v for v in op.args[5:6] if isinstance(v, Samples) and not v.empty()]
    rows = spread(op.join(slots, *weight, shape=value.shape), axes)
    results: list[Samples | None] = []
    for i, out in enumerate(op.out):
        results.append(None if out is None else rows if i == 0 else _sum_slots(op, out.shape, slots, len(shape)))
    return results


def _sum_slots(op: Op, shape: Any, slots: Samples, kept: int) -> Samples:
    lead = range(len(slots.shape) - kept)
    small = reduced(slots, lead, keepdim=False)
    return op.summed(shape, slots) if small.mixed() else op.join(small, shape=shape)


@transfer("native_group_norm")
def group_norm(op: Op) -> list[Samples]:
    value, n, groups = op.args[0], op.args[3], op.args[6]
    stats = reduced(moved(value, lambda t: t.reshape(n, groups, -1)), [2], keepdim=False)
    wide = moved(stats, lambda t: t.unsqueeze(2).expand(n, groups, value.low[0].numel() // groups).reshape(value.shape))
    view = (1, -1, *[1] * (len(value.shape) - 2))
    affine = [moved(v, lambda t: t.reshape(view)) for v in op.values()[1:] if not v.empty()]
    return [op.join(wide, *affine, shape=op.out[0].shape), stats, stats]


@transfer("native_group_norm_backward")
def group_norm_backward(op: Op) -> list[Samples | None]:
    grad, value = op.args[:2]
    n = op.args[5]
    both = op.join(grad, value, shape=value.shape)
    channels = (1, -1, *[1] * (len(value.shape) - 2))
    weight = [moved(v, lambda t: t.reshape(channels)) for v in op.args[4:5] if v is not None]
    rows = reduced(moved(op.join(both, *weight, shape=value.shape), lambda t: t.reshape(n, -1)), [1])
    wide = moved(rows, lambda t: t.reshape(n, *[1] * (len(value.shape) - 1)).expand(value.shape))
    outs = op.out
    return [None if o is None else wide if i == 0 else op.summed(o.shape, both) for i, o in enumerate(outs)]


_BATCH_NORM = (
    "native_batch_norm", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update_functional",
    "_batch_norm_no_update",
)  # fmt: skip


@transfer(*_BATCH_NORM)
def batch_norm(op: Op) -> list[Samples | None]:
    """In training: statistics of every channel over all samples. Otherwise elementwise."""
    value = op.args[0]
    channels = [axis for axis in range(len(value.shape)) if axis != 1]
    stats = reduced(value, channels, keepdim=False)
    training = _training(op)
    view = (1, -1, *[1] * (len(value.shape) - 2))
    others = [moved(v, lambda t: t.reshape(view)) for v in op.values()[1:] if len(v.shape) == 1]
    results: list[Samples | None] = []
    for i, out in enumerate(op.out):
        if out is None:
            results.append(None)
        elif i == 0:
            wide = moved(stats, lambda t: t.reshape(view).expand(value.shape))
            results.append(op.join(wide if training else value, *others, shape=out.shape))
        elif tuple(out.shape) == tuple(stats.shape) and training:
            old = [v for v in op.args[3:5] if isinstance(v, Samples) and tuple(v.shape) == tuple(out.shape)]
            results.append(op.join(stats, *old, shape=out.shape))
        else:
            results.append(op.none(out.shape))
    return results


def _training(op: Op) -> bool:
    if op.packet in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update"):
        return False
    if op.packet == "_batch_norm_with_update_functional":
        return True
    return any(arg is True for arg in op.args[3:6])


@transfer("native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward")
def batch_norm_backward(op: Op) -> list[Samples | None]:
    first, second = op.args[:2]
    training = op.packet != "native_batch_norm_backward" or bool(op.args[7])
    slots = op.join(first, second, shape=first.shape)
    channels = [axis for axis in range(len(first.shape)) if axis != 1]
    view = (1, -1, *[1] * (len(first.shape) - 2))
    others = [moved(v, lambda t: t.reshape(view)) for v in op.values()[2:] if len(v.shape) == 1 and not v.empty()]
    wide = spread(slots, channels) if training else op.join(slots, *others, shape=first.shape)
    own = reduced(op.join(slots, *others, shape=first.shape), channels, keepdim=False)
    results: list[Samples | None] = []
    for i, out in enumerate(op.out):
        if out is None:
            results.append(None)
        elif i == 0:
            results.append(wide)
        elif not own.mixed():
            # Instance norm: a channel for every sample.
            results.append(op.join(own, shape=out.shape))
        else:
            total = op.summed(out.shape, slots)
            # In training every term of the sum uses the statistics of all samples.
            results.append(total.with_(additive=total.additive and not training))
    return results


@transfer("nll_loss_forward", "nll_loss2d_forward")
def nll(op: Op) -> list[Samples]:
    value, target, reduction = op.args[0], op.args[1], op.args[3]
    weight = op.args[2]
    axis = 1 if len(value.shape) > 1 else 0
    weights = None if weight is None or weight.empty() else spread(weight, None, ())
    single = op.join(reduced(value, [axis], keepdim=False), target, weights, shape=target.shape)
    if reduction == 0:
        return [single, op.none(op.out[1].shape)]
    total = reduced(single, None, keepdim=False)
    counted = reduced(target, None, keepdim=False) if weight is not None or op.packet else total
    return [op.join(total, shape=op.out[0].shape), op.join(counted, shape=op.out[1].shape)]


@transfer("nll_loss_backward", "nll_loss2d_backward")
def nll_backward(op: Op) -> Samples:
    grad, value, target, weight, reduction = op.args[:5]
    total = op.args[6]
    axis = 1 if len(value.shape) > 1 else 0
    weights = None if weight is None or weight.empty() else spread(weight, None, ())
    target = moved(target, lambda t: t.unsqueeze(axis))
    if reduction == 0:
        return op.join(moved(grad, lambda t: t.unsqueeze(axis)), target, weights)
    flat = [spread(v, None, (1,) * len(op.out.shape)) for v in (grad, total) if v is not None and not v.empty()]
    return op.join(target, weights, *flat)


@transfer(
    "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy", "mse_loss_backward",
    "smooth_l1_loss_backward", "huber_loss_backward", "soft_margin_loss_backward", "binary_cross_entropy_backward",
)  # fmt: skip
def elementwise_loss(op: Op) -> Samples:
    merged = op.join(*op.values(), shape=broadcast(*op.values()))
    return merged if tuple(merged.shape) == tuple(op.out.shape) else op.join(reduced(merged, None, keepdim=False))


@transfer("multi_margin_loss", "multilabel_margin_loss_forward")
def rows(op: Op) -> Any:
    """Left to the oracle: these fold the sample axis in ways of their own."""
    return unknown(op)
