"""Steps that are layers: linear maps, attention, normalisation, convolutions, recurrences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from steps import Weights, line, step
from torch import Tensor


@step
def scale(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z * line(w.vector, z.shape[a], a, z.dim())


@step
def soft_scale(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Weights that are normalised along the axis."""
    n = z.shape[a]
    return z * line(w.vector[:n].softmax(0), n, a, z.dim())


@step
def linear(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n = z.shape[a]
    return F.linear(z.transpose(a, -1), w.square[:n, :n], w.vector[:n]).transpose(a, -1)


@step
def buffered(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return (z - line(w.mean, z.shape[a], a, z.dim())) / line(w.variance, z.shape[a], a, z.dim())


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
