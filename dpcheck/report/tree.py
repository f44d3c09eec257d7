"""The modules of a report as a tree, each with the verdict on what it holds."""

from __future__ import annotations

from dataclasses import dataclass

from dpcheck.diagnostic import ParameterFact, Report

# The worst first: a module is as its worst part.
_ORDER = ("mixing", "unproven", "independent", "frozen")
_OF_STATUS = {
    "covered": "independent",
    "fallback": "unproven",
    "mixed": "mixing",
    "no-gradient": "unproven",
    "frozen": "frozen",
}


@dataclass(frozen=True)
class Branch:
    """A module that holds parameters or buffers, or has a finding, or has such children.

    Attributes:
        name: its own, without the path; empty for the model.
        kind: its class, where a parameter tells.
        verdict: ``mixing``, ``unproven``, ``independent`` or ``frozen``: the worst of its parts.
        codes: rules that found something in it.
        children: in the order of their first parameter.
    """

    name: str
    kind: str
    verdict: str
    codes: tuple[str, ...]
    children: tuple[Branch, ...]


def tree_of(report: Report) -> Branch:
    """The model and the modules below it, from the names in the report."""
    parameters: dict[str, list[ParameterFact]] = {}
    for p in report.parameters:
        parameters.setdefault(p.name.rpartition(".")[0], []).append(p)
    codes: dict[str, list[str]] = {}
    for d in report.diagnostics:
        named = d.parameter or d.buffer
        path = d.module if d.module is not None else named.rpartition(".")[0] if named else ""
        codes.setdefault(path, []).append(d.code)
    buffers = [b.name.rpartition(".")[0] for b in report.buffers]
    paths = {"": None}
    for path in (*parameters, *buffers, *codes):
        parts = path.split(".") if path else []
        paths |= {".".join(parts[:n]): None for n in range(1, len(parts) + 1)}
    whole = report.verdict

    def branch(path: str) -> Branch:
        below = [p for p in paths if p and p.rpartition(".")[0] == path and p != path]
        children = tuple(map(branch, below))
        own = [_of(p, whole) for p in parameters.get(path, ())]
        found = tuple(dict.fromkeys(codes.get(path, ())))
        worst = [*own, *(child.verdict for child in children)]
        worst += ["unproven" if all(c.startswith("DP9") for c in found) else "mixing"] if found else []
        worst += [whole] if path == "" else []
        verdict = min(worst, key=_ORDER.index, default="independent" if whole == "independent" else "unproven")
        kind = next((p.owner for p in parameters.get(path, ())), "")
        return Branch(path.rpartition(".")[2], kind, verdict, found, children)

    return branch("")


def _of(p: ParameterFact, whole: str) -> str:
    """Of a proven model, a fallback is proven too: it is only how the engine computes the gradient."""
    return whole if p.status == "fallback" else _OF_STATUS[p.status]
