"""Which remedy a finding has, by its rule and the layer that it points at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dpcheck.diagnostic import Applicability
from dpcheck.fixes import batch_norm


@dataclass(frozen=True)
class Remedy:
    """A change of one module: ``apply`` returns what takes its place (it may be the module itself, changed)."""

    what: str
    applicability: Applicability
    apply: Callable[[nn.Module], nn.Module]


def remedy(code: str, module: nn.Module) -> Remedy | None:
    """The remedy for a finding of rule ``code`` at ``module``; ``None`` if there is none."""
    if code == "DP101":
        groups = batch_norm.groups_for(int(batch_norm.channels_of(module)), isinstance(module, nn.BatchNorm1d))
        what = f"{batch_norm.describe(module)} -> group norm with {groups} groups; running statistics are dropped"
        return Remedy(f"{what}. The function changes", "unsafe", batch_norm.to_group_norm)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if code == "DP104":
            return Remedy("scale_grad_by_freq=True -> False; gradients lose that scale", "safe", _unscaled)
        if code == "DP501":
            return Remedy("sparse=True -> False; gradients are dense", "safe", _dense)
        if code == "DP302":
            return Remedy("max_norm -> None, rows scaled once. The function changes", "unsafe", _unbounded)
    if code == "DP301" and isinstance(module, nn.modules.instancenorm._InstanceNorm):
        what = "track_running_stats=True -> False; in eval mode it will use the sample's own statistics"
        return Remedy(f"{what}. The function changes", "unsafe", _untracked)
    return None


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """A batch norm in eval mode with running statistics, which ``.train()`` would make mix samples."""
    known = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, batch_norm.FrozenInside)
    return known and not module.training and module.running_mean is not None


def _unscaled(module: nn.Module) -> nn.Module:
    module.scale_grad_by_freq = False  # type: ignore[assignment]
    return module


def _dense(module: nn.Module) -> nn.Module:
    module.sparse = False  # type: ignore[assignment]
    return module


def _unbounded(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    with torch.no_grad():
        norms = torch.linalg.vector_norm(module.weight, module.norm_type, dim=1, keepdim=True)
        module.weight.mul_((module.max_norm / norms.clamp_min(1e-12)).clamp(max=1.0))
    module.max_norm = None
    return module


def _untracked(module: nn.Module) -> nn.Module:
    batch_norm.drop_statistics(module)
    return module
