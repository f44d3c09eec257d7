"""What becomes of every parameter: where the forward reads it, and how its gradient is summed over samples."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from dpcheck.diagnostic import Location, ParameterFact, Status
from dpcheck.engine.contributions import NotCovered
from dpcheck.engine.plan import make_plan
from dpcheck.samplesets import Analysis


def parameter_facts(
    model: nn.Module, analysis: Analysis | None, *, covered: bool, written: Iterable[str] = ()
) -> tuple[ParameterFact, ...]:
    """One fact for every parameter.

    Args:
        analysis: of the captured graph; without one the fallback computes the gradients.
        covered: whether the engine's samplers cover the graph.
        written: names of the parameters that the forward overwrites.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(
        ParameterFact(
            name,
            tuple(parameter.shape),
            parameter.requires_grad,
            _status(name, analysis, covered) if parameter.requires_grad else "frozen",
            tuple(_site_name(node) for node in analysis.sites.get(name, ())) if analysis is not None else (),
            tuple(names[id(parameter)][1:]),
            owner=type(model.get_submodule(name.rpartition(".")[0])).__name__,
            uses=_uses(name, analysis) if analysis is not None else None,
            written=name in set(written),
        )
        for name, parameter in model.named_parameters()
    )


def why_uncovered(analysis: Analysis) -> str | None:
    """Why the engine's samplers do not cover a graph that is proven; ``None`` when they do."""
    try:
        make_plan(analysis)
    except NotCovered as missing:
        return str(missing)
    return None


def _status(name: str, analysis: Analysis | None, covered: bool) -> Status:
    if analysis is None:
        return "fallback"
    if analysis.capture.gradients[name] is None:
        return "no-gradient"
    if name not in analysis.sites:
        return "mixed"
    return "covered" if covered else "fallback"


def _uses(name: str, analysis: Analysis) -> tuple[Location, ...]:
    """The lines of the forward that read the parameter, each once for every op that does."""
    capture = analysis.capture
    found = []
    for user in capture.parameters[name].users:
        origin = user.meta.get("origin")
        reads = user.op == "call_function" and user.meta["half"] == "forward"
        if reads and user is not capture.parameters_after[name] and origin is not None and origin.location is not None:
            found.append(origin.location)
    return tuple(found)


def _site_name(node: fx.Node) -> str:
    """The op of a site, through the selection of one of its outputs."""
    first = node.args[0] if node.args else None
    return str(first.target if "getitem" in str(node.target) and isinstance(first, fx.Node) else node.target)
