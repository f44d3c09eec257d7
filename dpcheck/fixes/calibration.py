"""New norms that start where the old ones were: their weights fitted on public or synthetic data."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpcheck.capture import LossFn, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.fixes.batch_norm import CALLS
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.trial import follow

_GROUP_NORM = ("input", "num_groups", "weight", "bias", "eps")


def calibrate(old: nn.Module, new: nn.Module, loss_fn: LossFn, batch: Any, paths: Collection[str]) -> tuple[str, ...]:
    """Fit weight and bias of the group norms in ``new`` to what the batch norms of ``old`` put out in eval mode.

    Channel by channel, by least squares over the batch, in the order in which the model runs, so that every layer is
    fitted on what the layers before it now give. Nothing else of ``new`` changes.

    Args:
        old: the model with batch norm; untouched.
        new: the fixed model.
        batch: as for :func:`dpcheck.check`, of public or synthetic data: the weights depend on it, without noise.
        paths: of the layers.

    Returns:
        The paths that were fitted. A layer without weights, or with other shapes than before, is left as it is.
    """
    before = duplicate(old).model.eval()
    modes = {module: module.training for module in new.modules()}
    fitting = _Fitting(_outputs(before, loss_fn, batch, paths))
    handles = follow(new, paths, fitting.running)
    try:
        new.eval()
        with torch.no_grad(), FixedChance(), fitting:
            loss_fn(new, batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return tuple(fitting.fitted)


def evaluated(model: nn.Module, loss_fn: LossFn, batch: Any) -> float:
    """The mean loss of a batch in eval mode; the model is untouched."""
    with FixedChance():
        return float(run_losses(duplicate(model).model.eval(), loss_fn, batch).mean())


def _outputs(model: nn.Module, loss_fn: LossFn, batch: Any, paths: Collection[str]) -> dict[str, Tensor]:
    noting = _Noting()
    follow(model, paths, noting.running)
    with torch.no_grad(), FixedChance(), noting:
        loss_fn(model, batch)
    return noting.outputs


class _Noting(TorchFunctionMode):
    """What batch norm puts out the first time, by the innermost watched layer that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.outputs: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in CALLS and self.running:
            self.outputs.setdefault(self.running[-1], out.detach().clone())
        return out


class _Fitting(TorchFunctionMode):
    """Fits the weights of group norm before it is computed with them."""

    def __init__(self, targets: dict[str, Tensor]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.targets, self.fitted = targets, dict[str, None]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {**dict(zip(_GROUP_NORM, args, strict=False)), **(kwargs or {})}
        path = self.running[-1] if self.running else None
        affine = given.get("weight") is not None and given.get("bias") is not None
        if func is F.group_norm and affine and path in self.targets and path not in self.fitted:
            x = F.group_norm(given["input"], given["num_groups"], None, None, given.get("eps", 1e-5))
            if x.shape == self.targets[path].shape:
                _fit(x, self.targets[path], given["weight"], given["bias"])
                self.fitted[path] = None
        return func(*args, **(kwargs or {}))


def _fit(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The ``weight`` and ``bias`` [C] for which ``weight * x + bias`` is nearest to ``y``, both [N, C, ...]."""
    a, b = (t.double().transpose(0, 1).flatten(1) for t in (x, y))
    a_mean, b_mean = a.mean(1), b.mean(1)
    variance = (a - a_mean[:, None]).square().mean(1)
    slope = ((a - a_mean[:, None]) * (b - b_mean[:, None])).mean(1) / variance
    slope = torch.where(slope.isfinite(), slope, weight.double())
    weight.copy_(slope)
    bias.copy_(b_mean - slope * a_mean)
