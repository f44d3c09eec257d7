"""A contraction site: one op that sums gradients over samples, taken apart again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dpcheck.samplesets.interpreter import Step
from dpcheck.samplesets.lattice import Samples
from dpcheck.samplesets.op import packet_of

# One multiply-add against one byte of fresh memory, as measured on a CPU (see ENGINE.md's table).
FLOPS_PER_BYTE = 25.0

# Entries of a row that are squared and added one by one.
_RUN = 4096

# A list, since the compiler that may trace the samplers does not know context variables.
_FORCED: list[bool] = []


@contextmanager
def every_site(keep: bool) -> Iterator[None]:
    """Plans made and run here keep the contributions of every site that can, or of none: both are verified."""
    _FORCED.append(keep)
    try:
        yield
    finally:
        _FORCED.pop()


def chosen(cheaper: bool) -> bool:
    """What the cost model says, unless a form is forced."""
    return _FORCED[-1] if _FORCED else cheaper


@dataclass(frozen=True)
class Part(ABC):
    """What several samplers need and is computed once for all of them: equal parts are one.

    Attributes:
        operands: the nodes whose values it is computed from.
    """

    operands: tuple[fx.Node, ...]

    @abstractmethod
    def compute(self, *values: Tensor) -> Any:
        """The value that is handed to the samplers."""


@dataclass(frozen=True)
class Work:
    """What a site costs.

    Attributes:
        method: ``ghost`` (norms from Grams, then one weighted contraction), ``instantiate`` (every sample's
            contribution, kept until the clip factors are known), ``recompute`` (the same, not kept: contracted a second
            time in the sum) or ``direct`` (contributions are no larger than the operands).
        flops: floating-point operations, multiply and add apart.
        moved: bytes written to and read from memory beside them.
    """

    method: Literal["ghost", "instantiate", "recompute", "direct"]
    flops: float
    moved: int


def contractions(kept: bool, batch: int, size: int, products: float, grams: float) -> Work:
    """The work of a site whose contributions have ``size`` entries and take ``products`` flops in all."""
    if kept:
        return Work("instantiate", products + 4.0 * batch * size, 12 * batch * size)
    return Work("ghost", products + grams, 0)


def nbytes(value: Any) -> int:
    """Of all tensors in ``value``."""
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(value) if isinstance(t, Tensor))


@dataclass(frozen=True)
class Site(ABC):
    """One output of one contraction op.

    Attributes:
        operands: the nodes (or parts) whose values the sampler needs.
        shape: shape of the output, which is also the shape of one sample's contribution.
        batch: B.
    """

    operands: tuple[fx.Node | Part, ...]
    shape: tuple[int, ...]
    batch: int
    kind: ClassVar[str]

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        """The nodes of the graph that the operands are or are made of."""
        return tuple(n for o in self.operands for n in (o.operands if isinstance(o, Part) else (o,)))

    @abstractmethod
    def per_sample(self, *values: Any) -> Tensor:
        """The contribution of every sample, [B, *shape]."""

    def square_norms(self, *values: Any) -> Tensor:
        """The squared L2 norm of every contribution, [B], in float32 or wider."""
        return square_norms_of(self.per_sample(*values))

    @abstractmethod
    def weighted(self, factors: Tensor, *values: Any) -> Tensor:
        """The sum over samples of ``factors[i]`` times contribution i, of ``shape``."""

    def kept(self, *values: Any) -> Any:
        """All contributions in the smallest form from which norms and sums can be taken."""
        return self.per_sample(*values)

    def kept_square_norms(self, kept: Any) -> Tensor:
        """As :meth:`square_norms`, of what :meth:`kept` gave."""
        return square_norms_of(kept)

    def kept_weighted(self, factors: Tensor, kept: Any) -> Tensor:
        """As :meth:`weighted`, of what :meth:`kept` gave."""
        return weighted_of(factors, kept)

    def cancels(self) -> bool:
        """Whether the norm of one sample's contribution can be much smaller than the terms that it is made of."""
        return True

    def keeps(self) -> bool:
        """Whether the contributions are cheaper to keep than to contract a second time."""
        return chosen(True)

    def work(self, kept: bool) -> Work:
        """An estimate for norms and sum: by default two passes over the operands, which reading alone makes cheaper."""
        return Work("direct", 4.0 * sum(n.meta["val"].numel() for n in self.sources), self.operand_bytes() // 2)

    def operand_bytes(self) -> int:
        """Of the operands that are no inputs of the graph."""
        return sum(nbytes(n.meta["val"]) for n in dict.fromkeys(self.sources) if n.op != "placeholder")


def wide(t: Tensor) -> Tensor:
    """At least float32."""
    return t if t.dtype in (torch.float32, torch.float64) or t.is_complex() else t.float()


def is_narrow(node: fx.Node) -> bool:
    """Whether it is a half-precision tensor, as under autocast."""
    return getattr(node.meta.get("val"), "dtype", None) in (torch.float16, torch.bfloat16)


def as_real(t: Tensor) -> Tensor:
    """A complex tensor as pairs of real and imaginary part, [*, 2]: norms and noise are those of real coordinates."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def square_norms_of(each: Tensor) -> Tensor:
    """Squared norms of the rows of [B, ...], [B]: a sum of non-negative terms, in float32 or wider."""
    flat = wide(as_real(each)).reshape(each.shape[0], -1)
    # One run of float32 additions over millions of entries would lose three digits.
    whole = flat.shape[1] // _RUN * _RUN
    runs = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, _RUN)), dim=2).square().sum(1)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1).square()
    result: Tensor = runs + rest
    return result


def weighted_of(factors: Tensor, each: Tensor) -> Tensor:
    """``sum_i factors[i] * each[i]``."""
    return torch.mv(each.reshape(each.shape[0], -1).t(), factors.to(each.dtype)).view(each.shape[1:])


@dataclass(frozen=True)
class Template:
    """The arguments of a node's op, the nodes among them taken out.

    Attributes:
        nodes: each once, in order of appearance.
        arguments: the op's, with a :class:`Slot` for every node, in lists of arguments too.
    """

    nodes: tuple[fx.Node, ...]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, node: fx.Node) -> Template:
        nodes = tuple(dict.fromkeys(a for a in pytree.tree_leaves(list(node.args)) if isinstance(a, fx.Node)))
        slots = {a: Slot(i) for i, a in enumerate(nodes)}
        return cls(
            nodes, tuple(_replaced(item, lambda a: slots[a] if isinstance(a, fx.Node) else a) for item in node.args)
        )

    def filled(self, values: Sequence[Any]) -> list[Any]:
        """The arguments with a value for every node."""
        return [_replaced(item, lambda a: values[a.position] if isinstance(a, Slot) else a) for item in self.arguments]


@dataclass(frozen=True)
class Slot:
    """The place of a node in :attr:`Template.nodes`."""

    position: int


def _replaced(item: Any, one: Callable[[Any], Any]) -> Any:
    return [_replaced(i, one) for i in item] if isinstance(item, list | tuple) else one(item)


@dataclass(frozen=True)
class Place:
    """A contraction op in the graph, as the makers of sites see it."""

    node: fx.Node
    output: int | None
    steps: dict[fx.Node, Step]
    batch: int

    @property
    def shape(self) -> tuple[int, ...]:
        val: Any = self.node.meta["val"]
        return tuple((val if self.output is None else val[self.output]).shape)

    def samples(self, node: Any) -> Samples:
        value = self.steps[node].value
        assert isinstance(value, Samples)
        return value


Maker = Callable[[Place], "Site | None"]
MAKERS: dict[str, Maker] = {}


def maker(*packets: str) -> Callable[[Maker], Maker]:
    """Registers the maker of sites for op packets."""

    def register(make: Maker) -> Maker:
        for packet in packets:
            MAKERS[packet] = make
        return make

    return register


def make_site(place: Place) -> Site | None:
    """The site at ``place``; ``None`` when no sampler covers it (the engine then falls back)."""
    make = MAKERS.get(packet_of(place.node.target))
    return make(place) if make is not None else None
