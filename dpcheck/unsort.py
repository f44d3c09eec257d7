"""Removes sorts whose order does not matter from a captured graph, keeping what it computes.

Mixtures of experts sort tokens by expert, multiply, and put the rows back. Where a row lies in between depends on all
samples; what becomes of it does not. A value is called *sorted along axis k* when it is some other value ``u`` with
its rows along ``k`` in the order of the permutation: ``value = u.index_select(k, permutation)``. The sorted numbers
and the permutation itself (``u = arange``) are; each rule below says when the result of an op on such values is
sorted again, or, for a sum over the rows or for rows put back, the same without the sort. If every use of a sort is
covered, the graph with the numbers as they were and ``arange`` for the permutation computes the same.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from dpcheck.ops import packet_of
from dpcheck.ordered import INVERSE, Found, Order, axis_of, permutation, value_of

aten = torch.ops.aten

# Counts and numbers of experts are whole in these, as long as they are below 2 ** 24.
_EXACT = frozenset({torch.float32, torch.float64, torch.int32, torch.int64})


def unsorted(graph: fx.GraphModule) -> fx.GraphModule:
    """``graph`` without the sorts of one-dimensional integers whose order does not matter; changed in place."""
    roots = [node for node in graph.graph.nodes if _is_root(node)]
    if not roots:
        return graph
    found = Found()
    for node in graph.graph.nodes:
        _follow(node, found)
    gone = False
    for node, (root, twin) in found.same.items():
        if root not in found.broken:
            _replace(graph, node, root, twin)
            gone = True
    if gone:
        graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        graph.recompile()
    return graph


def _is_root(node: fx.Node) -> bool:
    if node.op != "call_function" or packet_of(node.target) != "sort":
        return False
    val = value_of(node.args[0])
    return val is not None and val.dim() == 1 and not val.is_floating_point() and not val.is_complex()


def _replace(graph: fx.GraphModule, node: fx.Node, root: fx.Node, twin: fx.Node | None) -> None:
    val = value_of(node)
    assert val is not None
    with graph.graph.inserting_before(node):
        if twin is None:
            how: Any = {"dtype": val.dtype, "device": val.device}
            new = graph.graph.call_function(aten.arange.default, (val.shape[0],), how)
        else:
            new = graph.graph.call_function(aten._to_copy.default, (twin,), {"dtype": val.dtype})
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)


def _follow(node: fx.Node, found: Found) -> None:
    """Finds out whether the node's result is sorted; marks the sorts as broken for which no rule says."""
    if node.op == "output":
        found.broken |= {found.orders[n].root for n in node.all_input_nodes if n in found.orders}
        return
    if node.op != "call_function":
        return
    sources = {n: found.orders[n] for n in node.all_input_nodes if n in found.orders}
    sources = {n: order for n, order in sources.items() if order.root not in found.broken}
    if node.target is operator.getitem and _is_root(node.args[0]):  # type: ignore[arg-type]
        root: Any = node.args[0]
        earlier = permutation(root.args[0], found)
        if earlier is None:
            found.orders[node] = Order(root, 0)
            found.same[node] = (root, root.args[0] if node.args[1] == 0 else None)
        else:
            # A permutation sorted: 0, 1, 2, ..., by its inverse.
            found.same[node] = (earlier, None)
            if node.args[1] == 1:
                found.orders[node] = Order(earlier, INVERSE)
        return
    if packet_of(node.target) == "searchsorted":
        root = _groups(node, found)
        if root is not None:
            found.orders[node] = Order(root, 0)
            found.same[node] = (root, root.args[0])
            return
    if not sources or (_is_root(node) and permutation(node.args[0], found) is not None):
        return
    roots = {order.root for order in sources.values()}
    axis = axis_of(node, sources, found) if len(roots) == 1 else NotImplemented
    if axis is NotImplemented:
        found.broken |= roots
    elif axis is not None:
        found.orders[node] = Order(next(iter(roots)), axis)


def _groups(node: fx.Node, found: Found) -> fx.Node | None:
    """The sort whose numbers ``searchsorted(ends, arange, right=True)`` gives back: the group of every sorted row.

    ``ends`` must be the running count of these numbers, which must lie between 0 and the number of groups.
    """
    ends: Any
    places: Any
    ends, places = node.args[:2]
    if not node.kwargs.get("right") or not isinstance(places, fx.Node) or places.target is not aten.arange.default:
        return None
    totals = _uncast(ends)
    counts: Any = _uncast(totals.args[0]) if _exact(totals, "cumsum") else None
    if not _exact(counts, "histc"):
        return None
    numbers, bins, *span = counts.args
    numbers = _uncast(numbers)
    if span != [0, bins - 1] or numbers.target is not operator.getitem or numbers.args[1] != 0:
        return None
    root: Any = numbers.args[0]
    if not _is_root(root) or not _ascends(root) or root in found.broken or _largest(root.args[0]) > bins:
        return None
    val, sorted_numbers = value_of(node), value_of(numbers)
    return root if val is not None and sorted_numbers is not None and val.shape == sorted_numbers.shape else None


def _exact(node: Any, packet: str) -> bool:
    """Whether the node is this op and holds whole numbers exactly."""
    val = value_of(node)
    return val is not None and node.op == "call_function" and packet_of(node.target) == packet and val.dtype in _EXACT


def _uncast(node: Any) -> Any:
    """The node before casts that keep whole numbers."""
    while _exact(node, "_to_copy"):
        node = node.args[0]
    return node


def _ascends(sort: fx.Node) -> bool:
    return not sort.kwargs.get("descending") and not any(arg is True for arg in sort.args[1:])


def _largest(node: Any) -> float:
    """The integers of a node lie in [0, this): places along an axis, as ``topk``, ``max`` or ``argmax`` find them."""
    packet = packet_of(node.target) if node.op == "call_function" and value_of(node) is not None else ""
    if packet == "cat":
        return max(_largest(part) for part in node.args[0])
    if packet in ("reshape", "unsqueeze", "squeeze", "clone") or _exact(node, "_to_copy"):
        return _largest(node.args[0])
    finder = node.args[0] if node.target is operator.getitem and node.args[1] == 1 else node
    found_by = packet_of(finder.target)
    at = {"topk": 2, "max": 1, "min": 1, "argmax": 1, "argmin": 1}.get(found_by)
    if at is None or (finder is node) != found_by.startswith("arg"):
        return float("inf")
    val = value_of(finder.args[0])
    usual = -1 if found_by == "topk" else None
    dim: Any = finder.args[at] if len(finder.args) > at else finder.kwargs.get("dim", usual)
    return float("inf") if val is None or not isinstance(dim, int) else val.shape[dim]
