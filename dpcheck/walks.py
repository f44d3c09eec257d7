"""Walks through the captured graph: the way of a sample's value from op to op, told with source lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import fx

from dpcheck import inputs
from dpcheck.capture import Capture
from dpcheck.diagnostic import Location
from dpcheck.ops import packet_of
from dpcheck.samplesets import Analysis
from dpcheck.samplesets.interpreter import Step
from dpcheck.samplesets.lattice import Samples, reduced


@dataclass(frozen=True)
class Stop:
    """One or several ops in a row that one line of one module runs in one half of the graph.

    Attributes:
        ops: ATen ops in order, without the overload; empty for an input or an output.
        what: the name of an input or output; at the end of a walk, what the op does to samples.
        half: ``forward``, ``backward``, or ``own backward``: at a line that no forward ran.
        module: the module whose forward was running; ``None`` in the loss function.
        location: the line.
        shape: of the last value; of the batch that was analysed.
        samples: which samples an element of the last value depends on.
    """

    ops: tuple[str, ...]
    what: str
    half: str
    module: str | None
    location: Location | None
    shape: tuple[int, ...]
    samples: str


@dataclass(frozen=True)
class Walk:
    """A way through the graph: ``title`` says from where to where."""

    title: str
    stops: tuple[Stop, ...]


def way(ends: Iterable[fx.Node], starts: Iterable[fx.Node], along: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """A shortest way from one of ``starts`` to one of ``ends`` over nodes with ``along``; empty if there is none."""
    goals = set(starts)
    after: dict[fx.Node, fx.Node | None] = dict.fromkeys(ends)
    queue = deque(after)
    while queue:
        node = queue.popleft()
        if node in goals:
            found: list[fx.Node] = []
            at: fx.Node | None = node
            while at is not None:
                found.append(at)
                at = after[at]
            return found
        for source in node.all_input_nodes:
            if source not in after and (source in goals or along(source)):
                after[source] = node
                queue.append(source)
    return []


def upstream(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    seen = set(nodes)
    stack = list(seen)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return seen


def told(nodes: Iterable[fx.Node], analysis: Analysis, last: str = "") -> tuple[Stop, ...]:
    """The stops of a way; ``last`` says what its last op does to samples."""
    names = names_of(analysis.capture)
    ran = {_line(node) for node in analysis.capture.graph.graph.nodes if node.meta.get("half") == "forward"}
    stops: list[Stop] = []
    for node in nodes:
        here = _stop(node, analysis.steps[node], names.get(node, ""))
        if here.half == "backward" and here.module is None and here.ops and _line(node) not in ran:
            here = replace(here, half="own backward")
        before = stops[-1] if stops else None
        if before is None or not _continues(before, here):
            if here.ops or here.what:
                stops.append(here)
        else:
            stops[-1] = replace(here, ops=before.ops + here.ops)
    if last and stops:
        stops[-1] = replace(stops[-1], what=last)
    return tuple(stops)


def last_of(name: str, analysis: Analysis) -> fx.Node | None:
    """The value of the forward that a module computed last."""
    found = None
    for node in analysis.capture.graph.graph.nodes:
        origin = node.meta.get("origin")
        called = node.op == "call_function" and node.meta.get("half") == "forward"
        if called and origin is not None and name in origin.modules and analysis.steps[node].outputs:
            if isinstance(node.meta.get("val"), (list, tuple)):
                continue
            found = node
    return found


def root_of(site: fx.Node) -> fx.Node:
    """The op itself, of which a site may be the choice of one output."""
    first = site.args[0] if site.args else None
    return first if "getitem" in str(site.target) and isinstance(first, fx.Node) else site


def names_of(capture: Capture) -> dict[fx.Node, str]:
    """What the inputs of the graph are called."""
    paths = [f"batch{path}" for path, _ in inputs.tensors(capture.example)]
    named = {node: f"parameter {name}" for name, node in capture.parameters.items()}
    named |= {node: f"buffer {name}" for name, node in capture.buffers.items()}
    named |= dict(zip(capture.batch, paths, strict=True))
    return named | {capture.tangent: "the losses, from which the backward starts"}


def _stop(node: fx.Node, step: Step, name: str) -> Stop:
    origin = node.meta.get("origin")
    outputs = step.outputs
    value = next((v for v in outputs if v.mixed()), outputs[0] if outputs else None)
    op = packet_of(node.target) if node.op == "call_function" and "getitem" not in str(node.target) else ""
    return Stop(
        (op,) if op else (),
        name,
        node.meta.get("half", "forward"),
        origin.module if origin else None,
        origin.location if origin else None,
        tuple(value.shape) if value is not None else (),
        owned(value) if value is not None else "no sample",
    )


def _line(node: fx.Node) -> tuple[str, int] | None:
    origin = node.meta.get("origin")
    return (origin.location.file, origin.location.line) if origin is not None and origin.location is not None else None


def _continues(before: Stop, here: Stop) -> bool:
    if not here.ops and not here.what:  # the choice of one output of the op before
        return True
    if before.what or here.what:
        return False
    return (before.half, before.module, before.location) == (here.half, here.module, here.location)


def owned(value: Samples) -> str:
    """Which samples the elements depend on, in words."""
    if value.empty():
        return "no sample"
    if value.mixed() and value.additive:
        return "a sum of terms of one sample each"
    if value.mixed():
        owners = value.owners()
        low, high = value.low[owners == -2], value.high[owners == -2]
        first, last = value.batch - int(low.max()), int(high.max()) - 1
        count, of = int((owners == -2).sum()), owners.numel()
        return f"samples {first} to {last} meet in {'every element' if count == of else f'{count} of {of} elements'}"
    axes = [axis for axis in range(len(value.shape)) if _varies(value, axis)]
    if not axes:
        return f"sample {int(value.owners().max())} alone"
    return f"samples apart on {'axis' if len(axes) == 1 else 'axes'} {' and '.join(map(str, axes))}"


def _varies(value: Samples, axis: int) -> bool:
    """Whether owners differ along an axis: in places that belong to no sample there is nothing to differ."""
    if value.shape[axis] < 2:
        return False
    apart = reduced(value, [axis])
    return apart.mixed()
