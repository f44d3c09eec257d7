"""Steps on images [N, C, ..]: windows, pooling, resizing, padding, sampling at places that the data gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from steps import STEPS, Run, Weights, add
from torch import Tensor

Image = Callable[[Tensor], Tensor]


def _up(scale: float, **options: object) -> Image:
    return lambda q: F.interpolate(q, scale_factor=scale, **options)  # type: ignore[arg-type]


def _sampled(q: Tensor) -> Tensor:
    """Samples at places shifted by the mean of the image."""
    mean = q.mean(tuple(range(1, q.dim()))).tanh() * 0.2
    d = q.dim() - 2
    theta = torch.eye(d, d + 1, dtype=q.dtype) + mean.reshape(-1, 1, 1)
    grid = F.affine_grid(theta, list(q.shape), align_corners=False)
    return F.grid_sample(q, grid, align_corners=False)


def _unpooled(q: Tensor) -> Tensor:
    pool, back = (F.max_pool2d, F.max_unpool2d) if q.dim() == 4 else (F.max_pool3d, F.max_unpool3d)
    size = 2 if q.dim() == 4 else (1, 2, 2)
    small, where = pool(q, size, return_indices=True)
    return back(small, where, size, output_size=q.shape[2:])


def _folded(q: Tensor) -> Tensor:
    return F.fold(F.unfold(q, 3, padding=1).tanh(), q.shape[2:], 3, padding=1) / 9


_ON_2D: dict[str, Image] = {
    "avg_pool": lambda q: F.avg_pool2d(q, 3, 1, 1),
    "max_pool": lambda q: F.max_pool2d(q, 3, 1, 1),
    "adaptive": lambda q: q + F.adaptive_avg_pool2d(q, 1),
    "adaptive_two": lambda q: F.adaptive_avg_pool2d(q, 2),
    "nearest": _up(2.0),
    "bilinear": _up(2.0, mode="bilinear"),
    "bicubic": _up(1.5, mode="bicubic"),
    "unfolded": lambda q: F.unfold(q, 3, padding=1).unflatten(1, (q.shape[1], 9)).mean(2).reshape(q.shape),
    "folded": _folded,
    "shuffled": lambda q: F.pixel_shuffle(q.repeat(1, 4, 1, 1), 2),
    "reflect": lambda q: F.pad(q, (1, 1, 1, 1), mode="reflect"),
    "circular": lambda q: F.pad(q, (1, 0, 1, 0), mode="circular"),
    "local_response": lambda q: F.local_response_norm(q, 2),
    "sampled": _sampled,
}
_ON_2D_RARELY: dict[str, Image] = {
    "adaptive_max": lambda q: F.adaptive_max_pool2d(q, 2),
    "bilinear_aa": _up(0.7, mode="bilinear", antialias=True),
    "bicubic_aa": _up(0.7, mode="bicubic", antialias=True),
    "exact": _up(1.6, mode="nearest-exact"),
    "replicate": lambda q: F.pad(q, (1, 1, 1, 1), mode="replicate"),
    "unshuffled": lambda q: F.pixel_unshuffle(q.repeat(1, 1, 2, 2), 2).mean(1, keepdim=True).expand_as(q),
    "channels": lambda q: F.channel_shuffle(torch.cat([q, q.tanh()], 1), 2),
    "fractional": lambda q: F.fractional_max_pool2d(q, 2, output_size=2),
    "unpooled": _unpooled,
}
_ON_3D_RARELY: dict[str, Image] = {
    "avg_pool3": lambda q: F.avg_pool3d(q, (1, 3, 3), 1, (0, 1, 1)),
    "max_pool3": lambda q: F.max_pool3d(q, (1, 3, 3), 1, (0, 1, 1)),
    "adaptive3": lambda q: F.adaptive_avg_pool3d(q, 2),
    "adaptive_max3": lambda q: F.adaptive_max_pool3d(q, 2),
    "nearest3": _up(2.0),
    "trilinear": _up(2.0, mode="trilinear"),
    "exact3": _up(2.0, mode="nearest-exact"),
    "reflect3": lambda q: F.pad(q, (1, 1, 1, 1, 1, 0), mode="reflect"),
    "replicate3": lambda q: F.pad(q, (1, 1, 1, 1, 1, 1), mode="replicate"),
    "sampled3": _sampled,
    "fractional3": lambda q: F.fractional_max_pool3d(q, (1, 2, 2), output_size=(1, 1, 1)),
    "unpooled3": _unpooled,
}
_ON_1D_RARELY: dict[str, Image] = {
    "nearest1": _up(2.0),
    "linear1": _up(2.0, mode="linear"),
    "exact1": _up(2.0, mode="nearest-exact"),
    "reflect1": lambda q: F.pad(q, (1, 1), mode="reflect"),
    "replicate1": lambda q: F.pad(q, (2, 1), mode="replicate"),
    "adaptive1": lambda q: F.adaptive_max_pool1d(q, 2),
    "power1": lambda q: F.lp_pool1d(q.abs() + 0.1, 2, 2),
}


def _fitted(out: Tensor, like: Tensor) -> Tensor:
    """Cut, or filled with zeros, to the shape of another tensor."""
    short = [max(n - m, 0) for n, m in zip(like.shape, out.shape, strict=True)]
    out = F.pad(out, [k for n in reversed(short) for k in (0, n)])
    for axis, n in enumerate(like.shape):
        out = out.narrow(axis, 0, n)
    return out


def _on(run: Image, spatial: int) -> Run:
    """The axis and the last other one are spatial; what is left is the rows, or for an odd axis the channels."""

    def apply(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
        q = z.movedim(a, -1)
        rows = q if q.dim() == 3 else q[None]
        if spatial == 1:
            image = rows if a % 2 else rows.transpose(0, 1)
            out = _fitted(run(image), image)
            out = out if a % 2 else out.transpose(0, 1)
        else:
            image = rows[None] if a % 2 else rows[:, None]
            image = image if spatial == 2 else torch.stack([image, image.tanh()], 2)
            out = _fitted(run(image), image)
            out = out if spatial == 2 else out.mean(2)
            out = out[0] if a % 2 else out[:, 0]
        return (out if q.dim() == 3 else out[0]).movedim(-1, a)

    return apply


add(_ON_2D, lambda name: _on(_ON_2D[name], 2), prefix="image_")
add(_ON_2D_RARELY, lambda name: _on(_ON_2D_RARELY[name], 2), prefix="image_", seldom=True)
add(_ON_3D_RARELY, lambda name: _on(_ON_3D_RARELY[name], 3), prefix="image_", seldom=True)
add(_ON_1D_RARELY, lambda name: _on(_ON_1D_RARELY[name], 1), prefix="image_", seldom=True)


def _convolved(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    def run(q: Tensor) -> Tensor:
        c = q.shape[1]
        kernel = w.kernel[:c, :c].unsqueeze(-2)
        return F.conv2d(q, kernel, w.vector[:c], padding=(0, 1), stride=(1, 2)).repeat_interleave(2, -1)

    return _on(run, 2)(z, a, w, y)


def _transposed(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    def run(q: Tensor) -> Tensor:
        c = q.shape[1]
        return F.conv_transpose2d(q, w.kernel[:c, :1].unsqueeze(-2), stride=2, groups=c)

    return _on(run, 2)(z, a, w, y)


def _volumetric(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    def run(q: Tensor) -> Tensor:
        c = q.shape[1]
        return F.conv3d(q, w.kernel[:c, :c, None, None], padding=(0, 0, 1), dilation=(1, 1, 1))

    return _on(run, 3)(z, a, w, y)


def _grouped(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    def run(q: Tensor) -> Tensor:
        c = q.shape[1]
        return F.group_norm(q, 1, w.vector[:c], w.mean[:c])

    return _on(run, 2)(z, a, w, y)


STEPS.update(conv2d=_convolved, deconv2d=_transposed, conv3d=_volumetric, image_group_norm=_grouped)
