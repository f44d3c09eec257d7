"""How much arithmetic a captured graph is: what decides how thoroughly it can be run again."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry


def flops(graph: fx.GraphModule) -> int:
    """Floating-point operations of the products, convolutions and attentions in a graph, by torch's own formulas."""
    total = 0
    for node in graph.graph.nodes:
        formula: Any = flop_registry.get(getattr(node.target, "overloadpacket", None))
        if formula is not None:
            args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
            total += int(formula(*args, **kwargs, out_val=node.meta["val"]))
    return total
