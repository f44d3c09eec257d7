"""How each parameter's gradient is made of contraction sites, and what lies between the sites and the gradient."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from dpcheck.engine.sites.base import Place, Site, is_narrow, make_site
from dpcheck.engine.sites.joint import Term, join
from torch import Tensor, fx

from dpcheck.samplesets import Analysis
from dpcheck.samplesets.lattice import Samples
from dpcheck.samplesets.op import packet_of

# Ops that keep the L2 norm of what they are given.
_ISOMETRIES = frozenset(
    {"view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "clone", "neg", "alias"}
)


class NotCovered(Exception):
    """No sampler covers a gradient: the engine falls back, and says why."""


@dataclass(frozen=True)
class Suffix:
    """What lies between the sites and a gradient: linear in the ``count`` site outputs, then constants.

    The plan applies it once to the sums, and where a norm needs it to every sample.
    """

    module: fx.GraphModule
    count: int

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
        sites: positions in :attr:`Finder.sites`.
        isometric: one site, then only ops that keep the norm: the site's norms are the parameter's.
        suffix: from the site outputs to the gradient.
        constants: nodes of sample-independent values that the suffix uses.
        shape: of the gradient.
    """

    name: str
    sites: tuple[int, ...]
    isometric: bool
    suffix: Suffix
    constants: tuple[fx.Node, ...]
    shape: tuple[int, ...]


