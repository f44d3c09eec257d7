"""What a layer sees when the model runs, and what happens to its output when another takes its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from dpcheck import inputs
from dpcheck.capture import LossFn, first_line, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.errors import DpcheckError
from dpcheck.fixes.batch_norm import CALLS
from dpcheck.fixes.copying import duplicate
from dpcheck.sandbox import sandbox

# Outputs of a safe fix agree to float64's rounding; this far apart they are another function.
SAME = 1e-9
SCALES = (1.0, 5.0)
# Rows that differ by less than this much of what they did are the same but for rounding: narrow dtypes, float64.
NOTHING = (1e-4, SAME)


@dataclass(frozen=True)
class Seen:
    """The first call of a layer.

    Attributes:
        args, kwargs: copies of what it was given.
        normalised: shape [N, C, ...] of what it passes to batch norm itself, if it does.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    normalised: tuple[int, ...] | None


@dataclass(frozen=True)
class Judgement:
    """What a fix does to its layer.

    Attributes:
        output_change: |new - old| / |old| of the layer's output; ``None`` if they could not be compared.
        failure: why the fix must not stay, if so.
    """

    output_change: float | None
    failure: str | None


class _Shapes(TorchFunctionMode):
    """Notes what is passed to batch norm, by the innermost watched layer that runs."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running = running
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS and self.running:
            x = args[0] if args else kwargs["input"]
            before = self.shapes.setdefault(self.running[-1], tuple(x.shape))
            if math.prod(x.shape[2:]) < math.prod(before[2:]):
                self.shapes[self.running[-1]] = tuple(x.shape)
        return func(*args, **kwargs)


def observe(model: nn.Module, loss_fn: LossFn, batch: Any, paths: Collection[str]) -> dict[str, Seen]:
    """Run a copy of the model, and note what the layers at ``paths`` see. A layer that does not run is left out."""
    probe = duplicate(model).model
    running: list[str] = []
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def noting(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in calls:
                calls[path] = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))

        return hook

    for path in paths:
        probe.get_submodule(path).register_forward_pre_hook(noting(path), with_kwargs=True, prepend=True)
    follow(probe, paths, running)
    with _Shapes(running) as noted:
        run_losses(probe, loss_fn, batch)
    return {path: Seen(*call, noted.shapes.get(path)) for path, call in calls.items()}


def judge(old: nn.Module, new: nn.Module, seen: Seen, *, safe: bool, size: int) -> Judgement:
    """Compare two layers on what was seen, in float64 where they run in it, at two scales.

    A safe fix must leave the output as it is. Any fix must leave it finite, and must not make it the same for samples
    that it told apart before (weights that start at zero make any layer constant, so that alone is no failure).

    Args:
        size: number of samples, to know an output with one row for each.
    """
    change = 0.0
    for scale in SCALES:
        pair = _outputs(old, new, seen, scale)
        if pair is None:
            return Judgement(None, None)
        a, b = pair
        if a.shape != b.shape:
            return Judgement(None, f"the layer's output has shape {list(b.shape)} instead of {list(a.shape)}")
        if bool(torch.isfinite(a).all()) and not bool(torch.isfinite(b).all()):
            return Judgement(None, "the new layer's output is not finite")
        if a.shape[:1] == (size,) and _spread(a) > 0 and _spread(b) <= _spread(a) * NOTHING[a.dtype == torch.float64]:
            return Judgement(None, "the new layer's output is the same for every sample")
        if scale == 1.0:
            change = _relative(a, b)
        if safe and a.dtype == torch.float64 and _relative(a, b) > SAME:
            return Judgement(change, f"the layer's output changes by {_relative(a, b):.1e}, relative, in float64")
    return Judgement(change, None)


def _outputs(old: nn.Module, new: nn.Module, seen: Seen, scale: float) -> tuple[Tensor, Tensor] | None:
    for wide in (True, False):
        try:
            return _output(old, seen, scale, wide), _output(new, seen, scale, wide)
        except Exception:  # a layer that insists on its own dtype, or that cannot run by itself: then no comparison
            continue
    return None


def _output(module: nn.Module, seen: Seen, scale: float, wide: bool) -> Tensor:
    copy = duplicate(module).model
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: (t * scale).clone() if t.is_floating_point() else t.clone(), (seen.args, dict(seen.kwargs))
    )
    if wide:
        copy = copy.double()
        args, kwargs = inputs.to_dtype((args, kwargs), torch.float64)
    with sandbox(copy), torch.no_grad(), FixedChance():
        out = copy(*args, **kwargs)
    return next(t.detach() for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point())


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / a.double().norm().clamp_min(1e-12))


def _spread(x: Tensor) -> float:
    """How far the rows of ``x`` differ from the first."""
    return float((x - x[:1]).double().abs().max()) if x.numel() else 0.0


def why_broken(
    model: nn.Module, loss_fn: LossFn, batch: Any, paths: Collection[str], *, evaluating: bool = False
) -> dict[str, str]:
    """Why the model does not run, by the layer at ``paths`` in which it raises; empty if all is well.

    Args:
        evaluating: try it in eval mode instead of its present mode.

    Returns:
        At most one entry; its key is ``"?"`` where the trouble is in none of ``paths``.
    """
    inside: list[str] = []
    before = {module: module.training for module in model.modules()}
    handles = follow(model, paths, inside)
    try:
        if evaluating:
            model.eval()
        run_losses(model, loss_fn, batch)
    except DpcheckError as error:
        return {inside[-1] if inside else "?": first_line(error)}
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in before.items():
            module.training = mode
    return {}


def follow(model: nn.Module, paths: Collection[str], running: list[str]) -> list[RemovableHandle]:
    """Keeps in ``running`` the layers at ``paths`` that are running, innermost last."""

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = []
    for path in paths:
        layer = model.get_submodule(path)
        handles.append(layer.register_forward_pre_hook(lambda *_, path=path: running.append(path), prepend=True))
        handles.append(layer.register_forward_hook(leaving))
    return handles
