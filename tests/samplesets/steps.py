"""The steps of random programs: each maps a rank-2 or rank-3 tensor and one of its axes to a tensor of that shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MOST = 48


class Weights(nn.Module):
    """Weights of every kind, cut to the size that a step needs."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.randn(MOST, MOST) * 0.4)
        self.vector = nn.Parameter(torch.randn(MOST) * 0.5 + 1)
        self.kernel = nn.Parameter(torch.randn(MOST, MOST, 3) * 0.3)
        self.table = nn.Embedding(8, MOST)
        self.by_count = nn.Embedding(8, MOST, scale_grad_by_freq=True)
        self.register_buffer("mean", torch.linspace(-1, 1, MOST))
        self.register_buffer("variance", torch.linspace(0.5, 2, MOST))
        self.register_buffer("picks", torch.arange(MOST).flip(0) % 5)


Step = Callable[[Tensor, int, Weights, Tensor], Tensor]
STEPS: dict[str, Step] = {}
PLANAR: set[str] = set()


def step(run: Step) -> Step:
    STEPS[run.__name__.rstrip("_")] = run
    return run


def planar(run: Step) -> Step:
    """A step for matrices only."""
    PLANAR.add(run.__name__.rstrip("_"))
    return step(run)


def _line(size: int, axis: int, rank: int, of: Tensor) -> Tensor:
    """A vector lying along ``axis``."""
    return of[:size].reshape([size if k == axis else 1 for k in range(rank)])


_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus,
    "leaky": F.leaky_relu, "elu": F.elu, "hardswish": F.hardswish, "abs": torch.abs, "affine": lambda z: 0.5 * z + 1,
    "clamp": lambda z: z.clamp(-1, 1.5), "wheres": lambda z: torch.where(z > 0, z, 0.3 * z.square()),
    "masked": lambda z: z.masked_fill(z > 1, 0.5), "softsign": F.softsign, "dropout": lambda z: F.dropout(z, 0.3),
    "noise": lambda z: z * (1 + torch.rand_like(z)), "nothing": lambda z: z.contiguous(), "cast": lambda z: z.float().double(),
    "half_detached": lambda z: z * z.detach().tanh(), "checkpointed": lambda z: checkpoint(torch.tanh, z, use_reentrant=False),
}  # fmt: skip

_REDUCED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda z, a: z.mean(a, keepdim=True), "sum": lambda z, a: z.sum(a, keepdim=True) / 4,
    "amax": lambda z, a: z.amax(a, keepdim=True), "max": lambda z, a: z.max(a, keepdim=True).values,
    "var": lambda z, a: z.var(a, keepdim=True, correction=0), "std": lambda z, a: (z * z + 1).std(a, keepdim=True) + 1,
    "norm": lambda z, a: z.norm(dim=a, keepdim=True), "lse": lambda z, a: z.logsumexp(a, keepdim=True),
    "detached": lambda z, a: z.detach().mean(a, keepdim=True), "median": lambda z, a: z.median(a, keepdim=True).values,
    "argmax": lambda z, a: z.argmax(a, keepdim=True).to(z.dtype), "any": lambda z, a: (z > 1).any(a, keepdim=True).to(z.dtype),
    "prod": lambda z, a: z.tanh().prod(a, keepdim=True), "squeezed": lambda z, a: z.mean(a).unsqueeze(a),
    "all_but": lambda z, a: z.mean([k for k in range(z.dim()) if k != a], keepdim=True),
    "var_mean": lambda z, a: torch.var_mean(z, a, keepdim=True)[1], "first": lambda z, a: z.narrow(a, 0, 1),
    "count": lambda z, a: (z > 0).sum(a, keepdim=True).to(z.dtype), "kth": lambda z, a: z.kthvalue(2, a, keepdim=True).values,
}  # fmt: skip

_ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda z, a: z.softmax(a), "log_softmax": lambda z, a: z.log_softmax(a), "cumsum": lambda z, a: z.cumsum(a) / 3,
    "cumprod": lambda z, a: z.tanh().cumprod(a), "logcumsumexp": lambda z, a: z.logcumsumexp(a),
    "cummax": lambda z, a: z.cummax(a).values, "sort": lambda z, a: z.sort(a).values, "flip": lambda z, a: z.flip(a),
    "roll": lambda z, a: z.roll(1, a), "normalize": lambda z, a: F.normalize(z, dim=a), "renorm": lambda z, a: z.renorm(2, a, 1.0),
    "topk": lambda z, a: z + z.topk(2, a).values.sum(a, keepdim=True), "fft": lambda z, a: torch.fft.fft(z, dim=a).real,
    "rfft": lambda z, a: torch.fft.irfft(torch.fft.rfft(z, dim=a) * 0.5, n=z.shape[a], dim=a),
    "split": lambda z, a: torch.cat(z.split(2, a)[::-1], a), "unbind": lambda z, a: torch.stack(z.unbind(a)[::-1], a),
    "chunk": lambda z, a: torch.cat([c.tanh() for c in z.chunk(2, a)], a), "diff": lambda z, a: z - z.narrow(a, 0, 1),
    "shift": lambda z, a: torch.cat([z.narrow(a, 1, z.shape[a] - 1), z.narrow(a, 0, 1)], a),
    "double": lambda z, a: z.repeat_interleave(2, a).narrow(a, 1, z.shape[a]),
    "tile": lambda z, a: torch.cat([z, z], a).narrow(a, 1, z.shape[a]),
    "windows": lambda z, a: torch.cat([z, z.narrow(a, 0, 1)], a).unfold(a, 2, 1).mean(-1),
    "by_order": lambda z, a: z.take_along_dim(z.argsort(a), a), "by_max": lambda z, a: z + z.gather(a, z.argmax(a, keepdim=True)),
    "!per_count": lambda z, a: z / z.shape[a], "!per_tensor": lambda z, a: z / torch.tensor(z.shape[a]),
    "!per_ones": lambda z, a: z / z.new_ones(z.shape[a]).sum(),
    "!linspaced": lambda z, a: z * torch.linspace(0.5, 1.5, z.shape[a], dtype=z.dtype).reshape(
        [-1 if k == a else 1 for k in range(z.dim())]),
    "!ranked": lambda z, a: z + 0.1 * torch.arange(z.shape[a]).reshape([-1 if k == a else 1 for k in range(z.dim())]),
}  # fmt: skip


