"""Numbers made of all tokens of a batch, as the balancing loss of a mixture of experts: one for each sample instead."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dpcheck.errors import DpcheckError
from dpcheck.fixes.own_axes import EXTREMES, KEEP_SHAPE, Statistic, of_node

_WHY = "the number that it makes of all tokens has no form for one sample"


def of_numbers(graph: fx.Graph, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """Those of ``nodes`` that are statistics over axis 0 from which nothing follows but numbers in the output."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    found = []
    for node in nodes:
        statistic = of_node(node, values)
        results = [n for n in output.all_input_nodes if n in _following(graph, [node])]
        if statistic is not None and 0 in statistic.before and results:
            found += [node] if all(_is_number(values.get(n)) for n in results) else []
    return found


def _following(graph: fx.Graph, nodes: Collection[fx.Node]) -> list[fx.Node]:
    """``nodes`` and what is computed from them, in the order of the graph, without the output."""
    found: dict[fx.Node, None] = dict.fromkeys(nodes)
    for node in graph.nodes:
        if node.op != "output" and any(n in found for n in node.all_input_nodes):
            found[node] = None
    return [node for node in graph.nodes if node in found]


def apart(graph: fx.Graph, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any], rows: int) -> list[str]:
    """Takes statistics over the tokens of each sample, and computes with them sample by sample.

    A statistic over axis 0 of [B, T, E] or of [B * T, E] becomes one over the tokens of each sample, [B, E]; what is
    computed from statistics alone runs under ``torch.vmap``. The module then gives [B] where it gave one number.

    Args:
        nodes: of :func:`of_numbers`.
        values: what every node holds in one call, of ``rows`` samples.

    Returns:
        What is changed.

    Raises:
        DpcheckError: if something else is computed from a statistic than numbers for the batch.
    """
    found = [(node, statistic) for node in nodes if (statistic := of_node(node, values)) is not None]
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    first = next(n for n in inputs if isinstance(values[n], Tensor) and values[n].shape[:1] == (rows,))
    with graph.inserting_after(inputs[-1]):
        shape = graph.call_function(getattr, (first, "shape"))
    with graph.inserting_after(shape):
        size = graph.call_function(operator.getitem, (shape, 0))
    _group_rows_of_layers(graph, values, size, rows)
    new = {node: _of_each_sample(graph, node, statistic, size, rows) for node, statistic in found}
    _each_alone(graph, new, values)
    names = ", ".join(dict.fromkeys(statistic.name for _, statistic in found))
    return [f"{names} over the tokens of each sample by itself, so that there is a number for each sample"]


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()


def _of_each_sample(graph: fx.Graph, node: fx.Node, statistic: Statistic, size: fx.Node, rows: int) -> fx.Node:
    """[B, ...] in the place of a statistic over samples and tokens."""
    x = statistic.tensor
    if statistic.name in KEEP_SHAPE or (statistic.name in EXTREMES and statistic.named) or x.shape[0] % rows:
        raise DpcheckError(_WHY)
    function = EXTREMES.get(statistic.name, statistic.function)
    # Samples, their tokens (one where axis 0 is that of the samples), and what else there was.
    after = (1, *(axis + 1 for axis in statistic.before if axis))
    with graph.inserting_before(node):
        split = graph.call_method("unflatten", (node.args[0], 0, (size, -1)))
        return graph.call_function(function, (split,), {**statistic.options, "dim": after})


def _group_rows_of_layers(graph: fx.Graph, values: Mapping[fx.Node, Any], size: fx.Node, rows: int) -> None:
    """Rows of several layers one after the other, [L * B * T, E], are put in the order of samples."""
    for node in list(graph.nodes):
        parts: Any = node.args[0] if node.target in (torch.cat, torch.concat) and node.args else None
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        held = [values.get(part) for part in parts] if isinstance(parts, list | tuple) else []
        if axis != 0 or len(held) < 2 or any(not isinstance(t, Tensor) or t.shape[0] % rows for t in held):
            continue
        with graph.inserting_before(node):
            split = [graph.call_method("unflatten", (part, 0, (size, -1))) for part in parts]
            joined = graph.call_function(torch.cat, (split, 1))
            new = graph.call_method("flatten", (joined, 0, 1))
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _each_alone(graph: fx.Graph, new: Mapping[fx.Node, fx.Node], values: Mapping[fx.Node, Any]) -> None:
    """What follows from statistics alone is computed for each sample by itself, from ``new``."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    tail = [node for node in _following(graph, new) if node not in new]
    results = [n for n in output.all_input_nodes if n in tail or n in new]
    others = dict.fromkeys(n for node in tail for n in node.all_input_nodes if n not in tail and n not in new)
    if any(isinstance(values.get(n), Tensor) for n in others) or any(n.op == "call_module" for n in tail):
        raise DpcheckError(_WHY)
    inner = fx.Graph()
    inside = {old: inner.placeholder(f"value_{i}") for i, old in enumerate((*new, *others))}
    for node in tail:
        inside[node] = inner.node_copy(node, inside.__getitem__)
    inner.output(tuple(inside[node] for node in results))
    alone = fx.GraphModule(nn.Module(), inner).forward
    axes = tuple(0 if old in new else None for old in (*new, *others))

    def per_sample(*given: Any) -> Any:
        return torch.vmap(alone, in_dims=axes)(*given)

    with graph.inserting_before(output):
        called = graph.call_function(per_sample, (*new.values(), *others))
        for i, node in enumerate(results):
            output.replace_input_with(node, graph.call_function(operator.getitem, (called, i)))
    for node in (*reversed(tail), *reversed(list(new))):
        graph.erase_node(node)
