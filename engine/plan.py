"""The plan: the captured graph rewritten to book-keeping (Bu et al. 2023, "Book-Keeping").

One forward and one backward. At each contraction site the unclipped contraction is left out; the squared norm of every
sample's contribution is taken as soon as its operands are known; after the last one come the clip factors, one weighted
contraction a site, and what lies downstream of the sites, applied once to the sums.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dpcheck.engine.sites.base import Place, Site, make_site, square_norms_of, weighted_of
from dpcheck.engine.sites.joint import Term, join
from dpcheck.samplesets import Analysis
from dpcheck.samplesets.interpreter import Step
from dpcheck.samplesets.lattice import Samples
from dpcheck.samplesets.op import packet_of

_MASKS = {
    "convolution_backward": 10,
    "native_layer_norm_backward": 7,
    "native_group_norm_backward": 9,
    "native_batch_norm_backward": 9,
}
# Ops that keep the L2 norm of what they are given.
_ISOMETRIES = frozenset(
    {"view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "clone", "neg", "alias"}
)


class NotCovered(Exception):
    """No sampler covers a gradient: the engine falls back, and says why."""


@dataclass(frozen=True)
class Suffix:
    """What lies between the sites and a gradient: linear in the ``count`` site outputs, then constants."""

    module: fx.GraphModule
    count: int

    def once(self, *values: Tensor) -> Tensor:
        """Applied to the sums."""
        result: Tensor = self.module(*values)
        return result

    def each(self, *values: Tensor) -> Tensor:
        """Applied to every sample's contributions, [B, ...]."""
        constants = len(values) - self.count
        result: Tensor = torch.vmap(self.module, in_dims=(*[0] * self.count, *[None] * constants))(*values)
        return result


@dataclass(frozen=True)
class Contribution:
    """How one parameter's gradient is made of sites.

    Attributes:
        name: the parameter.
        sites: positions in :attr:`Plan.sites`.
        isometric: one site, then only ops that keep the norm: the site's norms are the parameter's.
        suffix: from the site outputs to the gradient.
        constants: nodes of sample-independent values that the suffix uses.
    """

    name: str
    sites: tuple[int, ...]
    isometric: bool
    suffix: Suffix
    constants: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Plan:
    """An executable plan for batches of one shape.

    Attributes:
        module: ``module(*inputs, weights [B], max_grad_norm, extra) -> (losses, norms, gradients, buffers)``.
        sites, contributions: what a person may print.
    """

    module: fx.GraphModule
    sites: tuple[Site, ...]
    contributions: tuple[Contribution, ...]
    gradients: tuple[str, ...]
    buffers: tuple[str, ...]


ClipRule = Callable[[Tensor, Any, Tensor], Tensor]


def clip_factors(norms: Tensor, max_grad_norm: float, weights: Tensor) -> Tensor:
    """``weights * min(1, C / norm)`` (Abadi et al. 2016, Algorithm 1), [B]."""
    # The guard keeps factor * norm <= C under rounding too.
    return weights * (max_grad_norm / norms.clamp_min(1e-30)).clamp(max=1.0) * (1 - 4 * torch.finfo(norms.dtype).eps)


def make_plan(analysis: Analysis, *, per_sample: bool = False) -> Plan:
    """Plan the step for the shapes of the captured batch.

    Args:
        analysis: proven, of a capture with at least two samples.
        per_sample: return every sample's gradients, [B, *shape], in the place of clipped sums.

    Raises:
        NotCovered: naming the op and the parameter that no sampler covers.
    """
    return _Planner(analysis, per_sample).plan()


