"""Statistics over the samples, taken over the other axes of each sample instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

# By name: the function that takes its place, and the names of its arguments after the tensor.
STATISTICS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "mean": (torch.mean, ("dim", "keepdim")),
    "sum": (torch.sum, ("dim", "keepdim")),
    "std": (torch.std, ("dim", "unbiased", "keepdim")),
    "var": (torch.var, ("dim", "unbiased", "keepdim")),
    "amax": (torch.amax, ("dim", "keepdim")),
    "amin": (torch.amin, ("dim", "keepdim")),
    "max": (torch.max, ("dim", "keepdim")),
    "min": (torch.min, ("dim", "keepdim")),
    "logsumexp": (torch.logsumexp, ("dim", "keepdim")),
    "norm": (torch.norm, ("p", "dim", "keepdim")),
    "linalg_norm": (torch.linalg.vector_norm, ("ord", "dim", "keepdim")),
    "linalg_vector_norm": (torch.linalg.vector_norm, ("ord", "dim", "keepdim")),
    "softmax": (torch.softmax, ("dim",)),
    "log_softmax": (torch.log_softmax, ("dim",)),
    "normalize": (F.normalize, ("p", "dim", "eps")),
}
KEEP_SHAPE = frozenset({"softmax", "log_softmax", "normalize"})
EXTREMES = {"max": torch.amax, "min": torch.amin}
_DROPPED = frozenset({"keepdim", "_stacklevel"})
_OTHERS = frozenset({"correction", "eps", "ord", "p", "unbiased", "dtype"})


@dataclass(frozen=True)
class Statistic:
    """A statistic that a graph takes.

    Attributes:
        name: as in :data:`STATISTICS`.
        function: what computes it.
        tensor: what it is taken of.
        before: the axes over which it is taken.
        named: whether the call names these.
        options: its other arguments.
    """

    name: str
    function: Any
    tensor: Tensor
    before: list[int]
    named: bool
    options: Mapping[str, Any]


def of_node(node: fx.Node, values: Mapping[fx.Node, Any]) -> Statistic | None:
    """The statistic that a node takes of a tensor with axes besides that of the samples, if it does.

    Args:
        values: what every node holds in one call.
    """
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    x = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    called = node.op in ("call_method", "call_function")
    if not called or name not in STATISTICS or not isinstance(x, Tensor) or x.dim() < 2:
        return None
    function, names = STATISTICS[name]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    axis = given.pop("axis", None)
    before = axes(given.pop("dim", axis), x.dim())
    given = {key: value for key, value in given.items() if key not in _DROPPED and value is not None}
    if before is None or not set(given) <= _OTHERS:
        return None
    return Statistic(name, function, x, before, len(node.args) > 1 or bool(node.kwargs), given)


def reduced(graph: fx.Graph, node: fx.Node, values: Mapping[fx.Node, Any]) -> str | None:
    """Where a node is a statistic over axis 0, it is taken over the other axes of its input, and this is said.

    ``x.mean(0)`` of [B, D] becomes ``x.mean(1, keepdim=True)``, ``x.mean((0, 1))`` of [B, T, D] that over 1, and
    ``x.var((0, 2, 3))`` of [B, C, H, W] that over (1, 2, 3). The reduced axes stay, with length 1, so that the result
    fits ``x`` sample by sample.
    """
    statistic = of_node(node, values)
    if statistic is None or 0 not in statistic.before:
        return None
    name, function, x, before = statistic.name, statistic.function, statistic.tensor, statistic.before
    after = of_one_sample(name, before, x.dim())
    if name in EXTREMES and not statistic.named:
        function = EXTREMES[name]
    elif name in EXTREMES and len(after) > 1:
        return None
    single = name in KEEP_SHAPE or function in (torch.max, torch.min)
    options = {**statistic.options, "dim": after[0] if single else tuple(after)}
    if name not in KEEP_SHAPE:
        options["keepdim"] = True
    with graph.inserting_before(node):
        new = graph.call_function(function, (node.args[0],), options)
    _take_the_place(node, new, tuple(1 if axis in before else size for axis, size in enumerate(x.shape)), values)
    shown = ", ".join(map(str, after))
    return f"{name} is taken over axis {shown} of each sample instead of axis {', '.join(map(str, before))}"


def of_one_sample(name: str, before: list[int], rank: int) -> list[int]:
    """The axes of each sample over which a statistic of a tensor of ``rank`` axes is taken instead of ``before``."""
    everything = len(before) == rank
    # Of images all axes: an image less the mean of each channel would have no mean left to tell it by.
    kept = [axis for axis in before if axis] if rank == 3 and not everything else []
    after = kept or list(range(1, rank))
    return after[-1:] if name in KEEP_SHAPE else after


def axes(dim: Any, rank: int) -> list[int] | None:
    """The axes that an argument ``dim`` names, from 0 and in order; ``None`` for what is no number or list of them."""
    if dim is None:
        return list(range(rank))
    named = [dim] if isinstance(dim, int) and not isinstance(dim, bool) else dim
    if not isinstance(named, list | tuple) or not all(isinstance(axis, int) for axis in named):
        return None
    return sorted(axis % rank for axis in named) or list(range(rank))


def _take_the_place(old: fx.Node, new: fx.Node, broadcast: tuple[int, ...], values: Mapping[fx.Node, Any]) -> None:
    """``new`` in the place of ``old``, and of what only gave it the reduced axes back, as ``[None, :, None]`` does."""
    for user in list(old.users):
        held = values.get(user)
        shaped = user.target in ("view", "reshape", "unsqueeze") or getattr(user.target, "__name__", "") == "getitem"
        if shaped and isinstance(held, Tensor) and tuple(held.shape) == broadcast:
            user.replace_all_uses_with(new)
            old.graph.erase_node(user)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
