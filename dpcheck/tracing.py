"""What surrounds a model while it is traced: the recorder of origins, and settings that keep the trace readable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from dpcheck.assertions import Numbers, assertion_here
from dpcheck.checkpoints import number_of_draw
from dpcheck.diagnostic import Location
from dpcheck.drawing import constant_draw, is_drawn_number
from dpcheck.source import Origin, origin_here

# Elements of a tensor up to which its numbers are followed.
_SMALL = 1 << 18


class Constants:
    """What is known while tracing: numbers made from nothing but shapes, such as masks of ones.

    Each is computed beside its fake tensor, so that Python may ask for it (``if mask.any()``) without asking for data.
    """

    def __init__(self) -> None:
        self.known: Any = WeakIdKeyDictionary()
        self.spoilt: set[int] = set()

    def value(self, t: Tensor) -> Tensor | None:
        if type(t) is Tensor and t.numel() <= _SMALL:
            with _disable_current_modes():
                return t.detach().clone()
        real: Tensor | None = self.known.get(t)
        return None if real is None or real.untyped_storage()._cdata in self.spoilt else real

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Run the op on known values; what is written with unknown ones is known no more."""
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        small = all(isinstance(n, int) for t in made for n in t.shape) and all(t.numel() <= _SMALL for t in made)
        chance = torch.Tag.nondeterministic_seeded in func.tags
        if chance or not small or any(self.value(t) is None for t in given):
            if func._schema.is_mutable:
                self.spoilt |= {self.known[t].untyped_storage()._cdata for t in given if t in self.known}
            return
        args, kwargs = pytree.tree_map_only(Tensor, self.value, (args, kwargs))
        with _disable_current_modes():
            real = func(*args, **kwargs)
        for fake, t in zip(made, (t for t in pytree.tree_leaves(real) if isinstance(t, Tensor)), strict=True):
            self.known[fake] = t


class Recorder(TorchDispatchMode):
    """Writes origin, half and autograd sequence number on every node as it is made."""

    def __init__(
        self, paths: Mapping[int, str], root: FrameType, chance: float | None, numbers: Numbers | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paths, self.root, self.half, self.chance = paths, root, "forward", chance
        self.by_sequence: dict[int, Origin] = {}
        self.drew, self.constants = False, Constants()
        self.numbers, self.asserted = numbers or {}, list[Location]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            number = self.constants.value(args[0])
            if number is not None:
                return number.item()
            place = assertion_here(self.root)
            if place is not None:
                self.asserted.append(place)
                known = self.numbers.get(place, [])
                if known:
                    # A part of the forward that runs again (checkpointing) asks again.
                    return known[(self.asserted.count(place) - 1) % len(known)]
        draw = number_of_draw(func, args, kwargs)
        out = func(*args, **(kwargs or {}))
        if self.half == "forward":
            self.constants.follow(func, args, kwargs or {}, out)
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
            if draw is not None and made.target is func:
                made.meta["draw"] = draw
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


@contextmanager
def refusals_noted(root: FrameType) -> Iterator[list[Location | None]]:
    """Where torch refused to tell data while tracing: a model may catch that error and take a path of its own."""
    found: list[Location | None] = []
    with ExitStack() as stack:
        for kind in (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException):

            def noting(self: Any, *args: Any, _init: Any = kind.__init__, **kwargs: Any) -> None:
                found.append(origin_here({}, root).location)
                _init(self, *args, **kwargs)

            stack.enter_context(mock.patch.object(kind, "__init__", noting))
        yield found
