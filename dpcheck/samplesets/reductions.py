"""Transfer rules of ops that combine elements along axes: reductions, scans, sorts, softmax, transforms."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dpcheck.samplesets.lattice import Samples, moved, reduced, spread
from dpcheck.samplesets.op import Op, axes_of, transfer

_LINEAR = frozenset({"sum", "mean"})


@transfer(
    "sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "aminmax", "any", "all", "prod", "logsumexp",
    "linalg_vector_norm", "norm", "max", "min", "argmax", "argmin", "median", "nanmedian", "mode", "kthvalue",
    "count_nonzero", "nansum",
)  # fmt: skip
def reduce(op: Op) -> Any:
    value: Samples = op.args[0]
    if op.packet in ("max", "min") and len(op.args) > 1 and isinstance(op.args[1], Samples):
        return op.join(*op.args[:2])
    axes = _axes(op, len(value.shape))

    def make(out: Any) -> Samples:
        keepdim = len(out.shape) == len(value.shape)
        small = reduced(value, axes, keepdim=keepdim)
        result = op.join(small, shape=out.shape)
        if op.packet in _LINEAR and op.backward and result.mixed() and not value.mixed():
            return op.summed(out.shape, value)
        return result

    return op.each(make)


def _axes(op: Op, rank: int) -> list[int] | None:
    position = {"linalg_vector_norm": 2, "norm": 2, "kthvalue": 2, "aminmax": 1}.get(op.packet, 1)
    if "unbiased" in str(op.target) or op.name.endswith((".dim_IntList", ".correction")):
        position = 1
    dims = op.arg(position, "dim")
    if isinstance(dims, bool) or (op.name.endswith(".default") and op.packet in ("sum", "mean", "any", "all", "prod")):
        return None
    if isinstance(dims, float):
        return None
    return axes_of(dims, rank)


@transfer(
    "_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp",
    "cummax", "cummin", "sort", "topk", "renorm",
)  # fmt: skip
def along(op: Op) -> Any:
    """Each element depends on its whole line along the axis."""
    value: Samples = op.args[0]
    position = {"topk": 2, "renorm": 2}.get(op.packet, 1)
    dim = op.arg(position, "dim", -1)
    if isinstance(dim, bool):  # sort.stable(x, *, stable, dim)
        dim = op.kwargs.get("dim", -1)
    rank = max(len(value.shape), 1)
    # renorm scales the slices of `dim`: each depends on everything else in its slice.
    axes = [a for a in range(rank) if a != dim % rank] if op.packet == "renorm" else [dim % rank]
    small = reduced(value, axes if value.shape else None)
    # Whole numbers are mostly sorted to bring rows in an order, which may be undone behind: that is not followed.
    doubtful = op.packet == "sort" and not op.out[0].is_floating_point() and small.mixed() and not value.mixed()
    return op.each(lambda out: op.join(small.with_(inexact=small.inexact or doubtful), shape=out.shape))


@transfer("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(op: Op) -> Samples:
    grad, output, dim = op.args[:3]
    return spread(op.join(grad, output), [dim])


def _half(t: torch.Tensor, dim: int, which: int) -> torch.Tensor:
    return t.chunk(2, dim)[which]


@transfer("glu", "glu_backward")
def gated(op: Op) -> Samples:
    """One half along the axis gates the other."""
    value, dim = op.args[-2:] if op.packet == "glu_backward" else (op.args[0], op.arg(1, "dim", -1))
    halves = [moved(value, partial(_half, dim=dim, which=which)) for which in (0, 1)]
    if op.packet == "glu":
        return op.join(*halves)
    shape = halves[0].shape
    half = op.join(op.args[0], *halves, shape=shape)
    return moved(half, lambda t: torch.cat([t, t], dim))


@transfer("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(op: Op) -> Samples:
    small = reduced(op.args[0], op.args[1])
    return op.join(small)


@transfer(
    "linalg_inv_ex", "linalg_cholesky_ex", "linalg_qr", "_linalg_svd", "_linalg_eigh", "linalg_lu",
    "linalg_lu_factor_ex", "_linalg_det", "_linalg_slogdet", "linalg_householder_product",
    "linalg_matrix_exp", "_linalg_solve_ex",
    "linalg_solve_triangular", "cholesky_solve", "linalg_pinv", "linalg_eig", "trace",
    "linalg_lu_solve", "lu_unpack", "cholesky_inverse",
)  # fmt: skip
def matrices(op: Op) -> Any:
    """Every element of a result depends on the whole matrix; leading axes stay apart."""

    def make(out: Any) -> Samples:
        lead = max(max(len(v.shape) for v in op.values()) - 2, 0)
        parts = []
        for v in op.values():
            if len(v.shape) < 2:
                parts.append(reduced(v, None, keepdim=False))
                continue
            # Pivots are one vector for each matrix.
            vector = op.packet in ("linalg_lu_solve", "lu_unpack") and v is op.args[1]
            small = reduced(v, [-1] if vector else [-2, -1], keepdim=False)
            parts.append(moved(small, lambda t: t.reshape(*t.shape, *[1] * (len(out.shape) - lead))))
        return op.join(*parts, shape=out.shape)

    return op.each(make)


@transfer("native_dropout", "bernoulli", "multinomial", "normal", "uniform", "exponential", "cauchy",
          "log_normal", "geometric", "random", "poisson", "binomial", "_standard_gamma", "_sample_dirichlet",
          "native_dropout_backward", "rrelu_with_noise_functional", "normal_functional")  # fmt: skip
def chance(op: Op) -> Any:
    """Random numbers are no samples; a probability, a mask or a scaled value still is."""
    if op.packet == "multinomial":
        return op.join(spread(op.args[0], [-1], op.out.shape))
    if op.packet in ("uniform", "random", "exponential", "cauchy", "log_normal", "geometric", "normal_functional"):
        return op.none()
    if op.packet == "_sample_dirichlet":
        return spread(op.args[0], [-1])
    return op.each(lambda out: op.join(*[_fitted(v, out) for v in op.values()], shape=out.shape))


def _fitted(value: Samples, out: torch.Tensor) -> Samples:
    try:
        fits = torch.broadcast_shapes(value.shape, out.shape) == out.shape
    except RuntimeError:
        fits = False
    return value if fits else spread(value, None, ())


@transfer("_cdist_forward", "_euclidean_dist", "_pdist_forward")
def distance(op: Op) -> Samples:
    if len(op.args) < 2 or not isinstance(op.args[1], Samples):
        return op.join(spread(op.args[0], None, (1,) * len(op.out.shape)))
    left = moved(reduced(op.args[0], [-1]), lambda t: t)
    right = moved(reduced(op.args[1], [-1]), lambda t: t.transpose(-1, -2))
    return op.join(left, right)


@transfer("_cdist_backward")
def distance_backward(op: Op) -> Samples:
    """The gradient of the rows of the first argument: a sum over those of the second."""
    grad, first, second, _, distances = op.args
    across = moved(reduced(second, [-1]), lambda t: t.transpose(-1, -2))
    slots = op.join(grad, reduced(first, [-1]), across, distances, shape=grad.shape)
    rows = reduced(slots, [-1])
    if op.backward and rows.mixed() and not slots.mixed():
        return op.summed(op.out.shape, slots)
    return op.join(rows)


@transfer("bucketize", "searchsorted")
def sorted_search(op: Op) -> Samples:
    """Every value is compared with all boundaries, or with those of its own row."""
    bounds, values = op.args[:2] if op.packet == "searchsorted" else op.args[1::-1]
    others = op.kwargs.get("sorter")
    return op.join(reduced(bounds, [-1]), values, None if others is None else reduced(others, [-1]))
