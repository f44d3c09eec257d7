"""One op of the graph as a transfer rule sees it, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dpcheck.ops import is_pointwise as is_pointwise
from dpcheck.ops import packet_of as packet_of
from dpcheck.samplesets.lattice import Samples, joined, none, several


@dataclass(frozen=True)
class Op:
    """A call of an ATen op on abstract values.

    Attributes:
        target: the op overload.
        args, kwargs: its arguments, :class:`Samples` in the place of tensors.
        out: its fake result (a tensor, or a tuple or list of tensors and None).
        backward: whether it runs in the backward half.
        batch: B.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    backward: bool
    batch: int

    @property
    def name(self) -> str:
        """Such as ``aten.mean.dim``."""
        return str(self.target)

    @property
    def packet(self) -> str:
        """Such as ``mean``."""
        return packet_of(self.target)

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def values(self) -> list[Samples]:
        """All abstract values among the arguments."""
        leaves = pytree.tree_leaves((self.args, self.kwargs), is_leaf=lambda x: isinstance(x, Samples))
        return [leaf for leaf in leaves if isinstance(leaf, Samples)]

    def none(self, shape: Any = None) -> Samples:
        return none(self.out.shape if shape is None else shape, self.batch)

    def join(self, *values: Samples | None, shape: Any = None) -> Samples:
        return joined((v for v in values if v is not None), self.out.shape if shape is None else shape, self.batch)

    def summed(self, shape: Any, *slots: Samples) -> Samples:
        """The result of adding up ``slots``: additive if every slot belongs to at most one sample."""
        everything = [slot for slot in slots if not slot.empty()]
        inexact = any(slot.inexact for slot in everything)
        owners = [slot for slot in everything if slot.mixed()]
        if owners:
            return several(shape, self.batch, additive=False, inexact=inexact)
        return several(shape, self.batch, additive=self.backward, inexact=inexact)

    def each(self, make: Callable[[Tensor], Samples]) -> Any:
        """One value for every output tensor."""
        if isinstance(self.out, Tensor):
            return make(self.out)
        return [make(out) if isinstance(out, Tensor) else None for out in self.out]


Transfer = Callable[[Op], Any]
RULES: dict[str, Transfer] = {}


def transfer(*packets: str) -> Callable[[Transfer], Transfer]:
    """Registers a transfer rule for op packets (``mean`` stands for ``aten.mean.dim`` and its siblings)."""

    def register(rule: Transfer) -> Transfer:
        for packet in packets:
            if packet in RULES:
                raise RuntimeError(f"two transfer rules for {packet}")
            RULES[packet] = rule
        return rule

    return register


def broadcast(*values: Samples) -> torch.Size:
    """The shape that values broadcast to."""
    shape: torch.Size = torch.broadcast_shapes(*[v.shape for v in values], ())
    return shape


def axes_of(dims: Any, rank: int) -> list[int] | None:
    """Normalised axes of a reduction; ``None`` for all."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return None
    return [d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)]
