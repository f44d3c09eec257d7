"""Runs the analysis over a captured graph: one abstract value for every node."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import dpcheck.samplesets.bags
import dpcheck.samplesets.contractions
import dpcheck.samplesets.norms
import dpcheck.samplesets.recurrent
import dpcheck.samplesets.reductions
import dpcheck.samplesets.writes  # noqa: F401  (each import registers its rules)
from dpcheck.capture import Capture
from dpcheck.samplesets.lattice import Samples, joined, moved, none, per_row, reduced, several
from dpcheck.samplesets.linear import adds_terms, of_a_sum
from dpcheck.samplesets.moves import cat, create, move, pad, scatter_in, unknown
from dpcheck.samplesets.op import RULES, Op, broadcast, is_pointwise

_SMALL = 1 << 22
# The same for floating-point constants: places that are computed from a grid of coordinates.
_FEW = 1 << 16
_CHANCE = torch.Tag.nondeterministic_seeded


@dataclass(frozen=True)
class Step:
    """What the analysis knows of one op node.

    Attributes:
        value: :class:`Samples`, or a list of them (and None) for several outputs.
        fresh: samples first meet here: an output depends on several samples, no input does, or a sum over samples
            is used in a way that is not linear.
        ruled: whether the op has a transfer rule.
    """

    value: Any
    fresh: bool
    ruled: bool

    @property
    def outputs(self) -> list[Samples]:
        """The values of all outputs that have one."""
        return _leaves(self.value)

    def sums(self) -> bool:
        """Whether an output depends on several samples: in a proven graph, whether it is a sum over them."""
        return any(v.mixed() for v in self.outputs)


def interpret(capture: Capture, *, mended: bool = False, weights_only: bool = False) -> dict[fx.Node, Step]:
    """The abstract value of every node.

    Args:
        mended: go on behind each op of the forward at which samples meet as if it kept them apart, so that a second
            such op behind it is found as well.
        weights_only: the batch is taken for a constant and the weights of the losses for sums: what is linear in these
            is ``additive``.
    """
    batch = capture.batch_size
    steps: dict[fx.Node, Step] = {}
    known: dict[fx.Node, Any] = _constants(capture)
    rows = set() if weights_only else {*capture.batch, capture.tangent}
    for node in capture.graph.graph.nodes:
        val = node.meta.get("val")
        if node.op == "placeholder":
            seed = per_row(val.shape, batch) if node in rows else none(val.shape, batch, const=known.get(node))
            if weights_only and node is capture.tangent:
                seed = several(val.shape, batch, additive=True)
            steps[node] = Step(seed, False, True)
        elif node.op == "get_attr":
            attribute = getattr(capture.graph, node.target)
            const = _small(attribute)
            steps[node] = Step(none(attribute.shape, batch, const=const), False, True)
        elif node.op == "call_function":
            step = _step(node, steps, batch)
            if mended and step.fresh and node.meta["half"] == "forward":
                step = replace(step, value=_mended(node, steps, batch))
            steps[node] = step
    return steps


def _mended(node: fx.Node, steps: dict[fx.Node, Step], batch: int) -> Any:
    """What the op would give if it worked on every element by itself; statistics would depend on nothing."""
    source = steps[node.all_input_nodes[0]].value if node.all_input_nodes else None

    def each(out: Any) -> Samples | None:
        if not isinstance(out, Tensor):
            return None
        kept = isinstance(source, Samples) and source.shape == out.shape and not source.mixed()
        return source if kept else none(out.shape, batch)

    val = node.meta.get("val")
    if isinstance(val, list | tuple):
        return [each(out) for out in val]
    return each(val) if isinstance(val, Tensor) else none((), batch)


def _constants(capture: Capture) -> dict[fx.Node, Tensor]:
    """Integer and boolean buffers that the forward does not write: position ids, index tables, masks."""
    buffers = dict(capture.model_buffers)
    return {
        node: buffers[name].detach()
        for name, node in capture.buffers.items()
        if capture.buffers_after[name] is node and _small(buffers[name]) is not None
    }


def _small(t: Any) -> Tensor | None:
    if not isinstance(t, Tensor) or t.is_floating_point() or t.is_complex() or t.numel() > _SMALL:
        return None
    if type(t) is not Tensor and type(t) is not torch.nn.Parameter:
        return None
    return t.detach().cpu()


def _step(node: fx.Node, steps: dict[fx.Node, Step], batch: int) -> Step:
    if node.target is operator.getitem:
        value = steps[node.args[0]].value[node.args[1]]  # type: ignore[index]
        return Step(value, False, True)

    def look(arg: Any) -> Any:
        return steps[arg].value if isinstance(arg, fx.Node) else arg

    args, kwargs = pytree.tree_map(look, (node.args, node.kwargs), is_leaf=lambda x: isinstance(x, fx.Node))
    out = node.meta.get("val")
    op = Op(node.target, tuple(args), dict(kwargs), out, node.meta["half"] == "backward", batch)
    values = op.values()
    if not isinstance(out, Tensor | list | tuple):
        return _number(op, values)
    mixed = [v for v in values if v.mixed()]
    ruled = op.packet in RULES or is_pointwise(op.target)
    summed = any(v.additive for v in mixed) and RULES.get(op.packet) is not create
    if summed or (mixed and not _by_element(op)):
        result = of_a_sum(op, values)
        broken = all(v.additive for v in mixed) and not all(r.additive for r in _leaves(result) if r.mixed())
        return Step(result, broken, ruled)
    lost = op.packet.startswith("as_strided") and not _dense(node.args[0])
    order = _stored(node.args[0]) if lost and op.packet == "as_strided" else None
    if order is not None:
        op, lost = replace(op, args=(moved(op.args[0], lambda t: t.permute(order)), *op.args[1:])), False
    if lost or (op.packet == "embedding_renorm" and not _looked_up(node)):
        return Step(unknown(op), not mixed, ruled)
    result = _transfer(op)
    result = _with_constant(op, values, result)
    if not mixed and isinstance(result, Samples) and result.mixed() and adds_terms(op, values):
        result = result.with_(additive=True)
    met = not mixed and any(r.mixed() and not r.additive for r in _leaves(result))
    if isinstance(out, Tensor) and out.dtype is torch.bool:
        result = result.with_(boolean=True)
    return Step(result, met, ruled)


def _by_element(op: Op) -> bool:
    """Whether elements on which no two samples meet stay apart from those on which they do."""
    return is_pointwise(op.target) or RULES.get(op.packet) in (create, move, cat, pad, scatter_in)


def _dense(source: Any) -> bool:
    """Whether the tensor is its whole storage in row-major order, so that strides mean what they mean on the mask."""
    val = source.meta["val"]
    return bool(val.is_contiguous()) and _bytes(val) == val.numel() * val.element_size()


def _stored(source: Any) -> list[int] | None:
    """The axes in the order in which they lie in storage, if the tensor fills its storage without gaps or overlaps."""
    val = source.meta["val"]
    order = sorted(range(val.dim()), key=lambda axis: (-val.stride(axis), -val.shape[axis]))
    return order if val.permute(order).is_contiguous() and val.numel() * val.element_size() == _bytes(val) else None


def _bytes(val: Tensor) -> int:
    return int(val.untyped_storage().nbytes())


def _looked_up(node: fx.Node) -> bool:
    """Whether the rescaled table is only looked up with the indices that rescaled it, or left as an output."""
    lookup = torch.ops.aten.embedding.default
    uses = [user for user in node.users if user.op != "output"]
    return all(user.target is lookup and user.args[:2] == (node, node.args[1]) for user in uses)


def _number(op: Op, values: list[Samples]) -> Step:
    """A Python number taken from a tensor (``.item()``), or computed from such numbers."""
    parts = [moved(reduced(v, None), lambda t: t.reshape(())) for v in values]
    value = joined(parts, (), op.batch)
    met = value.mixed() and not any(v.mixed() for v in values)
    return Step(value.with_(additive=False), met, True)


def _leaves(result: Any) -> list[Samples]:
    found = result if isinstance(result, list | tuple) else [result]
    return [r for r in found if isinstance(r, Samples)]


def _transfer(op: Op) -> Any:
    rule = RULES.get(op.packet)
    if rule is not None:
        try:
            return rule(op)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
            # A call that the rule was not written for (a Python number from data as a size, say) is not proven.
            return unknown(op)
    if is_pointwise(op.target):
        return op.each(lambda out: _elementwise(op, out))
    return unknown(op)


def _elementwise(op: Op, out: Tensor) -> Samples:
    merged = joined(op.values(), broadcast(*op.values()), op.batch)
    # A loss with a reduction is elementwise up to its last step.
    return merged if tuple(merged.shape) == tuple(out.shape) else op.join(reduced(merged, None, False), shape=out.shape)


def _with_constant(op: Op, values: list[Samples], result: Any) -> Any:
    """Follows values that depend on neither data, weights nor chance, for the ops that index with them."""
    out = op.out
    if not isinstance(out, Tensor) or out.is_complex() or out.numel() > (_FEW if out.is_floating_point() else _SMALL):
        return result
    if any(v.const is None for v in values) or _CHANCE in op.target.tags or op.packet.startswith("empty"):
        return result
    if op.packet == "new_empty" or not isinstance(result, Samples) or not result.empty():
        return result

    def concrete(x: Any) -> Any:
        return x.const if isinstance(x, Samples) else x

    args, kwargs = pytree.tree_map(concrete, (op.args, op.kwargs), is_leaf=lambda x: isinstance(x, Samples))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return result.with_(const=op.target(*args, **kwargs))
