"""Runs a captured graph on perturbed batches and says where the analysis claimed too little.

The analysis states, for every element of every value, an interval of samples that it may depend on. The referee
replaces one sample (and its tangent) at a time, runs the graph with numbers, and looks at which elements changed:
each must lie in its interval. Values that are called sums over samples must have no interaction between two samples
(the second difference vanishes). Both are consequences of a sound analysis and need no rule to state them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dpcheck.determinism import MEANS, FixedChance
from dpcheck.samplesets.analysis import Analysis
from dpcheck.samplesets.lattice import Samples
from dpcheck.samplesets.op import packet_of


class _Everything(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        # Rejection sampling hands a sample's random numbers to the next one: chance, not mixing.
        with FixedChance() if packet_of(n.target) in MEANS else nullcontext():
            self.kept[n] = super().run_node(n)
        if "empty" in packet_of(n.target):
            self.kept[n].zero_()  # memory that nobody has written is not the same in two runs
        return self.kept[n]


def _run(analysis: Analysis, fixed: list[Tensor], rows: list[Tensor]) -> dict[fx.Node, Any]:
    torch.manual_seed(11)
    runner = _Everything(analysis.capture.graph)
    runner.run(*fixed, *rows)
    return runner.kept


def objections(analysis: Analysis, model: torch.nn.Module, other: Any) -> list[str]:
    """What the numbers say against the analysis; empty for a sound one.

    Args:
        analysis: of ``model``, which must be in float64.
        other: another batch of the same size and structure, whose samples replace those of the captured one.
    """
    capture = analysis.capture
    size = capture.batch_size
    fixed = [p.detach() for p in model.parameters()] + [b.detach() for b in model.buffers()]
    tangent = torch.linspace(0.5, 1.5, size, dtype=capture.tangent.meta["val"].dtype)
    base_rows = [t for t in pytree.tree_leaves(capture.example) if isinstance(t, Tensor)] + [tangent]
    other_rows = [t for t in pytree.tree_leaves(other) if isinstance(t, Tensor)] + [tangent.flip(0) * 1.7 + 0.1]

    def run(*replaced: int) -> dict[fx.Node, Any]:
        rows = []
        for a, b in zip(base_rows, other_rows, strict=True):
            row = a.clone()
            for i in replaced:
                row[i] = b[i]
            rows.append(row)
        return _run(analysis, fixed, rows)

    base = run()
    alone = [run(i) for i in range(size)]
    both = run(0, size - 2)
    found = []
    for node, value, pick in _claims(analysis):
        if packet_of(node.target) == "embedding_renorm":
            continue  # rows that others look up may change: a sample reads its own
        a = _dense(pick(base[node]))
        if not isinstance(a, Tensor):
            continue
        for i in range(size):
            moved = _differs(a, _dense(pick(alone[i][node])))
            outside = moved & ~_holds(value, i)
            if bool(outside.any()):
                found.append(f"{node.format_node()}: {int(outside.sum())} elements depend on sample {i}, unsaid")
                break
        if value.additive and value.mixed() and a.is_floating_point():
            x, y, xy = (_dense(pick(values[node])) for values in (alone[0], alone[size - 2], both))
            scale = float(torch.stack([t.abs().max() for t in (a, x, y, xy)]).max()) if a.numel() else 0.0
            rest = (xy - x - y + a).abs()
            if a.numel() and scale < 1e12 and float(rest.max()) > 1e-7 * scale + 1e-12:
                found.append(f"{node.format_node()}: called a sum over samples, and is none")
        if found:
            break
    return found


def _claims(analysis: Analysis) -> Iterator[tuple[fx.Node, Samples, Any]]:
    for node, step in analysis.steps.items():
        if node.op not in ("call_function", "placeholder"):
            continue
        if isinstance(step.value, Samples):
            yield node, step.value, lambda v: v
        elif isinstance(step.value, list | tuple):
            for k, part in enumerate(step.value):
                if isinstance(part, Samples):
                    yield node, part, lambda v, k=k: v[k]


def _dense(value: Any) -> Any:
    return value.to_dense() if isinstance(value, Tensor) and value.is_sparse else value


def _holds(value: Samples, i: int) -> Tensor:
    return (value.low >= value.batch - i) & (value.high >= i + 1)


def _differs(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or a.is_complex():
        finite = a[torch.isfinite(a)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        same = torch.isclose(a, b, rtol=1e-8, atol=1e-10 * min(scale, 1.0) + 1e-13, equal_nan=True)
        return ~same
    return a != b
