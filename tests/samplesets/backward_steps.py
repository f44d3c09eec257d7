"""Steps with a backward of their own: on values, where samples may meet in the backward only, and on weights.

The gradient of a weight is a sum over samples by the time it gets there: what is linear keeps it one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from steps import Weights, add, step
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Back = Callable[[Tensor], Tensor]


class _Changed(torch.autograd.Function):
    """The identity, with a backward that is handed to it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, back: Back) -> Tensor:
        ctx.back = back
        return z.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.back(grad), None


def _changed(z: Tensor, back: Back) -> Tensor:
    return _Changed.apply(z, back)  # type: ignore[no-any-return, no-untyped-call]


_OF_VALUES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "centred": lambda g, a: g - 0.5 * g.mean(a, keepdim=True),
    "signed": lambda g, a: g.tanh(),
    "reversed": lambda g, a: -0.3 * g,
    "rolled": lambda g, a: g.roll(1, a),
    "flipped": lambda g, a: g.flip(a),
    "normed": lambda g, a: g / (g.norm(dim=a, keepdim=True) + 1),
    "peaked": lambda g, a: g * g.abs().amax(a, keepdim=True).sigmoid(),
    "running": lambda g, a: g.cumsum(a) / 3,
    "softened": lambda g, a: g * g.softmax(a),
    "!counted": lambda g, a: g / g.new_ones(g.shape[a]).sum(),
}
LINEAR: dict[str, Back] = {
    "neg": lambda g: -g,
    "scaled": lambda g: g / 3 * 2,
    "transposed": lambda g: g.t().reshape(g.shape),
    "running": lambda g: g.cumsum(0) / 3,
    "padded": lambda g: F.pad(g, (1, 0))[:, 1:] + F.pad(g, (1, 0))[:, :-1],
    "indexed": lambda g: g[torch.arange(g.shape[0]).flip(0)],
    "selected": lambda g: g.index_select(1, torch.arange(g.shape[1]) // 2),
    "gathered": lambda g: g.gather(0, torch.zeros_like(g, dtype=torch.long)),
    "spread": lambda g: g + g.mean(0, keepdim=True) - g.sum(1, keepdim=True) / 9,
    "multiplied": lambda g: torch.linspace(-1, 1, g.shape[0] ** 2, dtype=g.dtype).reshape(g.shape[0], -1) @ g,
    "triangle": lambda g: g.tril() - g.triu(1),
    "masked": lambda g: g.masked_fill(torch.eye(g.shape[0], dtype=torch.bool), 0.0),
    "chosen": lambda g: torch.where(torch.eye(g.shape[0], dtype=torch.bool), g, torch.zeros_like(g)),
    "doubled": lambda g: torch.cat([g, g * 2], 1)[:, : g.shape[1]] + torch.stack([g, g.flip(0)]).sum(0),
    "spectrum": lambda g: torch.fft.irfft(torch.fft.rfft(g) * 0.5, n=g.shape[1]),
    "smoothed": lambda g: F.avg_pool2d(g[None, None], 3, 1, 1)[0, 0],
    "convolved": lambda g: F.conv1d(g[None], torch.ones(g.shape[0], 1, 3, dtype=g.dtype), padding=1, groups=g.shape[0])[
        0
    ],
    "resized": lambda g: F.interpolate(g[None, None], scale_factor=2.0, mode="bilinear")[0, 0, ::2, ::2],
    "unfolded": lambda g: F.fold(F.unfold(g[None, None], 3, padding=1), g.shape, 3, padding=1)[0, 0] / 9,
    "added": lambda g: torch.zeros_like(g).index_add(0, torch.arange(g.shape[0]) // 2, g),
    "put": lambda g: torch.index_put(torch.zeros_like(g), (torch.arange(g.shape[0]).flip(0),), g, accumulate=True),
    "written": lambda g: _rows_halved(g),
    "windowed": lambda g: g.unfold(0, 2, 1).sum(-1).sum(0, keepdim=True).expand_as(g),
    "detour": lambda g: g.unsqueeze(0).expand(2, -1, -1).sum(0),
}
CURVED: dict[str, Back] = {
    "tanh": torch.tanh,
    "sign": lambda g: g * torch.sign(g.detach()),
    "sorted": lambda g: g.sort(0).values,
    "softmax": lambda g: g.softmax(1),
    "squared": lambda g: g * g,
    "powered": lambda g: g.pow(2),
    "multiplied": lambda g: g @ g,
    "shifted": lambda g: g + 1,
    "cleared": lambda g: g.masked_fill(torch.eye(g.shape[0], dtype=torch.bool), 0.5),
    "padded": lambda g: F.pad(g, (1, 0), value=0.5)[:, :-1] + g,
    "clipped": lambda g: g.clamp(-0.1, 0.1),
    "normed": lambda g: g / (1 + g.norm()),
    "peak": lambda g: g.amax(0, keepdim=True).expand_as(g),
    "gated": lambda g: torch.where(g > 0, g, torch.zeros_like(g)),
    "product": lambda g: g.cumprod(0),
    "rounded": lambda g: (g * 4).round(),
    "picked": lambda g: g.gather(0, g.argmax(0, keepdim=True)).expand_as(g),
    "biased": lambda g: F.conv1d(g[None], g.new_ones(g.shape[0], 1, 1), g.new_ones(g.shape[0]), groups=g.shape[0])[0],
    "reread": lambda g: g.contiguous().view(torch.int64).view(torch.float64) + g,
    "layered": lambda g: F.layer_norm(g, g.shape[1:]),
}


def _rows_halved(g: Tensor) -> Tensor:
    q = g.clone()
    q[1:].mul_(0.5)
    return q


def _on_weight(back: Back) -> Callable[[Tensor, int, Weights, Tensor], Tensor]:
    def apply(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
        n = z.shape[a]
        return F.linear(z.movedim(a, -1), _changed(w.square[:n, :n], back)).movedim(-1, a)

    return apply


def _on_value(run: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int, Weights, Tensor], Tensor]:
    return lambda z, a, w, y: _changed(z, lambda g: run(g, a))


add(_OF_VALUES, lambda name: _on_value(_OF_VALUES[name]), prefix="back_")
add(LINEAR, lambda name: _on_weight(LINEAR[name]), prefix="weight_linear_", seldom=True)
add(CURVED, lambda name: _on_weight(CURVED[name]), prefix="weight_curved_", seldom=True)


@step
def hooked(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A hook on a value takes the mean of its gradient away."""
    q = z * 1.0
    if q.requires_grad:
        q.register_hook(lambda g: g - g.mean(a, keepdim=True))  # type: ignore[no-untyped-call]
    return q.tanh()


@step
def centred_in_checkpoint(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    def block(q: Tensor) -> Tensor:
        return _changed(q.tanh(), lambda g: g - 0.5 * g.mean(a, keepdim=True))

    return checkpoint(block, z, use_reentrant=False)  # type: ignore[no-any-return]


@step
def mixed_then_dropped(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Samples may meet in values that are cut off again."""
    both = torch.cat([z, z.mean(a, keepdim=True).expand_as(z)], -1)
    return both[..., : z.shape[-1]]
