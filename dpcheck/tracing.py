"""What surrounds a model while it is traced: the recorder of origins, and settings that keep the trace readable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import TorchDispatchMode

from dpcheck.drawing import constant_draw, is_drawn_number
from dpcheck.source import Origin, origin_here


class Recorder(TorchDispatchMode):
    """Writes origin, half and autograd sequence number on every node as it is made."""

    def __init__(self, paths: Mapping[int, str], root: FrameType, chance: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paths, self.root, self.half, self.chance = paths, root, "forward", chance
        self.by_sequence: dict[int, Origin] = {}
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_drawn_number(func, out):
            self.drew = True
            if self.chance is not None:
                return constant_draw(func, out, self.chance)
        mode: Any = get_proxy_mode()
        if mode is None:
            return out
        node: Any = torch._C._current_autograd_node()
        origin = origin_here(self.paths, self.root)
        if node is None:
            # Autograd numbered this op just before dispatching it; ops that it does not record repeat the last number.
            self.by_sequence.setdefault(torch._C._autograd._get_sequence_nr() - 1, origin)
        elif origin.location is None:
            origin = self.by_sequence.get(node._sequence_nr(), origin)
        for made in reversed(mode.tracer.graph.nodes):
            if "half" in made.meta or made.op == "placeholder":
                break
            made.meta["half"], made.meta["origin"] = self.half, origin
        return out


@contextmanager
def without_fused_layers() -> Iterator[None]:
    """oneDNN's recurrent layers are one opaque op; without oneDNN they are traced as matrix products."""
    before: bool = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def without_validation() -> Iterator[None]:
    """Distributions do not look at their arguments: a check of them that raises is no part of what is computed."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
