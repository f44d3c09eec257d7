"""Batch norm in source: its constructor calls, its functional calls, and classes that take its arguments."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dpcheck.fixes.batch_norm import CALLS, ENOUGH, LEAST
from dpcheck.rewrite.names import Names
from dpcheck.rewrite.text import Argument, Edit, SourceFile

_NORM_ARGUMENTS = ("num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype")
_SYNC_ARGUMENTS = (
    "num_features",
    "eps",
    "momentum",
    "affine",
    "track_running_stats",
    "process_group",
    "device",
    "dtype",
)
_GONE = frozenset({"momentum", "track_running_stats", "process_group"})
_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_TORCH = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
_PURE = (
    ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop,
    ast.expr_context,
)  # fmt: skip
_LARGEST = 32


class CannotWrite(Exception):
    """Why a fix has no edit."""


class Unpacked(CannotWrite):
    """The arguments come from a list or a dictionary."""


@dataclass(frozen=True)
class Size:
    """What one norm normalises: ``channels``, and ``positions`` values per channel and sample."""

    channels: int
    positions: int


def divisor(sizes: Sequence[Size], to: str = "group") -> int:
    """The G whose ``gcd(G, channels)`` groups are most and suit every size, by the rule of ``batch_norm.groups_for``.

    Returns:
        1 to 32; 0 stands for a group a channel (``to="instance"``).

    Raises:
        CannotWrite: if even one group has fewer than three values.
    """
    if to == "instance":
        return 0
    if any(size.channels * size.positions < LEAST for size in sizes):
        raise CannotWrite("a norm over one sample would have less than three values in a group")
    if to == "layer":
        return 1
    for least in (4, 2):
        suiting = [g for g in range(1, _LARGEST + 1) if all(_suits(s, math.gcd(g, s.channels), least) for s in sizes)]
        best = max(suiting, key=lambda g: (sum(math.log(math.gcd(g, size.channels)) for size in sizes), -g))
        if best > 1:
            return best
    return 1


def _suits(size: Size, groups: int, least: int) -> bool:
    of_group = size.channels // groups
    return groups == 1 or (of_group >= least and of_group * size.positions >= ENOUGH)


def groups_text(source: SourceFile, names: Names, channels: ast.expr, sizes: Sequence[Size], to: str) -> str:
    """An expression for the number of groups, right for every size that the expression ``channels`` had."""
    g = divisor(sizes, to)
    seen = {size.channels for size in sizes}
    pure = all(isinstance(node, _PURE) for node in ast.walk(channels))
    if g == 0 or (g > 1 and not isinstance(channels, ast.Constant)):
        if not pure:
            if len(seen) == 1:
                return str(math.gcd(g, *seen) if g else next(iter(seen)))
            if g == 0:
                raise CannotWrite("the number of channels is the result of a call, which cannot be written twice")
            return str(math.gcd(g, *seen))
        text = source.of(channels)
        return text if g == 0 else f"{names.spell('math.gcd', channels)}({g}, {text})"
    return str(math.gcd(g, *seen))


def constructor(
    source: SourceFile, names: Names, call: ast.Call, kind: type, sizes: Sequence[Size], to: str
) -> list[Edit]:
    """The edits that turn ``nn.BatchNorm2d(...)`` into ``nn.GroupNorm(...)``.

    Args:
        kind: the class that is called.

    Raises:
        CannotWrite: for arguments that are unpacked from a list or dictionary.
    """
    written = _written(source, call)
    order = _SYNC_ARGUMENTS if kind is nn.SyncBatchNorm else _NORM_ARGUMENTS
    lazy = issubclass(kind, nn.modules.lazy.LazyModuleMixin)
    named = _by_name(written, order[1:] if lazy else order)
    edits = [Edit(*source.span(call.func), names.spell("torch.nn.GroupNorm", call))]
    edits += source.without([named[name] for name in named if name in _GONE], written)
    if lazy:
        seen = {size.channels for size in sizes}
        if len(seen) > 1:
            raise CannotWrite("this lazy layer was built for different numbers of channels")
        channels = next(iter(seen))
        text = f"{math.gcd(divisor(sizes, to) or channels, channels)}, {channels}"
        at = source.tokens(call)[0][2]
        return [*edits, Edit(at, at, text + (", " if set(named) - _GONE else ""))]
    features = named.get("num_features")
    if features is None:
        raise CannotWrite("it is called without a number of channels")
    groups = groups_text(source, names, features.value, sizes, to)
    if features.name is None:
        return [*edits, Edit(features.start, features.start, f"{groups}, ")]
    # After the name no positional argument may follow, so both are given by name.
    return [*edits, Edit(features.start, features.start + len(features.name), f"num_groups={groups}, num_channels")]


def functional(source: SourceFile, names: Names, call: ast.Call, sizes: Sequence[Size], to: str) -> list[Edit]:
    """The edits that turn ``F.batch_norm(x, ...)`` into ``F.group_norm(x, groups, weight, bias, eps)``.

    Raises:
        CannotWrite: for arguments that are unpacked, or an input of different numbers of channels that has no name.
    """
    function = names.value(call.func)
    written = _written(source, call)
    named = _by_name(written, _TORCH if function is torch.batch_norm else _FUNCTIONAL)
    x = named.get("input")
    if x is None:
        raise CannotWrite("it is called without an input")
    seen = {size.channels for size in sizes}
    if len(seen) == 1:
        groups = str(math.gcd(divisor(sizes, to) or seen.copy().pop(), *seen))
    elif isinstance(x.value, ast.Name):
        g, channels = divisor(sizes, to), f"{x.value.id}.shape[1]"
        groups = channels if g == 0 else "1" if g == 1 else f"{names.spell('math.gcd', call)}({g}, {channels})"
    else:
        raise CannotWrite("inputs of different numbers of channels come here")
    callee = Edit(*source.span(call.func), names.spell("torch.nn.functional.group_norm", call))
    return [callee, *_in_place(source, named, written, groups)]


def _in_place(source: SourceFile, named: dict[str, Argument], written: list[Argument], groups: str) -> list[Edit]:
    """A call over several lines keeps them: every argument is edited where it stands."""
    kept = [name for name in ("weight", "bias", "eps") if _given(named.get(name))]
    x = named["input"]
    edits = [Edit(x.end, x.end, f", num_groups={groups}")]
    edits += [Edit(named[n].start, named[n].start, f"{n}=") for n in kept if named[n].name is None]
    return edits + source.without([a for n, a in named.items() if n not in ("input", *kept)], written)


def _given(argument: Argument | None) -> bool:
    return argument is not None and not (isinstance(argument.value, ast.Constant) and argument.value.value is None)


def _written(source: SourceFile, call: ast.Call) -> list[Argument]:
    written = source.arguments(call)
    if any(argument.unpacks for argument in written):
        raise Unpacked("its arguments are unpacked from a list or a dictionary")
    return written


def _by_name(written: list[Argument], order: Sequence[str]) -> dict[str, Argument]:
    positional = [argument for argument in written if argument.name is None]
    return {
        **dict(zip(order, positional, strict=False)),
        **{argument.name: argument for argument in written if argument.name is not None},
    }


def is_batch_norm_call(names: Names, call: ast.Call) -> bool:
    """Whether a call is to ``F.batch_norm`` or ``torch.batch_norm``."""
    value = names.value(call.func)
    return any(value is function for function in CALLS)


def is_constructor(value: object) -> bool:
    """Whether a value is one of torch's own batch norm classes."""
    inside = isinstance(value, type) and issubclass(value, nn.modules.batchnorm._BatchNorm)
    return inside and getattr(value, "__module__", "").startswith("torch.nn.")


def adapter(name: str, sizes: Sequence[Size], to: str, base: str, gcd: str) -> str:
    """A class that takes batch norm's arguments and is a group norm."""
    g = divisor(sizes, to)
    groups = "num_features" if g == 0 else "1" if g == 1 else f"{gcd}({g}, num_features)"
    return f'''class {name}({base}):
    """A norm over one sample that takes the arguments of a batch norm."""

    def __init__(
        self, num_features, eps=1e-5, momentum=None, affine=True, track_running_stats=False, device=None, dtype=None
    ):
        super().__init__({groups}, num_features, eps, affine, device, dtype)
'''
