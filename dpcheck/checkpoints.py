"""Activation checkpointing, in a form that a graph and ``torch.autograd.grad`` can follow.

A part of the forward that runs again in the backward is in the graph twice (see :mod:`dpcheck.engine.second` for what
the engine makes of it). What it draws at random it draws once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import CheckpointFunction, checkpoint


@contextmanager
def without_reentry() -> Iterator[None]:
    """``use_reentrant=True`` is computed as ``False``.

    Reentrant checkpointing calls ``backward`` within the backward, which no graph can hold and which refuses
    ``torch.autograd.grad``. Where no input of a checkpointed part needs a gradient it also leaves out the gradients of
    the parameters within; these are computed here.
    """

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)

    with mock.patch.object(CheckpointFunction, "apply", apply):
        yield


def number_of_draw(func: Any, args: Any, kwargs: Any) -> int | None:
    """The same number for a draw and its repetition in the backward; ``None`` if ``func`` draws nothing.

    Checkpointing sets the state of torch's generator back before a part of the forward runs again, unless it is told
    not to. Fake tensors do not move that state, so every draw moves it here.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()) or _drops_nothing(func, args, kwargs):
        return None
    with _disable_current_modes():
        number = hash(torch.get_rng_state().numpy().tobytes())
        torch.rand(())
    return number


def _drops_nothing(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it is attention without dropout, which has the tag all the same."""
    names = [argument.name for argument in func._schema.arguments]
    return "dropout_p" in names and {**dict(zip(names, args, strict=False)), **(kwargs or {})}.get("dropout_p", 0) == 0


def draw_once(graph: fx.GraphModule) -> fx.GraphModule:
    """Draws of the backward that repeat one of the forward take its value."""
    drawn: dict[Any, list[fx.Node]] = {}
    for node in list(graph.graph.nodes):
        if "draw" not in node.meta or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        shapes = [tuple(t.shape) for t in pytree.tree_leaves(node.meta["val"])]
        same = drawn.setdefault((node.meta["draw"], node.target, str(shapes)), [])
        if node.meta["half"] == "forward":
            same.append(node)
        # Of two draws from one seed, which a model may set itself, none is taken for the other.
        elif len(same) == 1:
            node.replace_all_uses_with(same[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
    return graph
