"""Whether a fixed model still learns: the last sign that a replacement left nothing to learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dpcheck.capture import LossFn, first_line
from dpcheck.determinism import FixedChance
from dpcheck.fixes.copying import duplicate
from dpcheck.sandbox import sandbox

# The first rate may be too large for a model.
STEPS, RATES = 20, (1e-3, 1e-4, 1e-5)
# By the first much of itself the loss falls in a few steps of a model that learns; by the second, of one that may.
FALLS, MAY_FALL = 0.01, 1e-4


def why_not_learning(old: nn.Module, new: nn.Module, loss_fn: LossFn, batch: Any) -> str | None:
    """Train copies on one small batch, without privacy; both models are untouched.

    Returns:
        What is wrong, if the mean loss of ``new`` does not fall within 20 steps of Adam at any rate, by a hundredth of
        a percent at least, while that of ``old`` falls by 1 %; ``None`` otherwise (a loss at its least falls for
        neither).
    """
    try:
        if _learns(new, loss_fn, batch, MAY_FALL):
            return None
    except Exception as error:  # a class of the user's may refuse in any way
        return f"a step of Adam raised {type(error).__name__}: {first_line(error)}"
    try:
        if not _learns(old, loss_fn, batch, FALLS):
            return None
    except Exception:
        return None
    return f"{STEPS} steps of Adam on the batch lower the loss of the given model, and not that of the fixed one"


def _learns(model: nn.Module, loss_fn: LossFn, batch: Any, fall: float) -> bool:
    return any(_falls(model, loss_fn, batch, fall, rate) for rate in RATES)


def _falls(model: nn.Module, loss_fn: LossFn, batch: Any, fall: float, rate: float) -> bool:
    copy = duplicate(model).model
    trainable = [p for p in copy.parameters() if p.requires_grad]
    if not trainable:
        return False
    optimizer = torch.optim.Adam(trainable, rate)
    first: float | None = None
    for _ in range(STEPS + 1):
        with sandbox(copy), torch.enable_grad(), FixedChance():  # the same dropout in every step
            loss = loss_fn(copy, batch).double().mean()
            value = float(loss.detach())
            first = value if first is None else first
            if value < first - fall * abs(first):
                return True
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return False