def _add(names: dict[str, Any], make: Callable[[Any], Step], prefix: str = "") -> None:
    for name, run in names.items():
        STEPS[prefix + name] = make(run)


_add(_POINTWISE, lambda run: lambda z, a, w, y: run(z))
_add(_REDUCED, lambda run: lambda z, a, w, y: z - 0.3 * run(z, a), "less_")
_add(_REDUCED, lambda run: lambda z, a, w, y: z * torch.sigmoid(run(z, a)), "times_")
_add(_ALONG, lambda run: lambda z, a, w, y: run(z, a))


@step
def scale(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z * _line(z.shape[a], a, z.dim(), w.vector)


@step
def linear(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n = z.shape[a]
    return F.linear(z.transpose(a, -1), w.square[:n, :n], w.vector[:n]).transpose(a, -1)


@step
def buffered(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return (z - _line(z.shape[a], a, z.dim(), w.mean)) / _line(z.shape[a], a, z.dim(), w.variance)


@step
def attend(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    return ((q @ q.transpose(-1, -2) / 3).softmax(-1) @ q).transpose(a, -2)


@step
def sdpa(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    return F.scaled_dot_product_attention(q, q.flip(-2), q, is_causal=True).transpose(a, -2)


@step
def heads(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)[..., None].transpose(-1, -3) if z.dim() == 3 else z[None, None]
    return z + F.scaled_dot_product_attention(q, q, q, dropout_p=0.1).mean()


@step
def einsum(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n = z.shape[a]
    q = z.movedim(a, 0)
    return torch.einsum("ij,j...->i...", w.square[:n, :n], q).movedim(0, a)


@planar
def addmm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n, d = z.shape
    return torch.addmm(z, z, w.square[:d, :d], beta=0.5) if a else torch.addmm(z, w.square[:n, :n], z)


@planar
def gram(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return (z @ z.t() @ z if a == 0 else z @ (z.t() @ z)) / 9


@planar
def distances(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z if a == 0 else z.t()
    out = torch.cdist(q, w.square[: q.shape[0], : q.shape[1]]).square() @ q.detach()
    return out if a == 0 else out.t()


@planar
def vectors(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z + torch.outer(torch.mv(z, w.vector[: z.shape[1]]), w.vector[: z.shape[1]])


@step
def layer_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -1)
    n = q.shape[-1]
    return F.layer_norm(q, (n,), w.vector[:n], w.mean[:n]).transpose(a, -1)


@step
def rms_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -1)
    return F.rms_norm(q, (q.shape[-1],), w.vector[: q.shape[-1]]).transpose(a, -1)


@step
def wide_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[1:]) if a else F.layer_norm(z, z.shape[-1:])


@step
def group_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, 1)
    n = q.shape[1]
    return F.group_norm(q, n if n % 2 else n // 2, w.vector[:n], w.mean[:n]).transpose(a, 1)


@step
def batch_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, 1)
    n = q.shape[1]
    return F.batch_norm(q, None, None, w.vector[:n], w.mean[:n], training=True).transpose(a, 1)


@step
def frozen_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, 1)
    n = q.shape[1]
    return F.batch_norm(q, w.mean[:n], w.variance[:n], w.vector[:n], None, training=False).transpose(a, 1)


@step
def instance_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return F.instance_norm(z.transpose(a, 1)).transpose(a, 1) if z.dim() == 3 else z


@step
def conv(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    n = q.shape[-2]
    return F.conv1d(q, w.kernel[:n, :n], w.vector[:n], padding=1).transpose(a, -2)


@step
def deconv(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    n = q.shape[-2]
    return F.conv_transpose1d(q, w.kernel[:n, :n], padding=1).transpose(a, -2)


@step
def depthwise(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    n = q.shape[-2]
    return F.conv1d(q, w.kernel[:n, :1], padding=1, groups=n).transpose(a, -2)


@step
def pools(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -1)
    return (F.avg_pool1d(q, 3, 1, 1) + F.max_pool1d(q, 3, 1, 1)).transpose(a, -1)


@step
def resized(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -1) if z.dim() == 3 else z[None]
    up = F.interpolate(q, scale_factor=2.0, mode="linear")
    out = F.adaptive_avg_pool1d(up, q.shape[-1])
    return out.transpose(a, -1) if z.dim() == 3 else out[0]


@step
def padded(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -1)
    return (
        F.pad(q, (1, 1), value=0.5)[..., 2:].add(F.pad(q, (1, 0))[..., 1:]).narrow(-1, 0, q.shape[-1]).transpose(a, -1)
    )


@step
def inverse(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    eye = torch.eye(q.shape[-2], dtype=z.dtype)
    return torch.linalg.solve(eye + q @ q.transpose(-1, -2), q).transpose(a, -2)


for _i, _name in itertools.product((0, 1), ("tril", "triu")):
    STEPS[f"{_name}{_i}"] = lambda z, a, w, y, n=_name, i=_i: getattr(z.transpose(a, -1), n)(i).transpose(a, -1)

import writing_steps  # noqa: E402, F401  (registers the steps that index and write)
