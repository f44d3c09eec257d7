"""Which remedy a finding has, by its rule and the layer that it points at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dpcheck.capture import first_line
from dpcheck.diagnostic import Applicability, BatchNormTo, Diagnostic, Location
from dpcheck.errors import DpcheckError
from dpcheck.fixes import batch_norm, in_forward
from dpcheck.fixes.advice import advice
from dpcheck.fixes.buffers import keep_buffers
from dpcheck.fixes.trial import Seen

CHANGES = "The function changes"
_FROZEN = "frozen with requires_grad=False; no loss of the batch reaches it, so it would be trained on noise alone"
_TOO_FEW = "a norm over one sample would have less than three values in a group, and its output would tell nothing"


@dataclass(frozen=True)
class Remedy:
    """A change of one module: ``apply`` returns what takes its place (it may be the module itself, changed)."""

    what: str
    applicability: Applicability
    apply: Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Refusal:
    """Why a finding of a rule that has a remedy cannot be mended here."""

    what: str
    reason: str


def remedy(
    code: str,
    module: nn.Module,
    seen: Seen | None,
    to: BatchNormTo,
    own: tuple[str, ...] = (),
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Remedy | Refusal | None:
    """The remedy for a finding of rule ``code`` at ``module``; ``None`` if there is none.

    Args:
        seen: the layer's first call, if it ran.
        to: what batch norm becomes.
        statistics: mean and variance, [C] each, at which a batch norm is frozen.
        own: names of the module's own parameters or buffers of which the rule has findings.
    """
    # No loss reaches a batch norm that only writes its running statistics.
    if code == "DP301" and isinstance(module, nn.modules.batchnorm._BatchNorm):
        code = "DP101"
    if code == "DP201" and own:
        return Remedy(f"{', '.join(own)}: {_FROZEN}", "safe", partial(_freeze, names=own))
    if code == "DP101" and statistics is not None:
        what = f"{batch_norm.describe(module)} -> the affine map at the statistics given"
        return Remedy(f"{what}. {CHANGES}", "unsafe", lambda m: batch_norm.to_frozen(m, statistics))
    if code == "DP101":
        return _of_batch_norm(module, positions(seen), to)
    if code == "DP102" and seen is not None and seen.normalised is not None and to != "frozen":
        return _of_calls(seen.normalised[1], positions(seen), to)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if code == "DP104" and module.scale_grad_by_freq:
            return Remedy("scale_grad_by_freq=True -> False; gradients lose that scale", "safe", _unscaled)
        if code == "DP501":
            return Remedy("sparse=True -> False; gradients are dense", "safe", _dense)
        if code == "DP302":
            return Remedy(f"max_norm -> None, rows scaled once. {CHANGES}", "unsafe", _unbounded)
    if code == "DP301" and isinstance(module, nn.modules.instancenorm._InstanceNorm):
        what = "track_running_stats=True -> False; in eval mode it will use the sample's own statistics"
        return Remedy(f"{what}. {CHANGES}", "unsafe", _untracked)
    if code == "DP301" and own:
        what = f"{', '.join(own)}: what the forward writes there is dropped, it keeps the value that it has now"
        return Remedy(f"{what}. {CHANGES}", "unsafe", partial(keep_buffers, names=own))
    return None


def rewriting(module: nn.Module, seen: Seen, lines: Sequence[Location], finding: Diagnostic) -> Remedy | Refusal:
    """The remedy for what a module's own forward computes over the batch, at ``lines``."""
    try:
        clauses = in_forward.changes(module, seen, lines)
    except Exception as error:  # whatever the user's forward does when it is traced
        why = error.what if isinstance(error, DpcheckError) else f"{type(error).__name__}: {first_line(error)}"
        return Refusal(finding.message, advice(finding, why))
    what = f"in the forward, {'; '.join(clauses)}. {CHANGES}"
    return Remedy(what, "unsafe", partial(in_forward.rewrite, seen=seen, lines=lines))


def _of_batch_norm(module: nn.Module, per_channel: int, to: BatchNormTo) -> Remedy | Refusal:
    name, channels = batch_norm.describe(module), batch_norm.channels_of(module)
    if to == "frozen":
        what = f"{name} -> the affine map at its running statistics, which must not come from the private data"
        if getattr(module, "running_mean", None) is None:
            return Refusal(what, "it keeps no running statistics")
        return Remedy(f"{what}. {CHANGES}", "unsafe", batch_norm.to_frozen)
    groups = batch_norm.groups_for(channels, per_channel, to)
    if groups is None:
        return Refusal(f"{name} -> group norm", f"{_TOO_FEW}: remove the layer, or use batch_norm_to='frozen'")
    what = f"{name} -> GroupNorm({groups}, {channels})"
    dropped = [key for key in ("running_mean", "running_var", "num_batches_tracked") if hasattr(module, key)]
    if getattr(module, "running_mean", None) is not None:
        what += f"; {', '.join(dropped)} leave the state_dict"
    return Remedy(f"{what}. {CHANGES}", "unsafe", lambda m: batch_norm.to_group_norm(m, groups))


def _of_calls(channels: int, per_channel: int, to: BatchNormTo) -> Remedy | Refusal:
    """Of batch norm that a forward calls as a function."""
    groups = batch_norm.groups_for(channels, per_channel, to)
    if groups is None:
        return Refusal("F.batch_norm -> F.group_norm", _TOO_FEW)
    what = f"F.batch_norm -> F.group_norm of {groups} groups where the forward calls it. {CHANGES}"
    return Remedy(what, "unsafe", lambda m: batch_norm.calls_to_group_norm(m, groups))


def positions(seen: Seen | None) -> int:
    """Values per channel and sample of what a layer normalises; 1 where it is not known."""
    shape = seen.normalised if seen else None
    if shape is None and seen and seen.args and isinstance(seen.args[0], Tensor):
        shape = tuple(seen.args[0].shape)
    return math.prod(shape[2:]) if shape else 1


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """A batch norm in eval mode with running statistics, which ``.train()`` would make mix samples."""
    known = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, batch_norm.FrozenInside)
    return known and not module.training and module.running_mean is not None


def _freeze(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return module


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
