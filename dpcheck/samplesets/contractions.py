"""Transfer rules of matrix products, convolutions, attention and ops on images."""

from __future__ import annotations

from typing import Any

from dpcheck.samplesets.lattice import Samples, moved, reduced, spread
from dpcheck.samplesets.op import Op, transfer


def _product(op: Op, left: Samples, right: Samples, shape: Any) -> Samples:
    """``left @ right`` of matrices or batches of matrices: the join over the contracted axis."""
    rows = reduced(left, [-1])
    columns = reduced(right, [-2])
    result = op.join(rows, columns, shape=shape)
    if op.backward and result.mixed() and not left.mixed() and not right.mixed():
        # One slot for each index of the contracted axis.
        slots = op.join(
            reduced(left, [-2]),
            moved(reduced(right, [-1]), lambda t: t.transpose(-1, -2)),
            shape=(*left.shape[:-2], 1, left.shape[-1]),
        )
        if not slots.mixed():
            return op.summed(shape, slots)
    return result


@transfer("mm", "bmm", "addmm", "baddbmm", "dot", "vdot", "addmv", "addbmm", "addr")
def product(op: Op) -> Samples:
    bias, (left, right) = (op.args[0], op.args[1:3]) if op.packet.startswith(("add", "badd")) else (None, op.args[:2])
    if op.packet in ("dot", "vdot"):
        left, right = (moved(v, lambda t: t.unsqueeze(0)) for v in (left, right))
        right = moved(right, lambda t: t.transpose(0, 1))
        result = moved(_product(op, left, right, (1, 1)), lambda t: t.reshape(()))
    elif op.packet == "addmv":
        right = moved(right, lambda t: t.unsqueeze(-1))
        result = moved(_product(op, left, right, (left.shape[0], 1)), lambda t: t.reshape(-1))
    elif op.packet == "addr":
        result = op.join(moved(left, lambda t: t.unsqueeze(1)), right)
    elif op.packet == "addbmm":
        inner = _product(op, left, right, (left.shape[0], left.shape[1], right.shape[2]))
        result = reduced(inner, [0], keepdim=False)
    else:
        result = _product(op, left, right, op.out.shape)
    if bias is None or bias.empty():
        return result
    return op.join(bias, result)


@transfer("convolution")
def convolution(op: Op) -> Samples:
    value, weight, bias = op.args[:3]
    spatial = len(weight.shape) - 2
    rows = reduced(value, range(-spatial - 1, 0))
    result = op.join(rows, _all(op, weight), _all(op, bias))
    return result.with_(inexact=result.inexact or (result.mixed() and not value.mixed()))


def _all(op: Op, value: Samples | None) -> Samples | None:
    """The join of everything in a weight, which is nearly always empty."""
    if value is None or value.empty():
        return None
    return spread(value, None, (1,) * len(op.out.shape if hasattr(op.out, "shape") else value.shape))


@transfer("convolution_backward")
def convolution_backward(op: Op) -> list[Samples | None]:
    grad, value, weight = op.args[:3]
    spatial = range(-(len(weight.shape) - 2) - 1, 0)
    heads = reduced(grad, spatial)
    rows = op.join(heads, reduced(value, spatial), shape=(value.shape[0], *[1] * (len(value.shape) - 1)))
    results: list[Samples | None] = []
    for i, out in enumerate(op.out):
        if out is None:
            results.append(None)
        elif i == 0:
            results.append(op.join(heads, _flat(weight, len(out.shape)), shape=out.shape))
        else:
            results.append(op.summed(out.shape, rows if i == 1 else heads))
    return results


def _flat(value: Samples, rank: int) -> Samples | None:
    return None if value.empty() else spread(value, None, (1,) * rank)


@transfer(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_cudnn_attention_backward",
)  # fmt: skip
def attention(op: Op) -> Any:
    """[N, H, T, D] (or a mask that broadcasts): every element depends on its row of axis 0."""
    rows = []
    lead = op.values()[0].shape[:2]
    for value in op.values():
        if value.empty():
            continue
        # A mask of three axes is [H, T, T]; other values of three axes are [N, H, T].
        by_row = len(value.shape) == 4 or (len(value.shape) == 3 and value.shape[:2] == lead)
        small = reduced(value, range(1, len(value.shape)) if by_row else None)
        rows.append(moved(small, lambda t: t.reshape(-1)))
    lengths = {v.shape[0] for v in rows}
    n = max(lengths, default=1)

    def make(out: Any) -> Samples:
        if not rows or not out.shape or out.shape[0] != n:
            parts = [moved(reduced(v, None), lambda t: t.reshape(())) for v in rows]
            return op.join(*parts, shape=out.shape)
        view = (-1, *[1] * (len(out.shape) - 1))
        return op.join(*[moved(v, lambda t: t.reshape(view)) for v in rows], shape=out.shape)

    results = op.each(make)
    inexact = any(r is not None and r.mixed() for r in results) and not any(v.mixed() for v in op.values())
    return [None if r is None else r.with_(inexact=r.inexact or inexact) for r in results]


@transfer(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "grid_sampler_2d",
    "grid_sampler_3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "fractional_max_pool2d", "fractional_max_pool3d",
    "max_unpool2d", "max_unpool3d", "affine_grid_generator",
    "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward", "avg_pool2d_backward",
    "avg_pool3d_backward", "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "upsample_nearest1d_backward",
    "upsample_nearest2d_backward", "upsample_nearest3d_backward", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
    "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward", "_upsample_nearest_exact1d_backward",
    "_upsample_nearest_exact2d_backward", "_upsample_nearest_exact3d_backward", "grid_sampler_2d_backward",
    "grid_sampler_3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward",
)  # fmt: skip
def image(op: Op) -> Any:
    """[N, C, ...]: windows and interpolation along the spatial axes; rows and channels stay apart."""
    spatial = next((int(k) for k in "123" if f"{k}d" in op.packet), 0)
    apart = spatial and not op.packet.startswith(("grid_sampler", "max_unpool"))

    def make(out: Any) -> Samples:
        rank = len(out.shape)
        parts = []
        for value in op.values():
            if value.empty():
                continue
            if apart and len(value.shape) == rank and value.shape[:-spatial] == out.shape[:-spatial]:
                parts.append(reduced(value, range(rank - spatial, rank)))
            elif not apart and len(value.shape) == rank and value.shape[0] == out.shape[0]:
                parts.append(reduced(value, range(1, rank)))
            else:
                parts.append(spread(value, None, (1,) * rank))
        result = op.join(*parts, shape=out.shape)
        grown = result.mixed() and not any(v.mixed() for v in op.values())
        return result.with_(inexact=result.inexact or grown)

    return op.each(make)


@transfer("im2col", "col2im")
def folds(op: Op) -> Samples:
    """[N, C, H, W] to windows [N, C * k, L] and back; without N, every element depends on all others."""
    value: Samples = op.args[0]
    batched = len(value.shape) == (4 if op.packet == "im2col" else 3)
    rows = reduced(value, range(1, len(value.shape)) if batched else None, keepdim=False)
    view = (-1, *[1] * (len(op.out.shape) - 1)) if batched else [1] * len(op.out.shape)
    result = op.join(moved(rows, lambda t: t.reshape(view)))
    return result.with_(inexact=result.inexact or (result.mixed() and not value.mixed()))
