"""Test cases that are source code: what a failing test prints is exactly what was run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Case:
    """A module and a batch as Python expressions over ``torch``, ``nn`` and the wrappers of this file.

    The expressions are evaluated, so they are for tests only.

    Attributes:
        model: makes an ``nn.Module``, such as ``nn.Linear(3, 4)``.
        batch: makes the tuple of tensors that the module is called with, samples on axis 0 of each.
        seed: of torch's generator, before both.
    """

    model: str
    batch: str
    seed: int = 0

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The module and the batch."""
        names = {"torch": torch, "nn": nn, **{wrapper.__name__: wrapper for wrapper in WRAPPERS}}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(self.seed)
            warnings.simplefilter("ignore")  # advice of torch about fast paths
            model, batch = eval(self.model, names), eval(self.batch, names)
        return model, batch

    def script(self) -> str:
        """A program that reproduces the case."""
        used = [wrapper.__name__ for wrapper in WRAPPERS if f"{wrapper.__name__}(" in self.model]
        wrappers = f"from dpcheck.cases import {', '.join(used)}\n" if used else ""
        return (
            f"import torch\nfrom torch import nn\n{wrappers}from dpcheck.testing import assert_sampler_correct\n"
            f"torch.manual_seed({self.seed})\nmodel = {self.model}\nbatch = {self.batch}\n"
            "assert_sampler_correct(model, batch)"
        )


def output_losses(model: Callable[..., Any], batch: Any) -> Tensor:
    """A loss [B] for any module: a bounded function of every entry of the (first) output, no two with equal weight.

    ``batch`` is a tensor or a tuple of them, the positional arguments of the module. Samples are on axis 0 of the
    output.
    """
    out = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    first: Tensor = next(leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
    flat = first.reshape(first.shape[0], -1)
    weights = torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (torch.sin(flat + 0.3) * weights).sum(1)


class Applied(nn.Module):
    """``function(*batch, *parameters)`` as a module, to test a function or a ``torch.autograd.Function``."""

    def __init__(self, function: Callable[..., Any], parameters: list[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in parameters])

    def forward(self, *batch: Tensor) -> Any:
        return self.function(*batch, *self.weights)


class TimeFirst(nn.Module):
    """A layer that takes time on axis 0 and samples on axis 1, for a batch with samples first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *batch: Tensor) -> Tensor:
        out = self.layer(*(t.transpose(0, 1) for t in batch))
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first.transpose(0, 1)


class Packed(nn.Module):
    """A recurrent layer on sequences [B, T, *] of the lengths [B]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(sequences, lengths.cpu(), True, False)
        padded, _ = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], True, total_length=sequences.shape[1])
        return padded


def materialised(layer: nn.Module, *shape: int) -> nn.Module:
    """A lazy layer after its first call."""
    layer(torch.zeros(shape))
    return layer


WRAPPERS: tuple[Callable[..., nn.Module], ...] = (TimeFirst, Packed, materialised)
