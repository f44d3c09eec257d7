"""Batch norm to group norm (another function), or to the affine map that it is when frozen (the same function)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PLAIN: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: 2}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def groups_for(channels: int, flat: bool) -> int:
    """How many groups: the largest divisor up to 32 that leaves enough channels in a group.

    Args:
        flat: whether inputs may be [N, C], so that a group holds nothing but its channels: then at least 16 of them,
            since a normalised group of two values is nothing but a sign.
    """
    least = 16 if flat else 4
    for wanted in (least, 2):
        fitting = [g for g in range(1, min(32, channels) + 1) if channels % g == 0 and channels // g >= wanted]
        if fitting and (wanted == least or not flat):
            return fitting[-1]
    return 1


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
        self.num_features, self.eps = int(channels_of(source)), float(source.eps)  # type: ignore[arg-type]
        self.register_parameter("weight", source.weight)  # type: ignore[arg-type]
        self.register_parameter("bias", source.bias)  # type: ignore[arg-type]
        for name in _STATISTICS:
            self.register_buffer(name, getattr(source, name))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class _AsGroupNorm(TorchFunctionMode):
    """Turns calls of batch norm into group norm."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.batch_norm, torch.batch_norm):
            return func(*args, **kwargs)
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        if func is torch.batch_norm:
            names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return F.group_norm(given["input"], self.groups, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


class _GroupNormInside:
    """Mixed into a fused variant: its own forward, with group norm where it calls batch norm."""

    dpcheck_groups: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _AsGroupNorm(self.dpcheck_groups):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class FrozenInside:
    """Mixed into a fused variant in eval mode: it stays there."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


def to_group_norm(module: nn.Module) -> nn.Module:
    """The group norm that takes the place of a batch norm, with the very same affine parameters.

    A fused variant or subclass keeps its class's own forward, and what it adds to the normalisation.
    """
    channels = int(channels_of(module))
    groups = groups_for(channels, isinstance(module, nn.BatchNorm1d))
    if type(module) not in _PLAIN or hasattr(module, "parametrizations"):
        drop_statistics(module)
        module.dpcheck_groups = groups  # type: ignore[assignment]
        kind = type(module)
        name = f"{kind.__name__}WithGroupNorm"
        module.__class__ = type(name, (_GroupNormInside, kind), {"__module__": kind.__module__})
        return module
    weight, bias = module.weight, module.bias
    new = nn.GroupNorm(groups, channels, eps=module.eps, affine=False)  # type: ignore[arg-type]
    new.affine = bool(module.affine)
    new.register_parameter("weight", weight)  # type: ignore[arg-type]
    new.register_parameter("bias", bias)  # type: ignore[arg-type]
    return _like(new, module)


def to_frozen(module: nn.Module) -> nn.Module:
    """The affine map that a batch norm in eval mode is."""
    if type(module) not in _PLAIN or hasattr(module, "parametrizations"):
        kind = type(module)
        module.__class__ = type(f"{kind.__name__}Frozen", (FrozenInside, kind), {"__module__": kind.__module__})
        return module
    return _like(FrozenBatchNorm(module), module)


def values_per_group(module: nn.Module, x: Tensor) -> int | None:
    """Over how many values a group norm that was put in takes its statistics; ``None`` for other layers."""
    groups = getattr(module, "num_groups", getattr(module, "dpcheck_groups", None))
    return None if groups is None else x[0].numel() // int(groups)


def describe(module: nn.Module) -> str:
    """A short name for a report."""
    if isinstance(module, nn.GroupNorm):
        return f"GroupNorm({module.num_groups}, {module.num_channels})"
    if isinstance(module, _GroupNormInside):
        return f"{type(module).__name__} ({module.dpcheck_groups} groups)"
    return f"{type(module).__name__}({channels_of(module)})"


def channels_of(module: nn.Module) -> Any:
    found = getattr(module, "num_features", None)
    return found if found is not None else module.running_mean.numel()  # type: ignore[operator]


def drop_statistics(module: nn.Module) -> None:
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
    return new
