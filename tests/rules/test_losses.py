"""Losses that use other samples, or how many there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Net, X, Y, cross_entropy, line_of, places
from torch import Tensor, nn

import dpcheck

TOKENS = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(2))
LABELS = torch.randint(-1, 3, (6, 5), generator=torch.Generator().manual_seed(3))


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    a, b = (F.normalize(model(view), dim=1) for view in (batch[0], batch[0].roll(1, 1)))
    return F.cross_entropy(a @ b.t() / 0.1, torch.arange(len(a)), reduction="none")  # HERE


def hardest_triplet(model: nn.Module, batch: Any) -> Tensor:
    h, same = model(batch[0]), batch[1][:, None] == batch[1][None]
    apart = torch.cdist(h, h)  # HERE
    return F.relu((apart * same).amax(1) - (apart + 1e3 * same).amin(1) + 1)


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch).mean().expand(len(batch[0]))  # HERE


def weighted_by_class(model: nn.Module, batch: Any) -> Tensor:
    counts = torch.bincount(batch[1], minlength=3)
    return cross_entropy(model, batch) / counts[batch[1]]


def ranked(model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropy(model, batch)
    return losses * (losses >= losses.detach().median())  # HERE


def mixed_up(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    order = torch.randperm(len(x))
    logits = model(0.3 * x + 0.7 * x[order])  # HERE
    each = F.cross_entropy(logits, y, reduction="none")
    return 0.3 * each + 0.7 * F.cross_entropy(logits, y.roll(0), reduction="none")


@pytest.mark.parametrize(
    ("loss_fn", "code"),
    [(contrastive, "DP401"), (hardest_triplet, "DP401"), (mean_loss, "DP401"), (ranked, "DP401"), (mixed_up, "DP106")],
)
def test_losses_of_several_samples(loss_fn: Callable[..., Tensor], code: str) -> None:
    report = dpcheck.check(nn.Linear(4, 3), loss_fn, (X, Y))
    assert report.verdict == "mixing"
    found = places(report)
    assert {c for c, _ in found} <= {code, "DP401"}
    assert line_of(loss_fn) in {line for _, line in found}


def test_weights_by_the_classes_of_the_batch() -> None:
    assert dpcheck.check(nn.Linear(4, 3), weighted_by_class, (X, Y)).verdict == "mixing"


def token_losses(model: nn.Module, batch: Any) -> Tensor:
    x, labels = batch
    flat = F.cross_entropy(model(x).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-1)
    return flat.view(labels.shape).sum(1)


def per_token_of_the_batch(model: nn.Module, batch: Any) -> Tensor:
    return token_losses(model, batch) / (batch[1] != -1).sum()  # HERE


def by_reduction(model: nn.Module, batch: Any) -> Tensor:
    loss = F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-1)  # HERE
    return loss.expand(len(batch[0]))


def per_token_of_the_sample(model: nn.Module, batch: Any) -> Tensor:
    return token_losses(model, batch) / (batch[1] != -1).sum(1).clamp(min=1)


@pytest.mark.parametrize("loss_fn", [per_token_of_the_batch, by_reduction])
def test_a_mean_over_the_tokens_of_the_batch(loss_fn: Callable[..., Tensor]) -> None:
    report = dpcheck.check(nn.Linear(4, 3), loss_fn, (TOKENS, LABELS))
    assert places(report) == {("DP401", line_of(loss_fn))}


def test_a_mean_over_the_tokens_of_each_sample() -> None:
    report = dpcheck.check(nn.Linear(4, 3), per_token_of_the_sample, (TOKENS, LABELS))
    assert report.ok, report.diagnostics


class Experts(nn.Module):
    """Three experts; the gate takes the best for each sample."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.capacity, self.balance = capacity, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        chosen = F.one_hot(shares.argmax(-1), 3).to(x)
        self.balance = (chosen.mean(0) * shares.mean(0)).sum()  # BALANCE
        if self.capacity is not None:
            chosen = chosen * (chosen.cumsum(0) <= self.capacity)  # CAPACITY
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (out * (chosen * shares).unsqueeze(-1)).sum(1)


def balanced(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model, batch) + 0.01 * model.balance


def test_experts_are_clean_without_capacity_and_balance() -> None:
    report = dpcheck.check(Experts(), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics


def test_experts_with_a_capacity() -> None:
    report = dpcheck.check(Experts(capacity=2), cross_entropy, (X, Y))
    assert places(report) == {("DP103", line_of(Experts, "# CAPACITY"))}


def test_a_balancing_loss_over_the_batch() -> None:
    report = dpcheck.check(Experts(), balanced, (X, Y))
    assert places(report) == {("DP103", line_of(Experts, "# BALANCE"))}


def by_len(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) / len(batch[0])  # HERE


def by_shape(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) * batch[0].shape[0] ** -0.5  # HERE


def by_a_tensor(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) / torch.tensor(float(batch[0].size(0)))  # HERE


def by_ones(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) / torch.ones_like(batch[1]).sum()  # HERE


def by_place(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) * torch.linspace(0.5, 1, len(batch[0]))  # HERE


def by_branch(model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropy(model, batch)
    return losses * 2 if len(losses) > 5 else losses  # HERE


def by_branch_on_one(model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropy(model, batch)
    return losses * 2 if len(losses) == 1 else losses  # HERE


SIZED = [by_len, by_shape, by_a_tensor, by_ones, by_place, by_branch, by_branch_on_one]


@pytest.mark.parametrize("loss_fn", SIZED)
def test_the_number_of_samples_or_the_place_of_one_in_the_loss(loss_fn: Callable[..., Tensor]) -> None:
    report = dpcheck.check(nn.Linear(4, 3), loss_fn, (X, Y))
    assert report.verdict == "mixing"
    assert places(report) == {("DP108", line_of(loss_fn))}


SIZED_MIDDLES: dict[str, Callable[[Tensor], Tensor]] = {
    "numel": lambda h: h / h.numel(),
    "square root": lambda h: h * math.sqrt(h.shape[0]),
    "power": lambda h: h * torch.pow(0.9, torch.tensor(h.size(0))),
    "filled": lambda h: h + torch.full_like(h, h.size(0)),
    "rows of a table": lambda h: h + torch.eye(8)[: h.size(0)],
}


@pytest.mark.parametrize("name", SIZED_MIDDLES)
def test_the_number_of_samples_in_the_model(name: str) -> None:
    report = dpcheck.check(Net(SIZED_MIDDLES[name]), cross_entropy, (X, Y))
    assert report.verdict == "mixing"
    assert {d.code for d in report.diagnostics} == {"DP108"}


def test_sizes_of_a_sample_are_no_number_of_samples() -> None:
    report = dpcheck.check(Net(lambda h: h / h.shape[1] + h.numel() / h.shape[0]), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics
