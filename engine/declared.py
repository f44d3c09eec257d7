"""Ops of your own: a declaration of their rows stands in for a transfer rule, and a sampler takes their sums apart.

Both are tested on drawn arguments before they are taken (see :mod:`dpcheck.engine.trial`): a test, not a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from dpcheck.engine.sites.base import MAKERS, Place, Site, Template, square_norms_of, weighted_of
from dpcheck.engine.sites.layout import Layout, find_layout
from dpcheck.engine.trial import complaint_of
from torch import Tensor, fx

from dpcheck.errors import DpcheckError
from dpcheck.ops import TORCH, namespace_of, packet_of
from dpcheck.samplesets.lattice import Samples, joined, moved, reduced
from dpcheck.samplesets.moves import unknown
from dpcheck.samplesets.op import RULES, Op

Role = int | Literal["sum"] | None


@dataclass(frozen=True)
class Sampler:
    """How one output of an op, a sum over rows, is taken apart by sample.

    The functions get the op's arguments. Those that are declared to have rows come cut by sample, [B, *shape], their
    axis of rows holding the rows of one sample; the others come as they are.

    Attributes:
        per_sample: ``(*arguments) -> [B, *shape of the output]``, what the op gives for the rows of each sample.
        square_norms: ``(*arguments) -> [B]``, the squared L2 norms of that, where they are cheaper; float32 or wider.
        weighted: ``(factors [B], *arguments) -> output``, the sum of ``factors[i]`` times sample i's contribution,
            where it is cheaper.
    """

    per_sample: Callable[..., Tensor]
    square_norms: Callable[..., Tensor] | None = None
    weighted: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Declaration:
    """What is claimed of an op.

    Attributes:
        op: the overload.
        rows: of each argument, the axis along which its rows lie, or ``None``.
        outputs: of each output, the axis of its rows; ``"sum"`` for a sum over rows; ``None`` if it depends on no row.
        samplers: of the outputs that are sums.
    """

    op: Any
    rows: tuple[int | None, ...]
    outputs: tuple[Role, ...]
    samplers: Mapping[int, Sampler]

    def results(self, *args: Any) -> tuple[Any, ...]:
        """The outputs, always a tuple."""
        made = self.op(*args)
        return tuple(made) if isinstance(made, tuple | list) else (made,)

    def by_row(self, args: Sequence[Any]) -> list[tuple[int, int]]:
        """Position and axis of the arguments that have rows."""
        found = zip(args, self.rows, strict=False)
        return [(i, axis) for i, (arg, axis) in enumerate(found) if axis is not None and arg is not None]

    def blocks(self, args: Sequence[Any], outer: int, batch: int, inner: int) -> list[Any]:
        """The arguments as a sampler gets them; see :class:`dpcheck.engine.sites.layout.Layout`."""
        cut = list(args)
        for i, axis in self.by_row(args):
            cut[i] = Layout(axis % args[i].dim(), outer, batch, inner).blocks(args[i])
        return cut

    def sampler(self, output: int) -> Sampler:
        """The one that was given, or else the op itself on the rows of one sample after the other."""
        return self.samplers.get(output, Sampler(lambda *cut: self._each(output, cut)))

    def _each(self, output: int, cut: Sequence[Any]) -> Tensor:
        at = [i for i, _ in self.by_row(cut)]
        single = [
            self.results(*(arg[sample] if i in at else arg for i, arg in enumerate(cut)))[output]
            for sample in range(cut[at[0]].shape[0])
        ]
        return torch.stack(single)


@dataclass(frozen=True)
class DeclaredSite(Site):
    """A sum over rows by an op of somebody's own."""

    declaration: Declaration
    output: int
    template: Template
    layout: tuple[int, int, int]
    kind: ClassVar[str] = "registered"

    def _cut(self, values: Sequence[Tensor]) -> list[Any]:
        return self.declaration.blocks(self.template.filled(values), *self.layout)

    def per_sample(self, *values: Tensor) -> Tensor:
        return self.declaration.sampler(self.output).per_sample(*self._cut(values))

    def square_norms(self, *values: Tensor) -> Tensor:
        own = self.declaration.sampler(self.output).square_norms
        return square_norms_of(self.per_sample(*values)) if own is None else own(*self._cut(values))

    def weighted(self, factors: Tensor, *values: Tensor) -> Tensor:
        own = self.declaration.sampler(self.output).weighted
        return weighted_of(factors, self.per_sample(*values)) if own is None else own(factors, *self._cut(values))

    def keeps(self) -> bool:
        sampler = self.declaration.sampler(self.output)
        return sampler.square_norms is None or sampler.weighted is None


def register_site(
    op: Any,
    *,
    rows: Sequence[int | None],
    outputs: Role | Sequence[Role],
    inputs: Any,
    samplers: Mapping[int, Sampler] | None = None,
    examples: int = 60,
) -> None:
    """Declare an op of your own (``torch.library``), so that models that call it are proven and sampled.

    The declaration says that row i of an output depends on row i of the arguments alone (and on arguments without
    rows), and that a ``"sum"`` adds up what every row gives by itself. It is tested on drawn arguments: rows alone
    against rows together, other rows' numbers changed and made NaN, samplers against the op on the rows of one sample.
    Register the op of the forward and that of the backward; what a ``torch.autograd.Function`` calls is seen anyway.

    Args:
        op: an overload, such as ``torch.ops.mine.scale_backward.default``, or what ``torch.library.custom_op`` made.
        rows: for each argument the axis along which rows lie, or ``None``. An argument without rows may not depend on
            samples where the op is used; the op is then unproven.
        outputs: for each output the axis of its rows, ``"sum"``, or ``None`` if it depends on no row.
        inputs: a hypothesis strategy of tuples of arguments; see :func:`dpcheck.testing.arguments`. Draw few rows and
            many, and every option of the op: what is not drawn is not tested.
        samplers: by output, for sums. By default the op runs on the rows of one sample after the other.
        examples: how many arguments are drawn.

    Raises:
        DpcheckError: if the declaration does not fit the op, or an example refutes it or a sampler: with the smallest
            example that was found, as code.
    """
    overload = _overload(op)
    roles = tuple(outputs) if isinstance(outputs, Sequence) and not isinstance(outputs, str) else (outputs,)
    declaration = Declaration(overload, tuple(rows), roles, dict(samplers or {}))
    _fits(declaration)
    complaint = complaint_of(declaration, inputs, examples)
    if complaint is not None:
        raise DpcheckError(
            f"{overload} is not what its declaration says: {complaint.what}",
            where=f"an example, to be run again:\n{complaint.script}",
            next="correct the op, the declaration or the sampler, and register it again",
        )
    RULES[packet_of(overload)] = lambda call: _transfer(declaration, call)
    MAKERS[packet_of(overload)] = lambda place: _make(declaration, place)


def _overload(op: Any) -> Any:
    found = getattr(op, "_opoverload", op)
    found = getattr(found, "default", found) if isinstance(found, torch._ops.OpOverloadPacket) else found
    if not isinstance(found, torch._ops.OpOverload) or namespace_of(found) in TORCH:
        raise DpcheckError(
            f"register_site takes an op of your own, not {op!r}",
            next="pass torch.ops.LIBRARY.NAME.default; ops of torch have rules already",
        )
    return found


def _fits(declaration: Declaration) -> None:
    schema = declaration.op._schema
    wrong = None
    if schema.is_mutable:
        wrong = "it writes to its arguments"
    elif len(declaration.rows) != len(schema.arguments):
        wrong = f"it has {len(schema.arguments)} arguments, and rows names {len(declaration.rows)}"
    elif len(declaration.outputs) != len(schema.returns):
        wrong = f"it has {len(schema.returns)} outputs, and outputs names {len(declaration.outputs)}"
    elif all(axis is None for axis in declaration.rows):
        wrong = "no argument has rows"
    elif any(declaration.outputs[i : i + 1] != ("sum",) for i in declaration.samplers):
        wrong = 'a sampler is given for an output that is no "sum"'
    if wrong is not None:
        raise DpcheckError(f"{declaration.op} cannot be registered: {wrong}", next="see help(dpcheck.engine.Sampler)")


def _line(declaration: Declaration, values: Sequence[Any], batch: int) -> Samples | None:
    """The samples of each row, if they can be told."""
    found = []
    for value, axis in zip(values, declaration.rows, strict=False):
        if isinstance(value, Samples) and axis is None and not value.empty():
            return None
        if isinstance(value, list | tuple) and any(isinstance(v, Samples) for v in value):
            return None
        if isinstance(value, Samples) and axis is not None:
            others = [a for a in range(len(value.shape)) if a != axis % len(value.shape)]
            found.append(reduced(value, others, keepdim=False))
    lengths = {v.shape for v in found}
    return joined(found, lengths.pop(), batch) if len(lengths) == 1 else None


def _transfer(declaration: Declaration, call: Op) -> Any:
    outs = call.out if isinstance(call.out, tuple | list) else (call.out,)
    line = _line(declaration, call.args, call.batch)
    if call.target is not declaration.op or call.kwargs or line is None:
        return unknown(call)

    def one(out: Any, role: Role) -> Samples | None:
        if not isinstance(out, Tensor):
            return None
        if role is None:
            return call.none(out.shape)
        if role == "sum":
            total = reduced(line, None, keepdim=False)
            return call.summed(out.shape, line) if total.mixed() else call.join(total, shape=out.shape)
        shape = [1] * out.dim()
        shape[role] = line.shape[0]
        return call.join(moved(line, lambda t: t.reshape(shape)), shape=out.shape)

    found = [one(out, role) for out, role in zip(outs, declaration.outputs, strict=True)]
    return found if isinstance(call.out, tuple | list) else found[0]


def _make(declaration: Declaration, place: Place) -> Site | None:
    if place.node.target is not declaration.op or place.node.kwargs:
        return None
    seen = [place.samples(arg) if isinstance(arg, fx.Node) else arg for arg in place.node.args]
    line = _line(declaration, seen, place.batch)
    layout = find_layout(line) if line is not None else None
    if layout is None:
        return None
    template, split = Template.of(place.node), (layout.outer, layout.batch, layout.inner)
    return DeclaredSite(template.nodes, place.shape, place.batch, declaration, place.output or 0, template, split)
