"""Where a sample's place in the batch, or the number of samples, enters: the captured graphs on equal samples.

The sample sets say which samples a value depends on, not that it is the same function of each:
``h * arange(B)[:, None]``, or position embeddings added along the batch, keep samples apart, yet removing one changes
the losses of the others. When every sample and every tangent is the same, each node must hold the same numbers for
every sample, and the same in a graph of another batch size. The first node that does not is where it came in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.determinism import FixedChance
from dpcheck.facts import Event
from dpcheck.samplesets.analysis import Analysis
from dpcheck.samplesets.lattice import Samples

_TOLERANCE = 1e-4


class _Values(fx.Interpreter):
    """Runs the graph and keeps, for every value, the numbers of each sample."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__(analysis.capture.graph)
        self.analysis = analysis
        self.shares: dict[fx.Node, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        step = self.analysis.steps.get(n) if n.op == "call_function" else None
        if isinstance(out, Tensor) and step is not None and isinstance(step.value, Samples):
            self.shares[n] = _shares(out, step.value)
        return out


def _shares(out: Tensor, value: Samples) -> list[Tensor]:
    """The elements of each sample in row-major order; none where elements belong to several samples."""
    if value.empty() or value.mixed():
        return []
    owners = value.owners()
    wide = torch.complex128 if out.is_complex() else torch.float64
    return [out[owners == i].to(wide) for i in range(value.batch)]


def place_events(model: nn.Module, small: Analysis, large: Analysis) -> list[Event]:
    """The op at which place or number first come in; empty when neither does.

    Args:
        model: of which both graphs were captured; it is not run.
        small, large: the analyses at two batch sizes.
    """
    sample = small.capture.example
    first, second = _run(model, small, sample), _run(model, large, sample)
    others = dict(zip(small.capture.graph.graph.nodes, large.capture.graph.graph.nodes, strict=False))
    for node, shares in first.items():
        twins = [*shares[1:], *second.get(others.get(node, node), [])[:1]]
        if any(_differ(shares[0], twin) for twin in twins):
            reaches = ("losses",) if node.meta["half"] == "forward" else ("gradients",)
            reason = "uses the place of a sample in the batch, or the number of samples"
            return [Event("batch-size", str(node.target), node.meta["origin"], reaches, reason)]
    return []


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.numel():
        return False
    scale = float(torch.cat([a, b]).abs().nan_to_num(0.0, 0.0, 0.0).max())
    return not torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)


def _run(model: nn.Module, analysis: Analysis, sample: Any) -> dict[fx.Node, list[Tensor]]:
    capture = analysis.capture
    same = inputs.take(sample, [0] * capture.batch_size)
    rows = [leaf for leaf in pytree.tree_leaves(same) if isinstance(leaf, Tensor)]
    tangent = torch.ones(capture.batch_size, dtype=capture.tangent.meta["val"].dtype, device=rows[0].device)
    state = [p.detach() for p in model.parameters()] + [b.detach() for b in model.buffers()]
    runner = _Values(analysis)
    with torch.no_grad(), FixedChance():
        runner.run(*state, *rows, tangent)
    return runner.shares
