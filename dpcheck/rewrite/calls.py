"""What torch functions are called with in a run of the model, by the user's expression that leads to each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from torch import nn
from torch.overrides import TorchFunctionMode

from dpcheck.capture import LossFn, run_losses
from dpcheck.diagnostic import Location
from dpcheck.fixes.copying import duplicate
from dpcheck.source import origin_here

T = TypeVar("T")
P = TypeVar("P", bound=Hashable)
# Of a function and its arguments; None of calls that do not matter.
Look = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], T | None]


class _Calls(TorchFunctionMode, Generic[P, T]):
    def __init__(self, look: Look[T], place: Callable[[Location], P]) -> None:
        super().__init__()
        self.look, self.place, self.found = look, place, dict[P, set[T]]()
        self.root = sys._getframe(1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seen = self.look(func, args, kwargs)
        if seen is not None:
            at = origin_here({}, self.root).user
            if at is not None:
                self.found.setdefault(self.place(at), set()).add(seen)
        return func(*args, **kwargs)


def seen_at(
    model: nn.Module, loss_fn: LossFn, batch: Any, look: Look[T], place: Callable[[Location], P]
) -> Mapping[P, set[T]]:
    """What ``look`` sees in the calls of one run, on a copy of the model, by the ``place`` of the user's expression."""
    calls = _Calls(look, place)
    with calls:
        run_losses(duplicate(model).model, loss_fn, batch)
    return calls.found
