"""Faults of the analysis, the fixer, and the guards of the engine."""

from __future__ import annotations

from typing import Any

import torch
from dpcheck.engine import summing, trainer, watch
from dpcheck.rules.data_written_buffer import DataWrittenBuffer
from torch import nn

from dpcheck import api
from dpcheck.fixes import batch_norm
from dpcheck.samplesets.op import RULES
from faults.base import Fault


def _each_its_own(original: Any) -> Any:
    """The first output belongs to the samples that the first input belongs to, place by place."""

    def rule(op: Any) -> Any:
        found = original(op)
        first = op.args[0]
        if isinstance(found, list) and tuple(found[0].shape) == tuple(first.shape):
            return [first, *(None if f is None else op.none(f.shape) for f in found[1:])]
        return op.none(found.shape) if not isinstance(found, list) else found

    return rule


def _left_in(original: Any) -> Any:
    return lambda module, groups: module


class _Renamed(nn.BatchNorm2d):
    """Batch norm under another name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (var + self.eps).sqrt()


def _renamed(original: Any) -> Any:
    return lambda module, groups: _Renamed(module.num_features)


def _trusting(original: Any) -> Any:
    return lambda self, physical, norm: self.clipper(physical.data, physical.weights)


def _nothing(original: Any) -> Any:
    return lambda *args, **kwargs: None


FAULTS = [
    Fault("a mean over the batch is taken for each sample's own", RULES, "mean", _each_its_own),
    Fault("a count over the batch is taken for a constant", RULES, "sum", _each_its_own,
          "opacus #792, #808: tokens that are not ignored"),
    Fault("samples that mix are called independent", api, "_verdict", lambda f: lambda facts: "independent"),
    Fault("buffers written from data are not reported", DataWrittenBuffer, "scan", lambda f: lambda self, facts: ()),
    Fault("the fixer leaves batch norm in", batch_norm, "to_group_norm", _left_in, "BatchNorm left in"),
    Fault("the fixer puts batch norm under another name", batch_norm, "to_group_norm", _renamed),
    Fault("an ordinary gradient in p.grad is let through", watch.Watch, "refuse_foreign_gradients", _nothing,
          "opacus: gradients of another loss"),
    Fault("a parameter that is unfrozen goes unnoticed", watch.Watch, "refuse_changes", _nothing,
          "noise missing on frozen-then-unfrozen parameters",
          # A second guard, without which the first would not be missed.
          also=((summing.Summer, "_clip", _trusting),)),
    Fault("a ledger with no room for the target is let through", trainer, "refuse_ledger", _nothing),
]  # fmt: skip