class _Planner:
    def __init__(self, analysis: Analysis, per_sample: bool) -> None:
        self.capture, self.steps, self.each = analysis.capture, analysis.steps, per_sample
        self.sites: list[Site] = []
        self.at: dict[tuple[fx.Node, int | None], int] = {}
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}

    def plan(self) -> Plan:
        covered = {name: node for name, node in self.capture.gradients.items() if node is not None}
        contributions = [self._contribution(name, node) for name, node in covered.items()]
        contributions = [c for c in contributions if c is not None]
        buffers = [n for n, after in self.capture.buffers_after.items() if after is not self.capture.buffers[n]]
        return self._emit(contributions, buffers)

    # -- which sites, and what comes after them

    def _contribution(self, name: str, gradient: fx.Node) -> Contribution | None:
        value = self.steps[gradient].value
        assert isinstance(value, Samples)
        if value.empty():
            return None
        if not value.mixed():
            raise NotCovered(f"the gradient of {name} is not a sum over samples")
        downstream = self._downstream(gradient)
        joint = self._joint(name, gradient) if len(downstream) > 1 else None
        if joint is not None:
            return Contribution(name, (joint,), True, _identity(), ())
        found = sorted({self._site(node, output, name) for node, output in self._outputs(downstream, gradient)})
        suffix, constants = self._suffix(downstream, gradient, found)
        plain = all(packet_of(n.target) in _ISOMETRIES for n in downstream if n.target is not operator.getitem)
        chain = all(len([s for s in n.all_input_nodes if s in downstream]) <= 1 for n in downstream)
        isometric = len(found) == 1 and plain and chain
        return Contribution(name, tuple(found), isometric, suffix, tuple(constants))

    def _downstream(self, gradient: fx.Node) -> list[fx.Node]:
        """Nodes between the sites and the gradient, in graph order, without the site ops and their selections."""
        seen, stack = set(), [gradient]
        while stack:
            node = stack.pop()
            if node in seen or self._output_of(node) is not None:
                continue
            seen.add(node)
            stack += [s for s in node.all_input_nodes if _sums(self.steps[s])]
        return [n for n in gradient.graph.nodes if n in seen]

    def _output_of(self, node: fx.Node) -> tuple[fx.Node, int | None] | None:
        """The site output that ``node`` is, if it is one."""
        source = node
        output: int | None = None
        if node.target is operator.getitem:
            source, output = node.args  # type: ignore[assignment]
        if not _sums(self.steps[source]) or any(_sums(self.steps[s]) for s in source.all_input_nodes):
            return None
        if output is None and isinstance(self.steps[source].value, list | tuple):
            return None
        return source, output

    def _outputs(self, downstream: list[fx.Node], gradient: fx.Node) -> set[tuple[fx.Node, int | None]]:
        own = self._output_of(gradient)
        if own is not None:
            return {own}
        reached = {s for n in downstream for s in n.all_input_nodes}
        return {found for s in reached if _sums(self.steps[s]) and (found := self._output_of(s)) is not None}

    def _site(self, node: fx.Node, output: int | None, name: str) -> int:
        if (node, output) not in self.at:
            self.at[node, output] = len(self.sites)
            self.sites.append(self._maker(node, output, name))
        return self.at[node, output]

    def _maker(self, node: fx.Node, output: int | None, name: str) -> Site:
        site = make_site(Place(node, output, self.steps, self.capture.batch_size))
        if site is None:
            raise NotCovered(f"no sampler covers {node.target} for the gradient of {name}")
        return site

    def _joint(self, name: str, gradient: fx.Node) -> int | None:
        """One site for a matrix that is the plain sum of several sites' outputs."""
        terms = self._terms(gradient, False)
        if terms is None or len(terms) < 2:
            return None
        made = [Term(self._maker(node, output, name), flipped) for (node, output), flipped in terms]
        site = join(made, tuple(gradient.meta["val"].shape))
        if site is None:
            return None
        self.sites.append(site)
        return len(self.sites) - 1

    def _terms(self, node: fx.Node, flipped: bool) -> list[tuple[tuple[fx.Node, int | None], bool]] | None:
        own = self._output_of(node)
        if own is not None:
            return [(own, flipped)]
        packet, sources = packet_of(node.target), node.all_input_nodes
        if packet == "add" and len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
            parts = [self._terms(a, flipped) for a in node.args]  # type: ignore[arg-type]
            return None if None in parts else [term for part in parts for term in part or ()]
        if packet == "t":
            return self._terms(sources[0], not flipped)
        same = len(sources) == 1 and sources[0].meta["val"].shape == node.meta["val"].shape
        return self._terms(sources[0], flipped) if same and packet in ("view", "_unsafe_view", "clone", "reshape") else None

    def _suffix(
        self, downstream: list[fx.Node], gradient: fx.Node, found: list[int]
    ) -> tuple[Suffix, list[fx.Node]]:
        graph = fx.Graph()
        inputs = {index: graph.placeholder(f"site{index}") for index in found}
        constants: dict[fx.Node, fx.Node] = {}
        made: dict[fx.Node, fx.Node] = {}

        def look(node: fx.Node) -> fx.Node:
            if node in made:
                return made[node]
            own = self._output_of(node)
            if own is not None and _sums(self.steps[node]):
                return inputs[self.at[own]]
            return constants[node]

        for source in dict.fromkeys(s for n in downstream for s in n.all_input_nodes):
            if source not in downstream and self._output_of(source) is None:
                constants[source] = graph.placeholder(f"constant{len(constants)}")
        for node in downstream:
            made[node] = graph.node_copy(node, look)
        graph.output(look(gradient))
        return Suffix(fx.GraphModule(torch.nn.Module(), graph), len(found)), list(constants)

    # -- the rewritten graph

    def _emit(self, contributions: list[Contribution], buffers: list[str]) -> Plan:
        needed = self._needed(contributions, buffers)
        for node in self.capture.graph.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self.graph.node_copy(node)
        weights, clip = self.graph.placeholder("weights"), self.graph.placeholder("max_grad_norm")
        direct = {c.sites[0] for c in contributions if c.isometric}
        indirect = {i for c in contributions if not c.isometric for i in c.sites}
        kept: dict[int, fx.Node] = {}
        norms: dict[int, fx.Node] = {}
        waiting = {i: set(site.operands) for i, site in enumerate(self.sites)}

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
        totals = [norms[c.sites[0]] for c in contributions if c.isometric]
        each: dict[str, fx.Node] = {}
        for c in contributions:
            if not c.isometric or self.each:
                each[c.name] = self._through_suffix(c, kept)
                if not c.isometric:
                    totals.append(self.graph.call_function(square_norms_of, (each[c.name],)))
        norm = self.graph.call_function(_total, (totals, weights))
        gradients = each if self.each else self._clip(contributions, norm, clip, weights, kept, each)
        outputs = [self.env[self.capture.losses], norm, list(gradients.values())]
        outputs.append([self.env[self.capture.buffers_after[name]] for name in buffers])
        self.graph.output(tuple(outputs))
        module = fx.GraphModule(self.capture.graph, self.graph)
        return Plan(module, tuple(self.sites), tuple(contributions), tuple(gradients), tuple(buffers))

    def _needed(self, contributions: list[Contribution], buffers: list[str]) -> set[fx.Node]:
        roots = [self.capture.losses, *(self.capture.buffers_after[name] for name in buffers)]
        roots += [operand for site in self.sites for operand in site.operands]
        roots += [constant for c in contributions for constant in c.constants]
        seen: set[fx.Node] = set()
        while roots:
            node = roots.pop()
            if node not in seen:
                seen.add(node)
                roots += node.all_input_nodes
        return seen

    def _copy(self, node: fx.Node) -> fx.Node:
        """A node of the graph, without the outputs that are unclipped parameter gradients."""
        made = self.graph.node_copy(node, self.env.__getitem__)
        at = _MASKS.get(packet_of(node.target))
        if at is not None and _sums(self.steps[node]):
            mask = [i == 0 and bool(wanted) for i, wanted in enumerate(node.args[at])]  # type: ignore[arg-type]
            made.args = (*made.args[:at], mask, *made.args[at + 1 :])
        return made

    def _measure(
        self, index: int, site: Site, direct: bool, indirect: bool, kept: dict[int, fx.Node], norms: dict[int, fx.Node]
    ) -> None:
        values = tuple(self.env[operand] for operand in site.operands)
        if indirect or self.each or site.keeps():
            kept[index] = self.graph.call_function(site.per_sample, values)
        if direct and index in kept:
            norms[index] = self.graph.call_function(square_norms_of, (kept[index],))
        elif direct:
            norms[index] = self.graph.call_function(site.square_norms, values)

    def _through_suffix(self, c: Contribution, kept: dict[int, fx.Node]) -> fx.Node:
        constants = tuple(self.env[node] for node in c.constants)
        return self.graph.call_function(c.suffix.each, (*[kept[i] for i in c.sites], *constants))

    def _clip(
        self,
        contributions: list[Contribution],
        norm: fx.Node,
        clip: fx.Node,
        weights: fx.Node,
        kept: dict[int, fx.Node],
        each: dict[str, fx.Node],
    ) -> dict[str, fx.Node]:
        factors = self.graph.call_function(clip_factors, (norm, clip, weights))
        sums: dict[int, fx.Node] = {}
        gradients: dict[str, fx.Node] = {}
        for c in contributions:
            for i in c.sites:
                if i not in sums:
                    values = (kept[i],) if i in kept else tuple(self.env[o] for o in self.sites[i].operands)
                    how = weighted_of if i in kept else self.sites[i].weighted
                    sums[i] = self.graph.call_function(how, (factors, *values))
            constants = tuple(self.env[node] for node in c.constants)
            gradients[c.name] = self.graph.call_function(c.suffix.once, (*[sums[i] for i in c.sites], *constants))
        return gradients


def _identity() -> Suffix:
    graph = fx.Graph()
    graph.output(graph.placeholder("site"))
    return Suffix(fx.GraphModule(torch.nn.Module(), graph), 1)


def _sums(step: Step) -> bool:
    values = step.value if isinstance(step.value, list | tuple) else [step.value]
    return any(isinstance(v, Samples) and v.mixed() for v in values)


def _total(squares: list[Tensor], weights: Tensor) -> Tensor:
    """Norm of the whole gradient of each sample, [B]."""
    if not squares:
        return torch.zeros_like(weights)
    return torch.stack([s.to(weights.dtype) for s in squares]).sum(0).clamp_min(0).sqrt()