class Finder:
    """Finds the sites of every gradient of a proven analysis; each site once, with the ops that it stands for."""

    def __init__(self, analysis: Analysis) -> None:
        self.capture, self.steps = analysis.capture, analysis.steps
        self.sites: list[Site] = []
        self.places: list[tuple[fx.Node, ...]] = []
        self.at: dict[tuple[fx.Node, int | None], int] = {}

    def contributions(self) -> list[Contribution]:
        """One for every gradient that depends on samples.

        Raises:
            NotCovered: naming the op and the parameter that no sampler covers.
        """
        covered = {name: node for name, node in self.capture.gradients.items() if node is not None}
        found = [self._contribution(name, node) for name, node in covered.items()]
        return [contribution for contribution in found if contribution is not None]

    def _contribution(self, name: str, gradient: fx.Node) -> Contribution | None:
        value = self.steps[gradient].value
        assert isinstance(value, Samples)
        if value.empty():
            return None
        if not value.mixed():
            raise NotCovered(f"the gradient of {name} is not a sum over samples")
        downstream = self._downstream(gradient)
        # Samplers compute norms of real numbers only; those of complex ones are taken of the contributions.
        real = not gradient.meta["val"].is_complex()
        joint = self._joint(name, gradient) if len(downstream) > 1 and real else None
        if joint is not None:
            return Contribution(name, (joint,), True, _identity(), (), self.sites[joint].shape)
        found = sorted({self._site(node, output, name) for node, output in self._outputs(downstream, gradient)})
        suffix, constants = self._suffix(downstream, gradient, found)
        plain = all(_keeps_norm(n) for n in downstream if n.target is not operator.getitem)
        chain = all(len([s for s in n.all_input_nodes if s in downstream]) <= 1 for n in downstream)
        isometric = len(found) == 1 and plain and chain and real
        shape = tuple(gradient.meta["val"].shape)
        return Contribution(name, tuple(found), isometric, suffix, tuple(constants), shape)

    def _downstream(self, gradient: fx.Node) -> list[fx.Node]:
        """Nodes between the sites and the gradient, in graph order, without the site ops and their selections."""
        seen, stack = set(), [gradient]
        while stack:
            node = stack.pop()
            if node in seen or self._output_of(node) is not None:
                continue
            seen.add(node)
            stack += [s for s in node.all_input_nodes if self.steps[s].sums()]
        return [n for n in gradient.graph.nodes if n in seen]

    def _output_of(self, node: fx.Node) -> tuple[fx.Node, int | None] | None:
        """The site output that ``node`` is, if it is one."""
        source = node
        output: int | None = None
        if node.target is operator.getitem:
            source, output = node.args  # type: ignore[assignment]
        if not self.steps[source].sums() or any(self.steps[s].sums() for s in source.all_input_nodes):
            return None
        if output is None and isinstance(self.steps[source].value, list | tuple):
            return None
        return source, output

    def _outputs(self, downstream: list[fx.Node], gradient: fx.Node) -> set[tuple[fx.Node, int | None]]:
        own = self._output_of(gradient)
        if own is not None:
            return {own}
        reached = {s for n in downstream for s in n.all_input_nodes}
        return {found for s in reached if self.steps[s].sums() and (found := self._output_of(s)) is not None}

    def _site(self, node: fx.Node, output: int | None, name: str) -> int:
        if (node, output) not in self.at:
            self.at[node, output] = len(self.sites)
            self.sites.append(self._maker(node, output, name))
            self.places.append((node,))
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
        self.places.append(tuple(node for (node, _), _ in terms))
        return len(self.sites) - 1

    def _terms(self, node: fx.Node, flipped: bool) -> list[tuple[tuple[fx.Node, int | None], bool]] | None:
        own = self._output_of(node)
        if own is not None:
            return [(own, flipped)]
        packet, sources = packet_of(node.target), node.all_input_nodes
        if packet == "add" and not node.kwargs and len(sources) == len(node.args) == 2:
            parts = [self._terms(source, flipped) for source in sources]
            return None if None in parts else [term for part in parts for term in part or ()]
        if packet == "t":
            return self._terms(sources[0], not flipped)
        if _is_cast(node):
            return self._terms(sources[0], flipped)
        shapes = [getattr(n.meta["val"], "shape", None) for n in (node, *sources)]
        plain = len(shapes) == 2 and shapes[0] == shapes[1] and packet in ("view", "_unsafe_view", "clone", "reshape")
        return self._terms(sources[0], flipped) if plain else None

    def _suffix(self, downstream: list[fx.Node], gradient: fx.Node, found: list[int]) -> tuple[Suffix, list[fx.Node]]:
        graph = fx.Graph()
        inputs = {index: graph.placeholder(f"site{index}") for index in found}
        constants: dict[fx.Node, fx.Node] = {}
        made: dict[fx.Node, fx.Node] = {}

        def look(node: fx.Node) -> fx.Node:
            if node in made:
                return made[node]
            own = self._output_of(node)
            if own is not None and self.steps[node].sums():
                return inputs[self.at[own]]
            return constants[node]

        for source in dict.fromkeys(s for n in downstream for s in n.all_input_nodes):
            if source not in downstream and self._output_of(source) is None:
                if not all(v.empty() for v in self.steps[source].outputs):
                    raise NotCovered(f"a term of one sample is added by {source.target}")
                constants[source] = graph.placeholder(f"constant{len(constants)}")
        for node in downstream:
            made[node] = graph.node_copy(node, look)
            if is_narrow(node) and _is_cast(node):
                # What samplers give is wide, and neither norms nor sums are rounded on the way.
                made[node].kwargs = {**made[node].kwargs, "dtype": torch.float32}
        graph.output(look(gradient))
        return Suffix(fx.GraphModule(torch.nn.Module(), graph), len(found)), list(constants)


def _is_cast(node: fx.Node) -> bool:
    """From one real floating-point dtype to another, as autocast does."""
    if packet_of(node.target) != "_to_copy":
        return False
    return all(n.meta["val"].is_floating_point() for n in (node, *node.all_input_nodes))


def _keeps_norm(node: fx.Node) -> bool:
    return packet_of(node.target) in _ISOMETRIES or _is_cast(node)


def _identity() -> Suffix:
    graph = fx.Graph()
    graph.output(graph.placeholder("site"))
    return Suffix(fx.GraphModule(torch.nn.Module(), graph), 1)
