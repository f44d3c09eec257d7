"""Weight standardisation: the convolution before a group norm computes with standardised filters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dpcheck.capture import LossFn
from dpcheck.determinism import FixedChance
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.mixing import mixed

_EPS = 1e-5


class _Standardised:
    """Mixed into a convolution: each filter less its mean, over its deviation (Qiao et al. 2019, equation 5).

    The filters are standardised, not the data: a sample never meets another.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(weight, dim=tuple(range(1, weight.dim())), keepdim=True, correction=0)
        standard = (weight - mean) / (variance + _EPS).sqrt()
        return super()._conv_forward(input, standard, bias)  # type: ignore[misc, no-any-return]


def standardise(module: nn.Module) -> nn.Module:
    """The convolution itself, with the same weights and keys, that computes with standardised filters."""
    return module if isinstance(module, _Standardised) else mixed(module, _Standardised, "Standardised")


def convolutions_before(model: nn.Module, loss_fn: LossFn, batch: Any, norms: list[str]) -> dict[str, str]:
    """The path of the convolution whose output is the input of each norm; a norm without one is left out.

    Filters of one weight (depthwise 1x1) have no deviation, and their convolution is left out too.
    """
    probe = duplicate(model).model
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def making(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            made[id(output)] = path, output  # held, so that no other tensor gets its id

        return hook

    def reading(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if args and id(args[0]) in made:
                found.setdefault(path, made[id(args[0])][0])

        return hook

    for path, module in probe.named_modules():
        if isinstance(module, _ConvNd) and hasattr(module, "_conv_forward") and module.weight[0].numel() > 1:
            module.register_forward_hook(making(path))
    for path in norms:
        probe.get_submodule(path).register_forward_pre_hook(reading(path))
    with torch.no_grad(), FixedChance():
        loss_fn(probe, batch)
    return found
