"""Which results of ops on sorted values are sorted again: the rules of :mod:`dpcheck.unsort`."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from dpcheck.ops import is_pointwise, packet_of

aten = torch.ops.aten

_FILLED = frozenset({"zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full",
                     "scalar_tensor"})  # fmt: skip
_EMPTY = frozenset({"empty", "empty_like", "new_empty"})
_SUMS = frozenset({"sum", "mean", "amax", "amin", "any", "all"})
INVERSE = -1  # in the place of an axis: the inverse permutation


@dataclass(frozen=True)
class Order:
    """The sort that put a value in order, and the axis along which it did (or ``INVERSE``)."""

    root: fx.Node
    axis: int


@dataclass
class Found:
    """What one pass over the graph found out.

    Attributes:
        orders: the sorted values.
        broken: sorts with a use that no rule covers.
        same: node: the node that it equals once the sort is gone (``None``: the permutation or its inverse).
    """

    orders: dict[fx.Node, Order] = field(default_factory=dict)
    broken: set[fx.Node] = field(default_factory=set)
    same: dict[fx.Node, tuple[fx.Node, fx.Node | None]] = field(default_factory=dict)


def value_of(node: Any) -> Tensor | None:
    val = node.meta.get("val") if isinstance(node, fx.Node) else None
    return val if isinstance(val, Tensor) else None


def permutation(node: Any, found: Found) -> fx.Node | None:
    """The sort whose permutation (not its inverse) a node is."""
    order = found.orders.get(node)
    if order is None or order.axis == INVERSE or order.root in found.broken:
        return None
    return order.root if found.same.get(node, (None, node))[1] is None else None


def axis_of(node: fx.Node, sources: dict[fx.Node, Order], found: Found) -> Any:
    """The axis along which the result is sorted, None if it is as without the sort, NotImplemented if unknown."""
    packet, out = packet_of(node.target), node.meta.get("val")
    if packet in _FILLED | _EMPTY:
        return None
    if packet in ("index", "_unsafe_index", "index_select"):
        return _read(node, sources)
    if packet in ("index_put", "_unsafe_index_put", "index_add"):
        return _written(node, sources, found)
    if any(order.axis == INVERSE for order in sources.values()):
        return NotImplemented
    if packet == "histc":
        return None
    if node.target is operator.getitem:
        return next(iter(sources.values())).axis
    if is_pointwise(node.target) or packet == "clone":
        return _aligned(node, sources, out)
    if packet in ("mm", "bmm"):
        return _product(node, sources)
    if packet == "cat":
        axes = {sources[n].axis if n in sources else None for n in node.all_input_nodes}
        dim = (node.args[1] if len(node.args) > 1 else 0) % _rank(node)  # type: ignore[operator]
        return axes.pop() if len(axes) == 1 and dim not in axes else NotImplemented
    source: Any = node.args[0]
    if len(sources) != 1 or source not in sources:
        return NotImplemented
    return _moved(node, packet, sources[source].axis, value_of(source), out)


def _aligned(node: fx.Node, sources: dict[fx.Node, Order], out: Any) -> Any:
    """An elementwise op: every operand is sorted along the same axis of the result, or constant along it."""
    if not isinstance(out, Tensor):
        return NotImplemented
    axes = {order.axis + out.dim() - _rank(n) for n, order in sources.items()}
    if len(axes) != 1:
        return NotImplemented
    axis = axes.pop()
    if axis < 0 or any(out.shape[axis] != n.meta["val"].shape[order.axis] for n, order in sources.items()):
        return NotImplemented
    for other in node.all_input_nodes:
        val = value_of(other)
        if val is None:
            return NotImplemented
        at = axis - (out.dim() - val.dim())
        if other not in sources and at >= 0 and val.shape[at] != 1 and packet_of(other.target) not in _FILLED:
            return NotImplemented
    return axis


def _rank(node: fx.Node) -> int:
    val = value_of(node)
    return -1 if val is None else val.dim()


def _product(node: fx.Node, sources: dict[fx.Node, Order]) -> Any:
    left: Any
    right: Any
    left, right = node.args[:2]
    rank = _rank(left)
    a = sources[left].axis if left in sources else None
    b = sources[right].axis if right in sources else None
    if a == rank - 1 and b == rank - 2:
        return None  # the sum over the rows
    if a == b == 0 and rank == 3:
        return 0
    if a == rank - 2 and b is None:
        return rank - 2
    if b == rank - 1 and a is None:
        return rank - 1
    return NotImplemented


def _moved(node: fx.Node, packet: str, axis: int, val: Tensor | None, out: Any) -> Any:
    """Ops on one tensor that leave the axis whole, and reductions."""
    if val is None:
        return NotImplemented
    rank = val.dim()
    if packet in _SUMS:
        dims: Any = node.args[1] if len(node.args) > 1 else None
        dims = (
            range(rank)
            if dims is None or dims == []
            else [d % rank for d in ([dims] if isinstance(dims, int) else dims)]
        )
        if axis in dims:
            return None
        keep = isinstance(out, Tensor) and out.dim() == rank
        return axis if keep else axis - sum(d < axis for d in dims)
    if packet in ("transpose", "t"):
        one, two = (0, 1) if packet == "t" else (d % rank for d in node.args[1:3])  # type: ignore[operator]
        return two if axis == one else one if axis == two else axis
    if packet == "permute":
        return [d % rank for d in node.args[1]].index(axis)  # type: ignore[operator, union-attr]
    if packet == "unsqueeze":
        return axis + (node.args[1] % (rank + 1) <= axis)  # type: ignore[operator]
    if packet in ("split", "split_with_sizes", "slice", "select", "slice_backward", "select_backward", "_softmax"):
        at = {"split": 2, "split_with_sizes": 2, "slice_backward": 2, "select_backward": 2}.get(packet, 1)
        given = node.args[at] if len(node.args) > at else 0
        wide = rank + (packet == "select_backward")
        dim = given % wide  # type: ignore[operator]
        if packet == "select":
            return NotImplemented if dim == axis else axis - (dim < axis)
        if packet == "select_backward":
            return axis + (dim <= axis)
        return NotImplemented if dim == axis else axis
    if packet in ("reshape", "view", "squeeze", "expand", "_unsafe_view") and isinstance(out, Tensor):
        return _reshaped(packet, axis, val, out)
    return NotImplemented


def _reshaped(packet: str, axis: int, val: Tensor, out: Tensor) -> Any:
    """The axis of the result that is the sorted one: as long, and with as much before it."""
    if packet == "expand":
        at = axis + out.dim() - val.dim()
        return at if out.shape[at] == val.shape[axis] else NotImplemented
    before = val.shape[:axis].numel()
    for at, size in enumerate(out.shape):
        if size == val.shape[axis] and out.shape[:at].numel() == before and size > 1:
            return at
    return NotImplemented


def _place(node: fx.Node) -> tuple[int, fx.Node] | None:
    """The axis that is indexed and its index, when it is one vector of numbers."""
    if packet_of(node.target) in ("index_select", "index_add"):
        axis: Any = node.args[1]
        given: list[tuple[int, Any]] = [(axis % max(_rank(node), 1), node.args[2])]
    else:
        given = [(axis, pick) for axis, pick in enumerate(node.args[1]) if pick is not None]  # type: ignore[arg-type]
    val = value_of(given[0][1])
    if len(given) != 1 or val is None or val.dim() != 1 or val.dtype in (torch.bool, torch.uint8):
        return None
    return given[0]


def _read(node: fx.Node, sources: dict[fx.Node, Order]) -> Any:
    """Rows read at the permutation or at numbers made of it are sorted; sorted rows read at its inverse no more."""
    base: Any = node.args[0]
    place = _place(node)
    if place is None or place[1] not in sources:
        return NotImplemented
    at, pick = place
    if sources[pick].axis == INVERSE:
        return None if base in sources and sources[base].axis == at else NotImplemented
    return NotImplemented if base in sources else at


def _written(node: fx.Node, sources: dict[fx.Node, Order], found: Found) -> Any:
    """Sorted rows added up, or each written to a place of its own; rows handed back to where they were taken from."""
    base: Any = node.args[0]
    adds = packet_of(node.target) == "index_add"
    values: Any = node.args[3 if adds else 2]
    accumulate = adds or (len(node.args) > 3 and bool(node.args[3]))
    place = _place(node)
    filled = packet_of(base.target)
    if place is None or place[1] not in sources or base in sources:
        return NotImplemented
    at, pick = place
    if at != 0 and not adds:
        return NotImplemented
    if sources[pick].axis == INVERSE:
        plain = filled in _FILLED and values not in sources and _whole(node, pick, at)
        return at if plain else NotImplemented
    mine = permutation(pick, found) is not None
    if values in sources:
        rows = sources[values].axis == at + _rank(values) - _rank(node)
        return None if rows and (accumulate or mine) else NotImplemented
    if mine and not accumulate and values.target is aten.arange.default and _whole(node, pick, 0):
        found.same[node] = (sources[pick].root, None)
        return INVERSE
    return NotImplemented


def _whole(node: fx.Node, pick: fx.Node, axis: int) -> bool:
    """As many places as there are rows."""
    out, index = value_of(node), value_of(pick)
    return out is not None and index is not None and out.shape[axis] == index.shape[0]
