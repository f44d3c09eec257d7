"""What every batch norm of a run normalises, by module and by the place of a call."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from dpcheck.capture import LossFn, run_losses
from dpcheck.fixes.batch_norm import CALLS, channels_of
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.layers import positions
from dpcheck.fixes.trial import observe
from dpcheck.rewrite.norms import Size
from dpcheck.rules.common import is_batch_norm
from dpcheck.source import origin_here

Place = tuple[str, int | None, int | None]  # file, end line, end column


@dataclass
class _Calls(TorchFunctionMode):
    sizes: dict[Place, set[Size]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.root = sys._getframe(2)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS:
            x = args[0] if args else kwargs["input"]
            at = origin_here({}, self.root).user
            if at is not None:
                size = Size(x.shape[1], math.prod(x.shape[2:]))
                self.sizes.setdefault((at.file, at.end_line, at.end_column), set()).add(size)
        return func(*args, **kwargs)


def of_modules(model: nn.Module, loss_fn: LossFn, batch: Any) -> Mapping[str, Size]:
    """The size of every batch norm that runs, by each of its paths."""
    paths = {path: module for path, module in model.named_modules(remove_duplicate=False) if is_batch_norm(module)}
    seen = observe(model, loss_fn, batch, paths)
    return {path: Size(channels_of(paths[path]), positions(call)) for path, call in seen.items()}


def of_calls(model: nn.Module, loss_fn: LossFn, batch: Any) -> Mapping[Place, set[Size]]:
    """The sizes of what batch norm normalises, by the user's line that leads to the call."""
    calls = _Calls()
    with calls:
        run_losses(duplicate(model).model, loss_fn, batch)
    return calls.sizes
