"""Values that depend on how many samples there are: seen by comparing the graphs of two batch sizes."""

from __future__ import annotations

from typing import Any

from torch import fx

from dpcheck.capture import Capture
from dpcheck.facts import Event
from dpcheck.ops import TORCH, is_pointwise, namespace_of, packet_of

_FILLS = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}


def size_events(small: Capture, large: Capture) -> list[Event]:
    """Numbers in arithmetic that differ between the two graphs, and a structure that differs.

    ``x / x.shape[0]`` appears as a division by another constant in each graph. Shapes, strides and index ranges may
    differ; numbers that enter the arithmetic may not.
    """
    pairs = list(zip(small.graph.graph.nodes, large.graph.graph.nodes, strict=False))
    if len(small.graph.graph.nodes) != len(large.graph.graph.nodes) or any(a.target != b.target for a, b in pairs):
        odd = _odd(list(small.graph.graph.nodes), list(large.graph.graph.nodes)) or small.losses
        reason = f"is traced differently for {small.batch_size} and for {large.batch_size} samples"
        return [Event("unproven", str(odd.target), odd.meta.get("origin"), ("losses",), reason, sized=True)]
    found = []
    for a, b in pairs:
        if a.op == "call_function" and _numbers(a) != _numbers(b):
            origin, half = a.meta.get("origin"), a.meta["half"]
            reaches = ("losses",) if half == "forward" else ("gradients",)
            found.append(Event("batch-size", str(a.target), origin, reaches, "uses the number of samples in the batch"))
    return found


_AHEAD = 50


def _odd(a: list[fx.Node], b: list[fx.Node]) -> fx.Node | None:
    """The first op that only one of the graphs has; where both go on differently, that of ``a``."""

    def key(node: fx.Node) -> tuple[str, Any]:
        origin = node.meta.get("origin")
        return str(node.target), origin.location if origin else None

    calls = [[(key(n), n) for n in nodes if n.op == "call_function"] for nodes in (a, b)]
    for i, ((mine, node), (theirs, other)) in enumerate(zip(*calls, strict=False)):
        if mine != theirs:
            inserted = mine in [k for k, _ in calls[1][i + 1 : i + _AHEAD]]
            return other if inserted else node  # type: ignore[no-any-return]
    return None


def _numbers(node: fx.Node) -> list[Any]:
    """The plain numbers of a node that enter its arithmetic."""
    # What an op of another library does with a number is not known.
    if is_pointwise(node.target) or namespace_of(node.target) not in TORCH:
        plain = (*node.args, *node.kwargs.values())
        return [a for a in plain if isinstance(a, int | float) and not isinstance(a, bool)]
    at = _FILLS.get(packet_of(node.target))
    return [node.args[at]] if at is not None and len(node.args) > at else []
