"""Steps of one op: pointwise, a reduction taken off or multiplied in, an op along an axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from steps import add, line
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "hardswish": F.hardswish,
    "abs": torch.abs,
    "softsign": F.softsign,
    "affine": lambda z: 0.5 * z + 1,
    "clamp": lambda z: z.clamp(-1, 1.5),
    "wheres": lambda z: torch.where(z > 0, z, 0.3 * z.square()),
    "masked": lambda z: z.masked_fill(z > 1, 0.5),
    "dropout": lambda z: F.dropout(z, 0.3),
    "noise": lambda z: z * (1 + torch.rand_like(z)),
    "nothing": lambda z: z.contiguous(),
    "cast": lambda z: z.float().double(),
    "half_detached": lambda z: z * z.detach().tanh(),
    "checkpointed": lambda z: checkpoint(torch.tanh, z, use_reentrant=False),
    "floored": lambda z: z + (z.detach() * 3).long() // 2,
}
_RARELY: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": F.mish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "selu": F.selu,
    "celu": F.celu,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda z: F.threshold(z, 0.1, 0.2),
    "logsigmoid": F.logsigmoid,
    "logit": lambda z: torch.logit(z.sigmoid()),
    "rrelu": lambda z: F.rrelu(z, training=True),
    "prelu": lambda z: F.prelu(z, z.new_full((1,), 0.3)),
    "erf": torch.erf,
    "heaviside": lambda z: z + torch.heaviside(z.detach(), z.new_tensor(0.5)),
    "lerped": lambda z: torch.lerp(z, z.tanh(), 0.3),
    "addcmul": lambda z: torch.addcmul(z, z.tanh(), z.detach(), value=0.5),
    "atan2": lambda z: torch.atan2(z, z.square() + 1),
    "bits": lambda z: z * (z > 0).logical_and(z < 1).logical_not(),
    "rotated_pairs": lambda z: torch.polar(torch.ones_like(z), z).real + torch.complex(z, z.tanh()).abs(),
    "nans": lambda z: torch.nan_to_num(z),
    "sgn": lambda z: z + torch.sign(z.detach()),
    "pow": lambda z: (z.square() + 1).pow(0.7),
    "frac": lambda z: torch.frac(z) + z.detach().floor(),
    "fake_quantized": lambda z: torch.fake_quantize_per_tensor_affine(z, 0.1, 0, -128, 127),
}

_REDUCED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda z, a: z.mean(a, keepdim=True),
    "sum": lambda z, a: z.sum(a, keepdim=True) / 4,
    "amax": lambda z, a: z.amax(a, keepdim=True),
    "max": lambda z, a: z.max(a, keepdim=True).values,
    "var": lambda z, a: z.var(a, keepdim=True, correction=0),
    "std": lambda z, a: (z * z + 1).std(a, keepdim=True) + 1,
    "norm": lambda z, a: z.norm(dim=a, keepdim=True),
    "lse": lambda z, a: z.logsumexp(a, keepdim=True),
    "detached": lambda z, a: z.detach().mean(a, keepdim=True),
    "median": lambda z, a: z.median(a, keepdim=True).values,
    "argmax": lambda z, a: z.argmax(a, keepdim=True).to(z.dtype),
    "any": lambda z, a: (z > 1).any(a, keepdim=True).to(z.dtype),
    "prod": lambda z, a: z.tanh().prod(a, keepdim=True),
    "squeezed": lambda z, a: z.mean(a).unsqueeze(a),
    "all_but": lambda z, a: z.mean([k for k in range(z.dim()) if k != a], keepdim=True),
    "var_mean": lambda z, a: torch.var_mean(z, a, keepdim=True)[1],
    "first": lambda z, a: z.narrow(a, 0, 1),
    "count": lambda z, a: (z > 0).sum(a, keepdim=True).to(z.dtype),
    "kth": lambda z, a: z.kthvalue(2, a, keepdim=True).values,
}
_REDUCED_RARELY: dict[str, Callable[[Tensor, int], Tensor]] = {
    "amin": lambda z, a: z.amin(a, keepdim=True),
    "min": lambda z, a: z.min(a, keepdim=True).values,
    "argmin": lambda z, a: z.argmin(a, keepdim=True).to(z.dtype),
    "aminmax": lambda z, a: torch.aminmax(z, dim=a, keepdim=True)[1],
    "all": lambda z, a: (z > -1).all(a, keepdim=True).to(z.dtype),
    "nanmedian": lambda z, a: z.nanmedian(a, keepdim=True).values,
    "mode": lambda z, a: (z * 2).round().mode(a, keepdim=True).values,
    "count_nonzero": lambda z, a: z.relu().count_nonzero(a).unsqueeze(a).to(z.dtype),
    "nansum": lambda z, a: z.nansum(a, keepdim=True) / 4,
    "std_mean": lambda z, a: torch.std_mean(z * z + 1, a, keepdim=True)[0],
    "old_norm": lambda z, a: torch.ops.aten.norm.ScalarOpt_dim(z, 2.0, [a], True),
    "one_norm": lambda z, a: z.norm(p=1, dim=a, keepdim=True),
    "mean_of_all": lambda z, a: z.mean(),
    "max_of_all": lambda z, a: z.max(),
    "pooled_max": lambda z, a: z.amax([k for k in range(z.dim()) if k != a], keepdim=True),
    "greatest": lambda z, a: torch.maximum(z.narrow(a, 0, 1), z.narrow(a, 1, 1)),
}

_TAPS = torch.linspace(1, 0.1, 48, dtype=torch.float64)
_ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda z, a: z.softmax(a),
    "log_softmax": lambda z, a: z.log_softmax(a),
    "cumsum": lambda z, a: z.cumsum(a) / 3,
    "cumprod": lambda z, a: z.tanh().cumprod(a),
    "logcumsumexp": lambda z, a: z.logcumsumexp(a),
    "cummax": lambda z, a: z.cummax(a).values,
    "cummin": lambda z, a: z.cummin(a).values,
    "sort": lambda z, a: z.sort(a).values,
    "flip": lambda z, a: z.flip(a),
    "roll": lambda z, a: z.roll(1, a),
    "normalize": lambda z, a: F.normalize(z, dim=a),
    "renorm": lambda z, a: z.renorm(2, a, 1.0),
    "topk": lambda z, a: z + z.topk(2, a).values.sum(a, keepdim=True),
    "fft": lambda z, a: torch.fft.fft(z, dim=a).real,
    "rfft": lambda z, a: torch.fft.irfft(torch.fft.rfft(z, dim=a) * 0.5, n=z.shape[a], dim=a),
    "filtered": lambda z, a: torch.fft.ifft(torch.fft.fft(z, dim=a) * line(_TAPS, z.shape[a], a, z.dim()), dim=a).real,
    "split": lambda z, a: torch.cat(z.split(2, a)[::-1], a),
    "unbind": lambda z, a: torch.stack(z.unbind(a)[::-1], a),
    "chunk": lambda z, a: torch.cat([c.tanh() for c in z.chunk(2, a)], a),
    "gated": lambda z, a: F.glu(torch.cat([z, z.flip(a)], a), a),
    "diff": lambda z, a: z - z.narrow(a, 0, 1),
    "shift": lambda z, a: torch.cat([z.narrow(a, 1, z.shape[a] - 1), z.narrow(a, 0, 1)], a),
    "double": lambda z, a: z.repeat_interleave(2, a).narrow(a, 1, z.shape[a]),
    "tile": lambda z, a: torch.cat([z, z], a).narrow(a, 1, z.shape[a]),
    "windows": lambda z, a: torch.cat([z, z.narrow(a, 0, 1)], a).unfold(a, 2, 1).mean(-1),
    "by_order": lambda z, a: z.take_along_dim(z.argsort(a), a),
    "by_max": lambda z, a: z + z.gather(a, z.argmax(a, keepdim=True)),
    "!per_count": lambda z, a: z / z.shape[a],
    "!per_tensor": lambda z, a: z / torch.tensor(z.shape[a]),
    "!per_ones": lambda z, a: z / z.new_ones(z.shape[a]).sum(),
    "!linspaced": lambda z, a: z * line(torch.linspace(0.5, 1.5, z.shape[a], dtype=z.dtype), z.shape[a], a, z.dim()),
    "!ranked": lambda z, a: z + 0.1 * line(torch.arange(z.shape[a]), z.shape[a], a, z.dim()),
}

add(_POINTWISE, lambda name: lambda z, a, w, y: _POINTWISE[name](z))
add(_RARELY, lambda name: lambda z, a, w, y: _RARELY[name](z), seldom=True)
for _table, _seldom in ((_REDUCED, False), (_REDUCED_RARELY, True)):
    add(_table, lambda name, t=_table: lambda z, a, w, y: z - 0.3 * t[name](z, a), prefix="less_", seldom=_seldom)
    add(_table, lambda name, t=_table: lambda z, a, w, y: z * t[name](z, a).sigmoid(), prefix="times_", seldom=_seldom)
add(_ALONG, lambda name: lambda z, a, w, y: _ALONG[name](z, a))
