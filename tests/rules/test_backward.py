"""Samples that mix in the backward only, where the losses say nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Net, X, Y, cross_entropy, line_of, places
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dpcheck


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.clone()


class Centred(Identity):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad - grad.mean(0)  # HERE


class Normed(Identity):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / (grad.norm() + 1e-6)  # HERE


class FromActivations(Identity):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return grad * h.mean(0)  # HERE


class Averaged(Identity):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / grad.shape[0]  # HERE


class Placed(Identity):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.arange(grad.shape[0])[:, None]  # HERE


class Clean(Identity):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return grad * torch.sigmoid(h) / grad.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "code"),
    [(Centred, "DP110"), (Normed, "DP110"), (FromActivations, "DP110"), (Averaged, "DP108"), (Placed, "DP108")],
)
def test_custom_functions(function: Any, code: str) -> None:
    report = dpcheck.check(Net(function.apply), cross_entropy, (X, Y))
    assert report.verdict == "mixing"
    assert places(report) == {(code, line_of(function.backward))}


def test_a_custom_function_that_keeps_samples_apart() -> None:
    report = dpcheck.check(Net(Clean.apply), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics


def hooked(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda grad: grad - grad.mean(0))  # HERE
    return h


def test_a_hook_on_an_activation() -> None:
    report = dpcheck.check(Net(hooked), cross_entropy, (X, Y))
    assert places(report) == {("DP110", line_of(hooked))}


def scaled_by_its_norm(module: nn.Module, given: Any, grads: Any) -> Any:
    return tuple(None if grad is None else grad / (grad.norm() + 1) for grad in given)  # HERE


def test_a_backward_hook_on_a_module() -> None:
    model = Net(lambda h: h)
    model.b.register_full_backward_hook(scaled_by_its_norm)
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert places(report) == {("DP110", line_of(scaled_by_its_norm))}


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0)  # HERE


def test_what_is_computed_again_in_the_backward_is_found_where_it_is_written() -> None:
    report = dpcheck.check(Net(lambda h: checkpoint(centred, h, use_reentrant=False)), cross_entropy, (X, Y))
    assert places(report) == {("DP103", line_of(centred))}
    assert dpcheck.check(Net(lambda h: checkpoint(torch.relu, h, use_reentrant=False)), cross_entropy, (X, Y)).ok


@pytest.mark.parametrize("mode", ["embedding", "bag"])
def test_gradients_scaled_by_counts(mode: str) -> None:
    layers: list[nn.Module] = [nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 3)]
    if mode == "bag":
        layers = [nn.EmbeddingBag(7, 4, scale_grad_by_freq=True, mode="sum"), nn.Linear(4, 3)]
    ids = torch.tensor([[0, 1, 1], [2, 3, 4], [5, 6, 0], [1, 1, 1], [2, 2, 6], [3, 0, 5]])
    report = dpcheck.check(nn.Sequential(*layers), cross_entropy, (ids, Y))
    assert report.verdict == "mixing"
    assert {(d.code, d.module, d.fix) for d in report.diagnostics} == {("DP104", "0", "safe")}
