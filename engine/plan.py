"""The plan: the captured graph rewritten to book-keeping (Bu et al. 2023, "Book-Keeping").

One forward and one backward. At each contraction site the unclipped contraction is left out; the squared norm of every
sample's contribution is taken as soon as its operands are known; after the last one come the clip factors, one weighted
contraction a site, and what lies downstream of the sites, applied once to the sums. Or, of two backwards, the second
with the clip factors as weights of the losses (see :mod:`dpcheck.engine.second`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from dpcheck.engine.contributions import Contribution, Finder
from dpcheck.engine.kinds import FLAT, Grouping
from dpcheck.engine.precision import without_autocast
from dpcheck.engine.sites.base import Part, Site, is_narrow, square_norms_of, weighted_of, wide
from dpcheck.engine.storages import Second
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dpcheck import kernels
from dpcheck.samplesets import Analysis
from dpcheck.samplesets.op import packet_of

_MASKS = {
    "convolution_backward": 10,
    "native_layer_norm_backward": 7,
    "native_group_norm_backward": 9,
    "native_batch_norm_backward": 9,
}

_KERNELS: dict[Any, Any] = {torch.ops.aten.mm.default: kernels.matmul, torch.ops.aten.addmm.default: kernels.addmm}

PlanResult = tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """An executable plan for batches of one shape.

    Attributes:
        module: ``module(*inputs, ones [B], weights [B], max_grad_norm) -> (losses [B], norms [B, G], gradients,
            buffers)``.
        sites, contributions: what a person may print (see :mod:`dpcheck.engine.estimates`).
        places: of each site, the ops of the captured graph that it stands for.
        kept: positions of the sites whose contributions are kept until the clip factors are known.
        backwards: 1, or 2 where the second computes the clipped sum and nothing is kept for it.
        compiled: ``module`` by ``torch.compile``, if that was asked for.
    """

    module: fx.GraphModule
    sites: tuple[Site, ...]
    places: tuple[tuple[fx.Node, ...], ...]
    kept: frozenset[int]
    contributions: tuple[Contribution, ...]
    gradients: tuple[str, ...]
    buffers: tuple[str, ...]
    grouping: Grouping
    backwards: int = 1
    compiled: Callable[..., Any] | None = None


def make_plan(analysis: Analysis, *, per_sample: bool = False, grouping: Grouping = FLAT, backwards: int = 1) -> Plan:
    """Plan the step for the shapes of the captured batch.

    Args:
        analysis: proven, of a capture with at least two samples.
        per_sample: return every sample's gradients, [B, *shape], in the place of clipped sums.
        grouping: which parameters are clipped together.
        backwards: 2 only where gradients are linear in the weights of the losses, for one group.

    Raises:
        NotCovered: naming the op and the parameter that no sampler covers.
    """
    return _Planner(analysis, per_sample, grouping, backwards).plan()


def compiled(plan: Plan) -> Plan:
    """The same, its module compiled when it first runs (``torch.compile``)."""
    return replace(plan, compiled=torch.compile(plan.module, dynamic=False))


def run_plan(plan: Plan, model: nn.Module, batch: Any, weights: Tensor, max_grad_norm: float) -> PlanResult:
    """Losses [B], norms [B, G], gradients and the buffers' new values by name; nothing of the model is written."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    leaves = [x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor)]
    double = any(p.dtype in (torch.float64, torch.complex128) for p in parameters.values())
    dtype = torch.float64 if double else torch.float32
    with torch.no_grad(), without_autocast():
        # As a number it would be compiled in, and again for every other one.
        bound = max_grad_norm if plan.compiled is None else weights.new_tensor(max_grad_norm, dtype=dtype)
        losses, norms, grads, after = (plan.module if plan.compiled is None else plan.compiled)(
            *parameters.values(), *buffers.values(), *leaves, torch.ones_like(weights), weights.to(dtype), bound
        )
    return losses, norms, dict(zip(plan.gradients, grads, strict=True)), dict(zip(plan.buffers, after, strict=True))


