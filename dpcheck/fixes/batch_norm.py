"""Batch norm to group norm (another function), or to the affine map that it is when frozen (the same function)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpcheck.errors import DpcheckError
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.mixing import mixed

PLAIN = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm})
CALLS = frozenset({F.batch_norm, torch.batch_norm})
# A group of fewer values than this tells little of its input: two values normalise to a sign.
ENOUGH = 16
LEAST = 3
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
# Path of a batch norm -> mean and variance of its input, [C] each.
Statistics = Mapping[str, tuple[Tensor, Tensor]]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def groups_for(channels: int, positions: int, to: str = "group") -> int | None:
    """How many groups a norm over one sample should have.

    Args:
        channels: C.
        positions: values per channel and sample: 1 for [N, C], H * W for [N, C, H, W].
        to: ``group`` and ``standardised``: the largest divisor of C up to 32 that leaves at least four channels (else
            two) and 16 values in a group, else one group; ``layer``: one group; ``instance``: one group a channel.

    Returns:
        The number, or ``None`` where a group would have fewer than three values.
    """
    groups = 1
    if to == "instance":
        groups = channels
    elif to in ("group", "standardised"):
        sizes = [(g, channels // g) for g in range(min(32, channels), 0, -1) if channels % g == 0]
        fitting = [(g, size) for g, size in sizes if size * positions >= ENOUGH and size >= 2]
        groups = next((g for g, size in fitting if size >= 4), fitting[0][0] if fitting else 1)
    return groups if channels // groups * positions >= LEAST else None


class FrozenBatchNorm(nn.Module):
    """Batch norm at fixed statistics: the affine map of every channel, whatever ``train()`` says.

    Keeps the keys, the trainable weights and the result of the batch norm that it replaces.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.eps = float(source.eps)  # type: ignore[arg-type]
        self.register_parameter("weight", source.weight)  # type: ignore[arg-type]
        self.register_parameter("bias", source.bias)  # type: ignore[arg-type]
        for name in _STATISTICS:
            self.register_buffer(name, getattr(source, name))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, eps={self.eps}"


class _AsGroupNorm(TorchFunctionMode):
    """Turns calls of batch norm into group norm, of as many groups as its channels allow."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in CALLS:
            return func(*args, **kwargs)
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        if func is torch.batch_norm:
            names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given.get("running_mean") is not None and not given.get("training", False):
            return func(*args, **kwargs)  # a frozen batch norm inside this module
        groups = math.gcd(self.groups, given["input"].shape[1])
        return F.group_norm(given["input"], groups, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


class _GroupNormInside:
    """Mixed into a fused variant: its own forward, with group norm where it calls batch norm."""

    dpcheck_groups: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _AsGroupNorm(self.dpcheck_groups):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class FrozenInside:
    """Mixed into a fused variant in eval mode: its statistics stay fixed; what it contains changes mode as always."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # type: ignore[misc]
        self.training = False
        return self


def to_group_norm(module: nn.Module, groups: int) -> nn.Module:
    """The group norm that takes the place of a batch norm, with the very same affine parameters.

    A fused variant or subclass keeps its class's own forward, and what it adds to the normalisation.
    """
    if type(module) not in PLAIN:
        drop_statistics(module)
        return calls_to_group_norm(module, groups)
    channels = channels_of(module)
    new = nn.GroupNorm(groups, channels, eps=module.eps, affine=False)  # type: ignore[arg-type]
    new.affine = bool(module.affine)
    new.register_parameter("weight", module.weight)  # type: ignore[arg-type]
    new.register_parameter("bias", module.bias)  # type: ignore[arg-type]
    vars(new)["num_features"] = channels
    return _like(new, module)


def calls_to_group_norm(module: nn.Module, groups: int) -> nn.Module:
    """The module itself, whose forward gets group norm where it calls batch norm; it uses no running statistics."""
    module.dpcheck_groups = groups  # type: ignore[assignment]
    return mixed(module, _GroupNormInside, "WithGroupNorm")


def to_frozen(module: nn.Module, statistics: tuple[Tensor, Tensor] | None = None) -> nn.Module:
    """The affine map that a batch norm is at its running statistics, or at the mean and variance given, [C] each."""
    if statistics is not None:
        held = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t.is_floating_point()]
        like = held[0] if held else statistics[0]
        for name, value in zip(_STATISTICS[:2], statistics, strict=True):
            module._buffers[name] = value.detach().to(like, copy=True)
        module.track_running_stats = True  # type: ignore[assignment]
    if type(module) in PLAIN:
        return _like(FrozenBatchNorm(module), module)
    module.training = False
    return mixed(module, FrozenInside, "Frozen")


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """The affine map that ``module`` computes in eval mode, as a new module that ``train()`` cannot switch on.

    Args:
        module: a batch norm with running statistics; untouched.

    Raises:
        DpcheckError: if it keeps no running statistics.
    """
    if getattr(module, "running_mean", None) is None:
        raise DpcheckError(
            f"{type(module).__name__} keeps no running statistics, so there is nothing to freeze it at",
            next="replace it by a norm over one sample, for example nn.GroupNorm",
        )
    return to_frozen(duplicate(module).model)


def describe(module: nn.Module) -> str:
    """A short name for a report."""
    return f"{type(module).__name__}({channels_of(module)})"


def channels_of(module: nn.Module) -> int:
    """The number of channels of a batch norm, or of a module with its running statistics."""
    found: Any = getattr(module, "num_features", None)
    return int(found) if found is not None else int(module.running_mean.numel())  # type: ignore[operator]


def drop_statistics(module: nn.Module) -> None:
    """No running statistics, in either mode."""
    for name in _STATISTICS:
        if name in module._buffers:
            module._buffers[name] = None
    module.track_running_stats = False  # type: ignore[assignment]


def _like(new: nn.Module, old: nn.Module) -> nn.Module:
    """Mode, hooks and attributes of the user's own."""
    new.training = old.training
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    template = vars(nn.BatchNorm2d(1)).keys()
    for name, value in vars(old).items():
        if name not in template and name not in vars(new) and name not in ("process_group", "cls_to_become"):
            setattr(new, name, value)
    new._modules.update(old._modules)
    return new
