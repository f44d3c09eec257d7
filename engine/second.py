"""Activation checkpointing kept: a plan with two backwards where one would hold what the model asks to compute again.

Book-keeping with one backward holds the operands of every site until the clip factors are known, and so every
activation of a checkpointed model. With two, the first backward gives norms only and the second is that of the losses
times their clip factors (ghost clipping: Li et al. 2022, "Large Language Models Can Be Strong DP Learners").
"""

from __future__ import annotations

from typing import Any

import torch
from dpcheck.engine.kinds import FLAT, Grouping
from dpcheck.engine.memory import peak_bytes
from dpcheck.engine.plan import Plan, make_plan
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dpcheck.capture import Capture
from dpcheck.samplesets import Analysis
from dpcheck.samplesets.interpreter import interpret
from dpcheck.samplesets.lattice import Samples

# What the second backward must save of the memory to be worth its time.
_SAVES = 0.1


def best_plan(analysis: Analysis, *, grouping: Grouping = FLAT) -> Plan:
    """The plan for the step: with a second backward where checkpoints would else save nothing.

    Raises:
        NotCovered: as :func:`dpcheck.engine.plan.make_plan`.
    """
    plan, second = make_plan(analysis, grouping=grouping), second_plan(analysis, grouping=grouping)
    if second is not None and peak_bytes(second) < (1 - _SAVES) * peak_bytes(plan):
        return second
    return plan


def second_plan(analysis: Analysis, *, grouping: Grouping = FLAT) -> Plan | None:
    """The plan with two backwards for a checkpointed model; ``None`` where it is not exact or of no use."""
    capture = analysis.capture
    # A factor for each group would take a backward for each; and a large one scales rounding errors up with it.
    if len(grouping.names) > 1 or grouping.amplifies or not (repeats(capture) and _one_dtype(capture)):
        return None
    return make_plan(analysis, grouping=grouping, backwards=2) if linear(capture) else None


def repeats(capture: Capture) -> bool:
    """Whether the backward computes again what the forward has computed."""
    numbers: dict[Any, int] = {}
    number_of: dict[fx.Node, int] = {}
    forward: set[int] = set()
    for node in capture.graph.graph.nodes:
        if node.op != "call_function":
            number_of[node] = -len(number_of) - 1
            continue
        given = pytree.tree_map(
            lambda a: ("node", number_of[a]) if isinstance(a, fx.Node) else a, [node.args, node.kwargs]
        )
        number = numbers.setdefault(f"{node.target} {given}", len(numbers))
        number_of[node] = number
        if node.meta["half"] == "forward":
            forward.add(number)
        elif number in forward and not _is_view(node):
            return True
    return False


def linear(capture: Capture) -> bool:
    """Whether every gradient is linear in the weights of the losses; with a hook that clips one it is not."""
    steps = interpret(capture, weights_only=True)
    gradients = [steps[node].value for node in capture.gradients.values() if node is not None]
    return all(isinstance(g, Samples) and (g.zero or (g.mixed() and g.additive and not g.inexact)) for g in gradients)


def _is_view(node: fx.Node) -> bool:
    val, sources = node.meta.get("val"), [n.meta.get("val") for n in node.all_input_nodes]
    if not isinstance(val, Tensor):
        return True
    storage = val.untyped_storage()._cdata
    return any(isinstance(s, Tensor) and s.untyped_storage()._cdata == storage for s in sources)


def _one_dtype(capture: Capture) -> bool:
    """Whether nothing is rounded on the way: half precision would move a clipped gradient out of its bound."""
    values = [
        t for n in capture.graph.graph.nodes for t in pytree.tree_leaves(n.meta.get("val")) if n is not capture.tangent
    ]
    dtypes = {t.dtype for t in values if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}
