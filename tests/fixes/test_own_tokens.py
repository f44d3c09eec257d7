"""Balancing losses of mixtures of experts, against the same loss of every sample alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

X, Y, EXPERTS = torch.randn(6, 5, 4), torch.tensor([0, 1, 2, 0, 1, 2]), 3


def balance(logits: tuple[Tensor, ...], k: int = 2) -> Tensor:
    """Over the rows of all layers, one layer after the other: the experts' shares of tokens and of probability."""
    probabilities = F.softmax(torch.cat(logits, dim=0), dim=-1) if len(logits) > 1 else logits[0].softmax(-1)
    chosen = F.one_hot(torch.topk(probabilities, k, dim=-1)[1], EXPERTS)
    tokens, share = torch.mean(chosen.float(), dim=0), torch.mean(probabilities, dim=0)
    return torch.sum(tokens * share.unsqueeze(0)) * EXPERTS


class Experts(nn.Module):
    """``flat``: its rows are the tokens of all samples."""

    flat = True

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.drop = nn.Linear(4, EXPERTS), nn.Dropout(0.2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(EXPERTS))

    def mixed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x)
        weights = logits.softmax(-1)
        return sum(weights[..., i : i + 1] * e(x) for i, e in enumerate(self.experts)), logits

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, logits = self.mixed(x.reshape(-1, 4))
        return self.drop(out).view(x.shape), balance((logits,))


class OfSequences(Experts):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, logits = self.mixed(x)
        first = F.one_hot(logits.argmax(-1), EXPERTS).float().mean((0, 1))
        return out, EXPERTS * torch.dot(first, logits.softmax(-1).mean(dim=(0, 1)))


class Layers(Experts):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, first = self.mixed(x.reshape(-1, 4))
        out, second = self.mixed(h)
        return out.view(x.shape), balance((first, second))


class Net(nn.Module):
    def __init__(self, kind: type[Experts]) -> None:
        super().__init__()
        self.moe, self.head = kind(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, aux = self.moe(x)
        return self.head(h.mean(1)), aux


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    out, aux = model(batch[0])
    return F.cross_entropy(out, batch[1], reduction="none") + 0.1 * aux


@pytest.mark.parametrize("kind", [Experts, OfSequences, Layers])
def test_every_sample_has_the_balancing_loss_of_its_own_tokens(kind: type[Experts]) -> None:
    model = Net(kind).eval()
    result: Any = dpcheck.fix(model.train(), loss_fn, (X, Y), unsafe=True)
    assert result.before.verdict == "mixing" and result.ok, result.changes
    (change,) = result.changes
    assert change.applied and change.applicability == "unsafe" and "a number for each sample" in change.what
    model.eval(), result.model.eval()
    out, aux = result.model(X)
    torch.testing.assert_close(out, model(X)[0])
    torch.testing.assert_close(aux, torch.stack([model(X[i : i + 1])[1] for i in range(6)]))
    assert result.model(X[:4, :3])[1].shape == (4,)
    assert kind is not Experts or dpcheck.verify(result.model, loss_fn, (X, Y)).ok


class Scaled(Experts):
    """Its output is scaled by what all tokens made, so there is no number apart."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, logits = self.mixed(x.reshape(-1, 4))
        aux = balance((logits,))
        return out.view(x.shape) * aux, aux


class Capped(Experts):
    """The number is compared with what other samples have besides."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, logits = self.mixed(x)
        return out, (logits.mean((0, 1)) - logits).square().sum()


@pytest.mark.parametrize("kind", [Scaled, Capped])
def test_where_the_algebra_does_not_allow_it_nothing_is_changed(kind: type[Experts]) -> None:
    result = dpcheck.fix(Net(kind), loss_fn, (X, Y), unsafe=True)
    assert result.report.verdict == "mixing" and not any(change.applied for change in result.changes)
    assert all(change.reason for change in result.changes)
