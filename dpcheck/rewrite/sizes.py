"""What every batch norm of a run normalises, by module and by the place of a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from dpcheck.capture import LossFn
from dpcheck.fixes.batch_norm import CALLS, channels_of
from dpcheck.fixes.layers import positions
from dpcheck.fixes.trial import observe
from dpcheck.rewrite.calls import seen_at
from dpcheck.rewrite.norms import Size
from dpcheck.rules.common import is_batch_norm

Place = tuple[str, int | None, int | None]  # file, end line, end column


def of_modules(model: nn.Module, loss_fn: LossFn, batch: Any) -> Mapping[str, Size]:
    """The size of every batch norm that runs, by each of its paths."""
    paths = {path: module for path, module in model.named_modules(remove_duplicate=False) if is_batch_norm(module)}
    seen = observe(model, loss_fn, batch, paths)
    return {path: Size(channels_of(paths[path]), positions(call)) for path, call in seen.items()}


def of_calls(model: nn.Module, loss_fn: LossFn, batch: Any) -> Mapping[Place, set[Size]]:
    """The sizes of what batch norm normalises, by the user's line that leads to the call."""
    return seen_at(model, loss_fn, batch, _size, lambda at: (at.file, at.end_line, at.end_column))


def _size(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Size | None:
    if func not in CALLS:
        return None
    x = args[0] if args else kwargs["input"]
    return Size(x.shape[1], math.prod(x.shape[2:]))
