"""From abstract values to facts: which outputs are falsified, by which ops; buffers; contraction sites."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from dpcheck.capture import Capture
from dpcheck.diagnostic import BufferFact
from dpcheck.facts import Event, EventKind
from dpcheck.samplesets.interpreter import Step, interpret
from dpcheck.samplesets.lattice import Samples, reduced
from dpcheck.samplesets.op import is_pointwise, packet_of
from dpcheck.samplesets.wording import reason_for
from dpcheck.source import Origin


@dataclass(frozen=True)
class Analysis:
    """The result of the sample-set analysis of one captured graph.

    Attributes:
        steps: abstract value of every node.
        events: where samples meet or nothing is proven, in graph order.
        buffers: one fact each.
        written_parameters: parameters that the forward overwrites.
        sites: contraction sites of every trainable parameter: the nodes that sum its gradient over samples.
    """

    capture: Capture
    steps: dict[fx.Node, Step]
    events: tuple[Event, ...]
    buffers: tuple[BufferFact, ...]
    written_parameters: tuple[tuple[str, Origin | None], ...]
    sites: dict[str, tuple[fx.Node, ...]]

    @property
    def proven(self) -> bool:
        """Every loss depends on its own sample, every gradient is a sum of terms of one sample each."""
        return not self.events


def analyse(capture: Capture) -> Analysis:
    """Run the analysis. Pure: the capture is not changed."""
    steps = interpret(capture)
    falsified = dict(_falsified(capture, steps))
    reaches = _culprits(capture, falsified, steps)
    later = _further(capture, steps) if "losses" in falsified else {}
    for culprit in later:
        reaches.setdefault(culprit, ["losses"])
    order = {node: i for i, node in enumerate(capture.graph.graph.nodes)}
    # How samples meet at an op behind another is seen only once they are apart before it.
    met = {node: steps[node] if steps[node].fresh else later.get(node, steps[node]) for node in reaches}
    events = tuple(
        _event(node, steps[node], reaches[node], reason_for(node, met[node]))
        for node in sorted(reaches, key=order.__getitem__)
    )
    return Analysis(
        capture,
        steps,
        events,
        _buffers(capture, steps),
        tuple((n, _origin(a)) for n, a in capture.parameters_after.items() if a is not capture.parameters[n]),
        {
            name: _sites(node, steps, order)
            for name, node in capture.gradients.items()
            if node is not None and f"gradient:{name}" not in falsified
        },
    )


def _falsified(capture: Capture, steps: dict[fx.Node, Step]) -> Iterable[tuple[str, fx.Node]]:
    """Outputs that are not what DP-SGD needs."""
    losses: Samples = steps[capture.losses].value
    owners = losses.owners().tolist()
    if any(owner not in (-1, i) for i, owner in enumerate(owners)) or losses.inexact:
        yield "losses", capture.losses
    for name, node in capture.gradients.items():
        if node is None:
            continue
        value = steps[node].value
        if value.mixed() and (not value.additive or value.inexact):
            yield f"gradient:{name}", node


def _culprits(capture: Capture, falsified: dict[str, fx.Node], steps: dict[fx.Node, Step]) -> dict[fx.Node, list[str]]:
    """The ops at which samples first met upstream of each label's node, or that node where none did; with the labels.

    One walk for all labels, which are bits of a number: a walk for each would cost the square of the depth.
    """
    labels = list(falsified)
    wanted: dict[fx.Node, int] = {}
    found: dict[fx.Node, int] = {}
    for bit, label in enumerate(labels):
        wanted[falsified[label]] = wanted.get(falsified[label], 0) | 1 << bit
    for node in reversed(capture.graph.graph.nodes):
        bits = wanted.get(node, 0)
        if bits and steps[node].fresh:
            culprit = _mover(node, steps) or node
            found[culprit] = found.get(culprit, 0) | bits
        elif bits:
            for source in node.all_input_nodes:
                if _suspect(steps[source]):
                    wanted[source] = wanted.get(source, 0) | bits
    blamed = 0
    for bits in found.values():
        blamed |= bits
    for bit, label in enumerate(labels):
        if not blamed >> bit & 1:
            found[falsified[label]] = found.get(falsified[label], 0) | 1 << bit
    return {node: [label for bit, label in enumerate(labels) if bits >> bit & 1] for node, bits in found.items()}


def _further(capture: Capture, steps: dict[fx.Node, Step]) -> dict[fx.Node, Step]:
    """Ops of the forward at which samples would meet even if those before them were mended, and how."""
    seen, stack = {capture.losses}, [capture.losses]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    after = interpret(capture, mended=True)
    found = [node for node, step in after.items() if step.fresh and node.meta.get("half") == "forward" and node in seen]
    return {culprit: after[culprit] for culprit in (_mover(node, after) or node for node in found)}


_MOVERS = frozenset({"flip", "roll", "index", "index_select", "gather", "sort", "permute", "transpose", "slice"})


def _mover(meeting: fx.Node, steps: dict[fx.Node, Step]) -> fx.Node | None:
    """The op upstream that moved rows to another place of the sample axis, when that made samples meet."""
    sources = [s for s in meeting.all_input_nodes if _owners(steps[s]) is not None]
    if len(sources) < 2 or (not is_pointwise(meeting.target) and "loss" not in str(meeting.target)):
        return None
    seen, stack = set(sources), list(sources)
    while stack:
        node = stack.pop()
        mine = _owners(steps[node])
        for source in node.all_input_nodes:
            theirs = _owners(steps[source])
            if packet_of(node.target) in _MOVERS and mine is not None and theirs is not None and mine != theirs:
                return node
            if source not in seen and theirs is not None:
                seen.add(source)
                stack.append(source)
    return None


def _owners(step: Step) -> tuple[int, ...] | None:
    """The sample of each row of axis 0, where every row has one."""
    value = step.value
    if not isinstance(value, Samples) or value.mixed() or value.empty() or not value.shape:
        return None
    rows = reduced(value, range(1, len(value.shape)), keepdim=False)
    return None if rows.mixed() or len(rows.shape) != 1 else tuple(rows.owners().tolist())


def _suspect(step: Step) -> bool:
    return any((v.mixed() and not v.additive) or v.inexact for v in step.outputs)


def _event(node: fx.Node, step: Step, reaches: list[str], reason: str) -> Event:
    inexact = any(v.inexact for v in step.outputs)
    kind: EventKind = "unproven" if inexact or not step.ruled else node.meta["half"]
    return Event(kind, str(node.target), _origin(node), tuple(sorted(set(reaches))), reason)


def _origin(node: fx.Node) -> Origin | None:
    return node.meta.get("origin")


def _buffers(capture: Capture, steps: dict[fx.Node, Step]) -> tuple[BufferFact, ...]:
    facts = []
    for name, after in capture.buffers_after.items():
        origin = _origin(after)
        location = origin.location if origin else None
        if after is capture.buffers[name]:
            facts.append(BufferFact(name, "constant"))
        else:
            facts.append(BufferFact(name, "derived" if steps[after].value.empty() else "data", location))
    return tuple(facts)


def _sites(gradient: fx.Node, steps: dict[fx.Node, Step], order: dict[fx.Node, int]) -> tuple[fx.Node, ...]:
    """The nodes upstream of a gradient whose output is a sum over samples and whose inputs are not."""
    found, seen, stack = [], {gradient}, [gradient]
    while stack:
        node = stack.pop()
        sources = [s for s in node.all_input_nodes if steps[s].sums()]
        if not sources and steps[node].sums():
            found.append(node)
        for source in sources:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return tuple(sorted(found, key=order.__getitem__))
