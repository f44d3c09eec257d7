"""One model of a zoo, and the losses that most of them are trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES = 4
Case = tuple[nn.Module, Any, Any]


@dataclass(frozen=True)
class Entry:
    """A model family of a zoo.

    Attributes:
        name: as the zoo calls it.
        kind: such as ``decoder`` or ``vision``.
        make: builds ``(model, loss_fn, batch)`` with random weights, in training mode.
    """

    name: str
    kind: str
    make: Callable[[], Case]


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of each sample's class."""
    images, labels = batch
    out = model(images)
    logits = out if isinstance(out, Tensor) else out[0]
    return F.cross_entropy(logits, labels, reduction="none")


def images(side: int, classes: int, *, channels: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, channels, side, side), torch.randint(0, classes, (SAMPLES,))


def per_sample(values: Tensor) -> Tensor:
    """The mean of everything that belongs to one sample."""
    return values.flatten(1).mean(1)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every token, averaged over each sample's tokens."""
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape).mean(1)
