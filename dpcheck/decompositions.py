"""Rare composite ops rewritten, while tracing, into ops that have transfer rules and samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dpcheck.experts import grouped_mm

aten = torch.ops.aten


def trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand_a: list[int], expand_b: list[int], expand_c: list[int],
    sums: list[int], unroll: int = 1,
) -> Tensor:  # fmt: skip
    """``nn.Bilinear``'s op: the product of three tensors expanded to the same axes, summed over some of them."""
    for axis in expand_a:
        a = a.unsqueeze(axis)
    for axis in expand_b:
        b = b.unsqueeze(axis)
    for axis in expand_c:
        c = c.unsqueeze(axis)
    return (a * b * c).sum(sums) if sums else a * b * c


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """``g * v / |v|``, the norm over every axis but ``dim`` (Salimans and Kingma 2016, eq. 2)."""
    norms = v.square().sum(_others(v, dim), keepdim=True).sqrt()
    return v * (g / norms), norms


def weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Salimans and Kingma 2016, eq. 3; linear in ``grad``."""
    along = (grad * v).sum(_others(v, dim), keepdim=True)
    return grad * (g / norms) - v * (along * (g / norms**3)), along / norms


def mv(matrix: Tensor, vector: Tensor) -> Tensor:
    """A product with one column, which has a sampler."""
    return torch.mm(matrix, vector.unsqueeze(1)).squeeze(1)


class MaskedAssignment(TorchFunctionMode):
    """``x[mask] = value`` by ``where``, if one value goes to every place of the mask.

    The gradient of an assignment picks the places of the mask out, whose number depends on the data.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__:
            x, mask, value = args
            if isinstance(mask, Tensor) and isinstance(value, Tensor) and _one_for_all(x, mask, value):
                wide = mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim()))
                return x.copy_(torch.where(wide, value, x))
        return func(*args, **(kwargs or {}))


def _one_for_all(x: Tensor, mask: Tensor, value: Tensor) -> bool:
    rest = x.shape[mask.dim() :]
    fits = mask.dtype is torch.bool and 0 < mask.dim() <= x.dim() and mask.shape == x.shape[: mask.dim()]
    return fits and value.dim() <= len(rest) and value.dtype == x.dtype


def _others(t: Tensor, dim: int) -> list[int]:
    return [axis for axis in range(t.dim()) if axis != dim % t.dim()]


TABLE: dict[Any, Callable[..., Any]] = {
    aten.mv.default: mv,
    aten._grouped_mm.default: grouped_mm,
    aten._trilinear.default: trilinear,
    aten._weight_norm_interface.default: weight_norm,
    aten._weight_norm_interface_backward.default: weight_norm_backward,
}
