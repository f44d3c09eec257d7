"""Why a parameter or value is mixing, unproven or separate: the facts of a check, told for one name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from dpcheck.diagnostic import Diagnostic, Location, ParameterFact, Report
from dpcheck.errors import DpcheckError
from dpcheck.facts import MIXES, Event, Facts
from dpcheck.report.places import short
from dpcheck.samplesets import Analysis
from dpcheck.walks import Walk, last_of, root_of, told, upstream, way

Answer = Literal["separate", "mixing", "unproven", "written from data", "constant", "frozen", "not reached"]


@dataclass(frozen=True)
class Explanation:
    """The answer for one name.

    Attributes:
        name: a parameter, a buffer, a module (its last value), or ``losses``.
        kind: which of these.
        answer: what holds for it.
        why: sentences.
        walks: the ways of samples through the graph that show it.
        findings: the diagnostics that are about it.
    """

    name: str
    kind: Literal["losses", "parameter", "buffer", "module"]
    answer: Answer
    why: tuple[str, ...]
    walks: tuple[Walk, ...] = ()
    findings: tuple[Diagnostic, ...] = ()


def explain(facts: Facts, analysis: Analysis | None, report: Report, name: str | None) -> Explanation:
    """Explain ``name``, or the losses.

    Args:
        analysis: of ``facts.capture``; ``None`` where there is no graph.
        report: of the same facts.
        name: a name in ``named_parameters(remove_duplicate=False)``, ``named_buffers()`` or ``named_modules()``, or
            ``losses``.

    Raises:
        DpcheckError: if the model has no such name, with names like it.
    """
    teller = _Teller(facts, analysis, report)
    model = facts.model
    first = {id(p): n for n, p in model.named_parameters()}
    tied = {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
    if name in (None, "losses") and "losses" not in tied:
        return teller.losses()
    if name in tied:
        return teller.parameter(next(p for p in facts.parameters if p.name == tied[name]))
    buffers, modules = dict(model.named_buffers()), dict(model.named_modules())
    if name in buffers:
        return teller.buffer(str(name))
    if name in modules:
        return teller.module(str(name))
    known = ["losses", *tied, *buffers, *filter(None, modules)]
    near = difflib.get_close_matches(str(name), known, 3, 0.5) or known[:4]
    raise DpcheckError(
        f"the model has no parameter, buffer or module {name!r}", next=f"names are such as {', '.join(near)}"
    )


# Events of which the ways are told.
_SHOWN = 3
_HOW = {
    "graph": "the engine clips the terms one by one where they are summed, with the graph's samplers",
    "vmap": "the engine computes the terms one by one with vmap(grad) of the model",
    "single": "the engine computes the terms one by one, a sample at a time",
    "none": "the engine refuses the model all the same, for the findings of the check",
}


class _Teller:
    """Tells the facts. Without a graph it has only what the passes say of the whole model."""

    def __init__(self, facts: Facts, analysis: Analysis | None, report: Report) -> None:
        self.facts, self.analysis, self.report = facts, analysis, report

    def losses(self) -> Explanation:
        a = self.analysis
        answer, why, walks = self._events([a.capture.losses] if a else [], "the losses", "losses", clean=True)
        if answer == "separate" and a is not None:
            walks = [Walk("from the batch to the losses", told(self._from_batch([a.capture.losses]), a))]
            why = ["the loss of every sample depends on that sample alone"]
        return Explanation("losses", "losses", answer, tuple(why), tuple(walks), self._findings())

    def parameter(self, fact: ParameterFact) -> Explanation:
        findings, a = self._findings(parameter=fact.name), self.analysis
        if not fact.trainable:
            why = ["requires_grad is False: no gradient is computed and nothing about it is released by training"]
            return Explanation(fact.name, "parameter", "frozen", tuple(why), findings=findings)
        gradient = a.capture.gradients[fact.name] if a is not None else None
        if a is not None and gradient is None:
            return self._unreached(fact, a, findings)
        nodes, clean = [gradient] if gradient is not None else [], a is not None and fact.name in a.sites
        subject = f"the gradient of {fact.name}"
        answer, why, walks = self._events(nodes, subject, f"gradient:{fact.name}", clean=clean)
        if answer == "separate" and a is not None:
            why, walks = self._sites(fact, a)
        read = _lines(fact.uses or ())
        why += [f"the forward reads it at {read}"] if read else []
        why += [f"it is the same tensor as {', '.join(fact.tied)}"] if fact.tied else []
        return Explanation(fact.name, "parameter", answer, tuple(why), tuple(walks), findings)

    def buffer(self, name: str) -> Explanation:
        findings, a = self._findings(buffer=name), self.analysis
        fact = next(b for b in self.facts.buffers if b.name == name)
        walks: list[Walk] = []
        if fact.kind == "unknown":
            return Explanation(name, "buffer", "unproven", self._without_graph(), findings=findings)
        if fact.kind != "data":
            why = (
                "the forward never writes it" if fact.kind == "constant" else "it is written from weights or constants"
            )
            return Explanation(name, "buffer", "constant", (why,), findings=findings)
        if a is not None and not a.steps[a.capture.buffers_after[name]].value.empty():
            nodes = self._from_batch([a.capture.buffers_after[name]])
            walks = [Walk("from the batch to what the forward writes into it", told(nodes, a, "is kept in the buffer"))]
        why = "the forward writes it from data, and a saved model would give it away without noise"
        return Explanation(name, "buffer", "written from data", (why,), tuple(walks), findings)

    def module(self, name: str) -> Explanation:
        findings, a = self._findings(module=name), self.analysis
        if a is None:
            return Explanation(name, "module", "unproven", self._without_graph(), findings=findings)
        last = last_of(name, a)
        if last is None:
            none = "no op of the captured graph was computed in its forward"
            return Explanation(name, "module", "not reached", (none,), findings=findings)
        subject = f"what {name or 'the model'} returns"
        answer, why, walks = self._events([last], subject, "", clean=not any(v.mixed() for v in a.steps[last].outputs))
        if answer == "separate" and a.steps[last].value.empty():
            return Explanation(name, "module", "constant", (f"{subject} depends on no sample",), findings=findings)
        if answer == "separate":
            why = [f"every element of {subject} depends on one sample at most"]
            walks = [Walk(f"from the batch to {subject}", told(self._from_batch([last]), a))]
        return Explanation(name, "module", answer, tuple(why), tuple(walks), findings)

    # -- parts of an answer

    def _events(
        self, nodes: list[fx.Node], subject: str, label: str, clean: bool
    ) -> tuple[Answer, list[str], list[Walk]]:
        """What the events upstream of ``nodes``, and those elsewhere that falsify ``label``, say of ``subject``.

        Args:
            clean: whether the analysis found nothing wrong with the values of ``nodes`` themselves.
        """
        a, events = self.analysis, self.facts.events
        if a is None:
            refuted = any(e.refuted or e.kind in MIXES for e in events)
            return ("mixing" if refuted else "unproven"), list(self._without_graph()), []
        behind = upstream(nodes)
        why, walks, mixing, shown = list[str](), list[Walk](), False, set[fx.Node]()
        for event in events:
            node = _node_of(event, a)
            of_graph = event.kind in ("forward", "backward", "unproven") and node is not None
            if label not in event.reaches and (node is not None and (node not in behind or (clean and of_graph))):
                continue
            mixing = mixing or event.refuted or event.kind in MIXES
            why.append(_sentence(event, node))
            if node is not None and node not in shown:  # one op of a line can be met several times
                shown.add(node)
                walks += self._walks(event, node, nodes, subject, a) if len(shown) <= _SHOWN else []
        if why:
            why = [f"{text} ({times} times)" if times > 1 else text for text, times in Counter(why).items()]
            why += [f"the first {_SHOWN} of these are shown"] if len(shown) > _SHOWN else []
            return ("mixing" if mixing else "unproven"), why, walks
        if clean:
            return "separate", [], []
        # What only follows from another finding has no event of its own.
        return self.report.verdict if self.report.verdict != "independent" else "unproven", ["see the losses"], []

    def _walks(self, event: Event, node: fx.Node, ends: list[fx.Node], subject: str, a: Analysis) -> list[Walk]:
        backward = node.meta["half"] == "backward"
        start = [a.capture.tangent] if backward else []
        to = way([node], start, self._depends) if backward else self._from_batch([node])
        to = to or self._from_batch([node])
        does = event.reason or "samples meet"
        title = "from the losses backwards" if backward and to and to[0] is a.capture.tangent else "from the batch"
        what = "where samples meet" if event.refuted or event.kind in MIXES else "where nothing is proven"
        walks = [Walk(f"{title} to the op {what}", told(to, a, does))] if to else []
        on = way(ends, [node], self._depends)
        return [*walks, Walk(f"from there to {subject}", told(on[1:], a))] if len(on) > 1 else walks

    def _sites(self, fact: ParameterFact, a: Analysis) -> tuple[list[str], list[Walk]]:
        """For a proven gradient: each op that sums it over samples, and the values that it sums."""
        why = [
            "its gradient is a sum over the batch in which every term belongs to one sample",
            _HOW[self.report.method],
        ]
        why += [f"the graph's samplers do not cover this model: {self.facts.uncovered}"] if self.facts.uncovered else []
        why += [f"that is this gradient alone: the model is {self.report.verdict}"] if self.facts.events else []
        walks: list[Walk] = []
        sites = a.sites.get(fact.name, ())
        for number, site in enumerate(sites, 1):
            at = f"sum {number} of {len(sites)}" if len(sites) > 1 else "the sum over samples"
            forward = [s for s in site.all_input_nodes if s.meta.get("half") == "forward" and self._depends(s)]
            summed = root_of(site)
            forward = forward or [
                s for s in summed.all_input_nodes if s.meta.get("half", "forward") == "forward" and self._depends(s)
            ]
            if forward:
                walks.append(
                    Walk(f"from the batch to the value that {at} multiplies", told(self._from_batch(forward), a))
                )
            back = way([site], [a.capture.tangent], self._depends)
            does = "sums over samples; until here they are apart"
            walks.append(Walk(f"from the losses backwards to {at}", told(back, a, does)))
            gradient = a.capture.gradients[fact.name]
            rest = way([gradient], [site], self._depends) if gradient is not None else []
            if len(rest) > 1:
                walks.append(Walk("from there to the gradient, linear in the sum", told(rest[1:], a)))
        return why, walks

    def _unreached(self, fact: ParameterFact, a: Analysis, findings: tuple[Diagnostic, ...]) -> Explanation:
        node = a.capture.parameters[fact.name]
        if not fact.uses:
            why = ["the forward never reads it, so the losses cannot depend on it"]
            return Explanation(fact.name, "parameter", "not reached", tuple(why), findings=findings)
        nodes = way([a.capture.losses], [node], lambda n: n.meta.get("half", "forward") == "forward")
        why = [f"the forward reads it at {_lines(fact.uses)}, and no gradient comes back to it"]
        why += ["the value that is read does not reach the losses"] if not nodes else []
        walks = [Walk("how its value reaches the losses, behind a detach or torch.no_grad()", told(nodes, a))]
        return Explanation(fact.name, "parameter", "not reached", tuple(why), tuple(walks if nodes else ()), findings)

    def _without_graph(self) -> tuple[str, ...]:
        failure, oracle = self.facts.failure, self.facts.oracle
        assert failure is not None
        where = f" at {_lines([failure.location])}" if failure.location else ""
        seen = ""
        if oracle is not None and not oracle.failed:
            seen = (
                f"samples alone and in the batch differ by {oracle.worst:.1e} ({oracle.compared})"
                if oracle.mixing
                else f"no difference between samples alone and in the batch in {oracle.comparisons} comparisons"
            )
        return tuple(filter(None, (f"there is no graph: {failure.reason}{where}", seen)))

    def _depends(self, node: fx.Node) -> bool:
        assert self.analysis is not None
        return any(not v.empty() for v in self.analysis.steps[node].outputs)

    def _from_batch(self, ends: list[fx.Node]) -> list[fx.Node]:
        assert self.analysis is not None
        ways = [way(ends, [leaf], self._depends) for leaf in self.analysis.capture.batch]
        # Labels go to the loss at once: the longest of the shortest ways is that through the model.
        return max(ways, key=len)

    def _findings(self, **about: str) -> tuple[Diagnostic, ...]:
        """The diagnostics about one parameter, buffer or module; all where nothing is named."""
        if not about:
            return self.report.diagnostics
        return tuple(d for d in self.report.diagnostics if any(getattr(d, key) == name for key, name in about.items()))


def _node_of(event: Event, analysis: Analysis) -> fx.Node | None:
    """The node of the graph that an event is about, if it is about one."""
    nodes = analysis.capture.graph.graph.nodes
    return next(
        (n for n in nodes if event.op and str(n.target) == event.op and n.meta.get("origin") == event.origin), None
    )


def _sentence(event: Event, node: fx.Node | None) -> str:
    at = f" at {_lines([event.origin.location])}" if event.origin is not None and event.origin.location else ""
    half = f" in the {node.meta['half']}" if node is not None else ""
    module = f" ({event.origin.module})" if event.origin is not None and event.origin.module else ""
    return f"{event.op or 'the model'}{module}{at}{half}: {event.reason or 'samples meet'}"


def _lines(places: Iterable[Location]) -> str:
    return ", ".join(dict.fromkeys(f"{short(place.file)}:{place.line}" for place in places))