class _Planner:
    def __init__(self, analysis: Analysis, per_sample: bool, grouping: Grouping, backwards: int) -> None:
        self.capture, self.steps, self.each = analysis.capture, analysis.steps, per_sample
        self.grouping, self.backwards = grouping, backwards
        self.finder = Finder(analysis)
        self.graph = fx.Graph()
        self.env: dict[fx.Node | Part, fx.Node] = {}
        # Sites of which [B, *shape] is kept, and not the smallest form.
        self.whole: set[int] = set()

    @property
    def sites(self) -> list[Site]:
        return self.finder.sites

    def plan(self) -> Plan:
        contributions = self.finder.contributions()
        buffers = [n for n, after in self.capture.buffers_after.items() if after is not self.capture.buffers[n]]
        return self._emit(contributions, buffers)

    def _group(self, c: Contribution) -> int:
        return self.grouping.of.get(c.name, 0)

    def _emit(self, contributions: list[Contribution], buffers: list[str]) -> Plan:
        again = self._again(contributions) if self.backwards == 2 else []
        needed = self._needed(contributions, buffers, again)
        for node in self.capture.graph.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self.graph.node_copy(node)
        weights, clip = self.graph.placeholder("weights"), self.graph.placeholder("max_grad_norm")
        direct = {c.sites[0] for c in contributions if c.isometric}
        indirect = {i for c in contributions if not c.isometric for i in c.sites}
        kept: dict[int, fx.Node] = {}
        norms: dict[int, fx.Node] = {}
        waiting = {i: set(site.sources) for i, site in enumerate(self.sites)}

        def arrive(node: fx.Node) -> None:
            for i, site in enumerate(self.sites):
                if node in waiting[i]:
                    waiting[i].discard(node)
                    if not waiting[i]:
                        self._measure(i, site, i in direct, i in indirect, kept, norms)

        for node in self.capture.graph.graph.nodes:
            if node.op == "placeholder":
                arrive(node)
            elif node in needed:
                self.env[node] = self._copy(node)
                arrive(node)
        squares: list[list[fx.Node]] = [[] for _ in self.grouping.names]
        for c in contributions:
            if c.isometric:
                squares[self._group(c)].append(norms[c.sites[0]])
        each: dict[str, fx.Node] = {}
        for c in contributions:
            if not c.isometric or self.each:
                each[c.name] = self._through_suffix(c, kept)
                if not c.isometric:
                    squares[self._group(c)].append(self.graph.call_function(square_norms_of, (each[c.name],)))
        norm = self.graph.call_function(_total, (squares, weights))
        gradients = each
        if not self.each:
            factors = self.graph.call_function(self.grouping.factors, (norm, clip, weights))
            if self.backwards == 2:
                gradients = self._second(contributions, factors, again)
            else:
                gradients = self._clip(contributions, factors, kept, each)
        after = [self.env[self.capture.buffers_after[name]] for name in buffers]
        self.graph.output((self.env[self.capture.losses], norm, list(gradients.values()), after))
        module = fx.GraphModule(self.capture.graph, self.graph)
        places, names = tuple(self.finder.places), (tuple(gradients), tuple(buffers))
        held = frozenset(kept) if self.backwards == 1 else frozenset[int]()
        found = tuple(contributions)
        return Plan(module, tuple(self.sites), places, held, found, *names, self.grouping, self.backwards)

    def _needed(self, contributions: list[Contribution], buffers: list[str], again: list[fx.Node]) -> set[fx.Node]:
        roots = [self.capture.losses, *(self.capture.buffers_after[name] for name in buffers)]
        repeated = set(again)
        roots += [source for node in again for source in node.all_input_nodes if source not in repeated]
        roots += [source for site in self.sites for source in site.sources]
        roots += [constant for c in contributions for constant in c.constants]
        seen: set[fx.Node] = set()
        while roots:
            node = roots.pop()
            if node not in seen:
                seen.add(node)
                roots += node.all_input_nodes
        return seen

    def _again(self, contributions: list[Contribution]) -> list[fx.Node]:
        """The nodes of the backward that the gradients need, but for draws: the second time they are the same."""
        seen: set[fx.Node] = set()
        roots = [self._gradient(c) for c in contributions]
        while roots:
            node = roots.pop()
            drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if node not in seen and node.meta.get("half") == "backward" and not drawn:
                seen.add(node)
                roots += node.all_input_nodes
        return [node for node in self.capture.graph.graph.nodes if node in seen]

    def _gradient(self, c: Contribution) -> fx.Node:
        node = self.capture.gradients[c.name]
        assert node is not None
        return node

    def _second(self, contributions: list[Contribution], factors: fx.Node, again: list[fx.Node]) -> dict[str, fx.Node]:
        env: dict[fx.Node, fx.Node] = {self.capture.tangent: self.graph.call_function(torch.select, (factors, 1, 0))}
        storages = Second(again)
        for node in again:
            env[node] = self._same(node, lambda n: env[n] if n in env else self.env[n])
            env[node].meta["val"] = storages.of(node.meta.get("val"))
        return {c.name: env[self._gradient(c)] for c in contributions}

    def _copy(self, node: fx.Node) -> fx.Node:
        """A node of the graph, without the outputs that are unclipped parameter gradients."""
        made = self._same(node, self.env.__getitem__)
        at = _MASKS.get(packet_of(node.target))
        if at is not None and self.steps[node].sums():
            mask = [i == 0 and bool(wanted) for i, wanted in enumerate(node.args[at])]  # type: ignore[arg-type]
            made.args = (*made.args[:at], mask, *made.args[at + 1 :])
        return made

    def _same(self, node: fx.Node, look: Callable[[fx.Node], fx.Node]) -> fx.Node:
        made = self.graph.node_copy(node, look)
        if not node.kwargs:
            made.target = _KERNELS.get(node.target, node.target)
        return made

    def _values(self, site: Site) -> tuple[fx.Node, ...]:
        for part in site.operands:
            if isinstance(part, Part) and part not in self.env:
                given = tuple(map(self._wide, part.operands))
                self.env[part] = self.graph.call_function(part.compute, given)
        return tuple(self.env[o] if isinstance(o, Part) else self._wide(o) for o in site.operands)

    def _wide(self, node: fx.Node) -> fx.Node:
        """Its value in float32 if it is narrower, for norms and sums; a copy that lives no longer than its use."""
        value = self.env[node]
        return self.graph.call_function(wide, (value,)) if is_narrow(node) else value

    def _measure(
        self, index: int, site: Site, direct: bool, indirect: bool, kept: dict[int, fx.Node], norms: dict[int, fx.Node]
    ) -> None:
        values = self._values(site)
        if indirect or self.each:
            kept[index] = self.graph.call_function(site.per_sample, values)
            self.whole.add(index)
        elif site.keeps() or (self.grouping.amplifies and site.cancels()):
            # A norm from Grams may have no digits left, and what is kept is what is scaled by it.
            kept[index] = self.graph.call_function(site.kept, values)
        if direct and index in kept:
            of_kept = square_norms_of if index in self.whole else site.kept_square_norms
            norms[index] = self.graph.call_function(of_kept, (kept[index],))
        elif direct:
            if self.grouping.amplifies:
                # Squares of small float32 vanish, and the other factor of the product may be large.
                values = tuple(self.graph.call_function(torch.Tensor.double, (value,)) for value in values)
            norms[index] = self.graph.call_function(site.square_norms, values)

    def _through_suffix(self, c: Contribution, kept: dict[int, fx.Node]) -> fx.Node:
        constants = tuple(map(self._wide, c.constants))
        return self.graph.call_function(c.suffix.each, (*[kept[i] for i in c.sites], *constants))

    def _inline(self, c: Contribution, values: list[fx.Node]) -> fx.Node:
        """The suffix applied once, its nodes among those of the plan: a call of a module costs more than a view."""
        given = [*values, *map(self._wide, c.constants)]
        holders = [node for node in c.suffix.module.graph.nodes if node.op == "placeholder"]
        made = self.graph.graph_copy(c.suffix.module.graph, dict(zip(holders, given, strict=True)))
        assert isinstance(made, fx.Node)
        return made

    def _growth(self, c: Contribution) -> int:
        """Bytes that the sum takes, less those that it sets free: what frees most comes first."""
        return sum(4 * math.prod(site.shape) - site.operand_bytes() for site in (self.sites[i] for i in c.sites))

    def _clip(
        self,
        contributions: list[Contribution],
        factors: fx.Node,
        kept: dict[int, fx.Node],
        each: dict[str, fx.Node],
    ) -> dict[str, fx.Node]:
        columns = [self.graph.call_function(torch.select, (factors, 1, g)) for g in range(len(self.grouping.names))]
        # By site and group: parameters of two groups may be parts of one product.
        sums: dict[tuple[int, int], fx.Node] = {}
        gradients: dict[str, fx.Node] = {}
        for c in sorted(contributions, key=self._growth):
            g = self._group(c)
            small = math.prod(c.shape) <= sum(math.prod(self.sites[i].shape) for i in c.sites)
            if c.name in each and (small or self.grouping.amplifies):
                gradients[c.name] = self.graph.call_function(weighted_of, (columns[g], each[c.name]))
                continue
            for i in c.sites:
                if (i, g) not in sums:
                    values = (kept[i],) if i in kept else self._values(self.sites[i])
                    of_kept = weighted_of if i in self.whole else self.sites[i].kept_weighted
                    how = of_kept if i in kept else self.sites[i].weighted
                    sums[i, g] = self.graph.call_function(how, (columns[g], *values))
            gradients[c.name] = self._inline(c, [sums[i, g] for i in c.sites])
        return gradients


def _total(squares: list[list[Tensor]], weights: Tensor) -> Tensor:
    """Norms of each sample's gradient by group, [B, G], from the squared norms [B] of the parts of each."""
    none = torch.zeros_like(weights)
    sums = [torch.stack([s.to(weights.dtype) for s in own]).sum(0) if own else none for own in squares]
    return torch.stack(sums, 1).clamp_min(0).sqrt()
