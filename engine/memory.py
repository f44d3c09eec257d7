"""Memory of one call of a plan, from the shapes in it, and how many samples fit into a budget."""

from __future__ import annotations

import math
from typing import Any

from dpcheck.engine.plan import Plan
from dpcheck.engine.sites.base import Part, Site, weighted_of, wide
from dpcheck.engine.sites.convolution import ConvolutionSite
from torch import Tensor, fx
from torch.utils import _pytree as pytree

# Of the analysis, for every element of the largest value: 637 MiB on the GPT of benchmarks/models.py, 16 on the MLP.
_BYTES_AN_ELEMENT = 40


def peak_bytes(plan: Plan) -> int:
    """Bytes that are alive at most at once during a call, beyond parameters, buffers and batch.

    Every value lives from the node that makes it to its last use, views with what they are views of.
    """
    nodes = list(plan.module.graph.nodes)
    sizes = _Sizes(plan)
    born: dict[Any, tuple[int, int]] = {}
    dies: dict[Any, int] = {}
    for place, node in enumerate(nodes):
        last = max((sizes.place[user] for user in node.users), default=place)
        for storage, size in sizes.storages(node):
            born.setdefault(storage, (place, size))
            dies[storage] = max(dies.get(storage, 0), last)
    change = [0] * (len(nodes) + 1)
    for storage, (place, size) in born.items():
        change[place] += size
        change[dies[storage] + 1] -= size
    now = most = 0
    for place, node in enumerate(nodes):
        now += change[place]
        most = max(most, now + sizes.scratch(node))
    return most


def samples_within(plan: Plan, size: int, budget: int) -> int:
    """How many of the ``size`` samples of a plan to compute at once, in equal parts: at least 2, or 1 of 1."""
    if size <= 2 or peak_bytes(plan) <= budget:
        return size
    parts = math.ceil(size / min(max(2, int(_stepping(plan, size, budget))), size - 1))
    return max(2, math.ceil(size / parts))


def room(plan: Plan, size: int, budget: int) -> int:
    """How many samples like the ``size`` of a plan would take ``budget`` bytes, or as much to be planned; may be 0."""
    return max(0, int(min(_stepping(plan, size, budget), size * budget / max(1, planning_bytes(plan)))))


def _stepping(plan: Plan, size: int, budget: int) -> float:
    # What does not grow with the number of samples are the gradients.
    peak = peak_bytes(plan)
    fixed = min(peak, gradient_bytes(plan))
    return size * (budget - fixed) / max(1, peak - fixed)


def planning_bytes(plan: Plan) -> int:
    """What the analysis takes at most: a few owners for every element of the largest value, as measured."""
    values = [t for node in plan.module.graph.nodes for t in pytree.tree_leaves(node.meta.get("val"))]
    return _BYTES_AN_ELEMENT * max((t.numel() for t in values if isinstance(t, Tensor)), default=0)


def gradient_bytes(plan: Plan) -> int:
    """Of the clipped sum."""
    return 4 * sum(math.prod(c.shape) for c in plan.contributions)


class _Sizes:
    def __init__(self, plan: Plan) -> None:
        nodes = list(plan.module.graph.nodes)
        self.place = {node: i for i, node in enumerate(nodes)}
        self.shapes = {id(c.suffix): c.shape for c in plan.contributions}
        self.batch = plan.sites[0].batch if plan.sites else 1
        self.given = {key for n in nodes if n.op in ("placeholder", "get_attr") for key, _ in self._of_values(n)}

    def storages(self, node: fx.Node) -> list[tuple[Any, int]]:
        """What a node's value is stored in, with bytes; nothing for inputs."""
        if node.op != "call_function":
            return []
        if "val" in node.meta:
            return [own for own in self._of_values(node) if own[0] not in self.given]
        return [(node, self.own(node))]

    def _of_values(self, node: fx.Node) -> list[tuple[Any, int]]:
        found = []
        for t in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                found.append((storage._cdata, storage.nbytes()))
        return found

    def bytes_of(self, node: fx.Node) -> int:
        val = node.meta.get("val")
        return 4 * val.numel() if isinstance(val, Tensor) else self.own(node)

    def own(self, node: fx.Node) -> int:
        """Bytes of what a sampler or the like gives, which has no fake value."""
        owner, name = getattr(node.target, "__self__", None), getattr(node.target, "__name__", "")
        if isinstance(owner, Site):
            whole = 4 * math.prod(owner.shape)
            if _keeps_whole(owner, name):
                return owner.batch * whole
            if name == "kept":
                return min(owner.batch * whole, max(owner.operand_bytes(), whole))
            return whole if name.endswith("weighted") else 8 * owner.batch
        if isinstance(owner, Part):
            return sum(map(self.bytes_of, node.all_input_nodes))
        if id(owner) in self.shapes:
            return 4 * self.batch * math.prod(self.shapes[id(owner)])
        if node.target is wide:
            return self.bytes_of(node.all_input_nodes[0])
        if node.target is weighted_of:
            return self.bytes_of(node.all_input_nodes[1]) // self.batch
        return 8 * self.batch

    def scratch(self, node: fx.Node) -> int:
        """Bytes that a sampler takes while it runs."""
        owner, name = getattr(node.target, "__self__", None), getattr(node.target, "__name__", "")
        if isinstance(owner, ConvolutionSite) and _keeps_whole(owner, name):
            # The pieces are there until they are joined.
            return self.own(node)
        if isinstance(owner, Site) and name == "square_norms":
            # Copies of an operand, its rows by sample, for both sides of a Gram.
            return 2 * max((self.bytes_of(n) for n in node.all_input_nodes), default=0)
        if isinstance(owner, Site) and name == "weighted":
            # The smaller operand, scaled; a convolution's backward also asks for a weight.
            scaled = min((self.bytes_of(n) for n in node.all_input_nodes[1:]), default=0)
            return scaled + (self.own(node) if isinstance(owner, ConvolutionSite) else 0)
        return 0


def _keeps_whole(site: Site, name: str) -> bool:
    """Whether the method gives [B, *shape]: what is kept is that, unless the site has a smaller form."""
    return name == "per_sample" or (name == "kept" and type(site).kept is Site.kept)
