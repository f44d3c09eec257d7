"""Layers of all kinds: those that mix samples, under whatever name, and those that look as if they did."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Net, X, Y, cross_entropy, line_of, places
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import dpcheck
from dpcheck.errors import DpcheckError


class BatchNormAct(nn.BatchNorm2d):
    """A fused layer in the style of timm's: batch norm called as a function, then an activation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)  # HERE
        return F.relu(x)


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_a_fused_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct(4), nn.Flatten(), nn.Linear(144, 3))
    report = dpcheck.check(model, cross_entropy, (IMAGES, Y))
    (found,) = report.diagnostics
    assert (found.code, found.module, found.fix) == ("DP101", "1", "unsafe")
    assert found.location is not None and found.location.line == line_of(BatchNormAct)


def test_a_synchronised_batch_norm() -> None:
    report = dpcheck.check(nn.Sequential(nn.Linear(4, 8), nn.SyncBatchNorm(8), nn.Linear(8, 3)), cross_entropy, (X, Y))
    assert [(d.code, d.module) for d in report.diagnostics] == [("DP101", "1")]


def test_a_lazy_batch_norm() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 3))
    with pytest.raises(DpcheckError, match="no shape yet") as caught:
        dpcheck.check(model, cross_entropy, (X, Y))
    assert "run the model once" in (caught.value.next or "")
    model(X)
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert [(d.code, d.module) for d in report.diagnostics] == [("DP101", "1")]


class OwnBatchNorm(nn.Module):
    """Written by hand, from means."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, h: Tensor) -> Tensor:
        mean = h.mean(0)  # HERE
        self.mean.lerp_(mean.detach(), 0.1)  # WRITE
        return h - mean


def test_a_batch_norm_written_by_hand() -> None:
    report = dpcheck.check(Net(OwnBatchNorm()), cross_entropy, (X, Y))
    assert places(report) == {("DP103", line_of(OwnBatchNorm)), ("DP301", line_of(OwnBatchNorm, "# WRITE"))}


class FakeQuantised(nn.Module):
    """Quantisation aware training with ranges from the batch."""

    def forward(self, h: Tensor) -> Tensor:
        step = (h.detach().amax() - h.detach().amin()) / 255  # HERE
        return h + (torch.round(h / step) * step - h).detach()


def test_fake_quantisation_with_the_range_of_the_batch() -> None:
    report = dpcheck.check(Net(FakeQuantised()), cross_entropy, (X, Y))
    assert places(report) == {("DP103", line_of(FakeQuantised))}


def test_the_fake_quantisation_of_torch() -> None:
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Net(FakeQuantize(MovingAverageMinMaxObserver, 0, 255))
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert report.verdict == "mixing"
    leaks = {d.buffer for d in report.diagnostics if d.code == "DP301"}
    assert {"middle.activation_post_process.min_val", "middle.activation_post_process.max_val"} <= leaks


class Attention(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 4, batch_first=batch_first), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


@pytest.mark.parametrize("kind", [Attention, Recurrent])
def test_sequence_layers_that_take_the_batch_for_time(kind: Any) -> None:
    sequences = torch.randn(6, 5, 4)
    assert dpcheck.check(kind(batch_first=False), cross_entropy, (sequences, Y)).verdict == "mixing"
    report = dpcheck.check(kind(batch_first=True), cross_entropy, (sequences, Y))
    assert report.ok, report.diagnostics


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


class Standardised(nn.Module):
    """A parametrisation: weight standardisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)


def standardised() -> nn.Module:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", Standardised())
    return layer


class StochasticDepth(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        keep = h.new_empty(h.shape[0], 1).bernoulli_(0.7)
        return h + h.relu() * keep / 0.7


class DepthOfAllSamples(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h + h.relu() * (torch.rand(()) < 0.7)


class Reparametrised(nn.Module):
    """The noise of a variational model, from a distribution object."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.distributions.Normal(h, F.softplus(h) + 0.1).rsample()


class Shuffled(nn.Module):
    """Channel shuffle: a permutation that leaves samples alone."""

    def forward(self, h: Tensor) -> Tensor:
        return h.view(-1, 2, 4).transpose(1, 2).flatten(1)[:, torch.randperm(8)]


class Gated(nn.Module):
    """A branch on weights, and one on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.get_buffer("table") if self.training else h


CLEAN: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
    "old weight norm": lambda: old_weight_norm(nn.Linear(8, 8)),
    "weight standardisation": standardised,
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "stochastic depth": StochasticDepth,
    "stochastic depth of all samples": DepthOfAllSamples,
    "reparametrised": Reparametrised,
    "channel shuffle": Shuffled,
    "a branch on the mode": Gated,
    "layer norm": lambda: nn.LayerNorm(8),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "rms norm": lambda: nn.RMSNorm(8),
    "softmax": lambda: nn.Softmax(1),
}


@pytest.mark.parametrize("name", CLEAN)
def test_layers_without_a_finding(name: str) -> None:
    report = dpcheck.check(Net(CLEAN[name]()), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics


class Rotary(nn.Module):
    """Attention with a table of rotations that depends on the length alone, kept between calls."""

    inverse: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inverse", 10000 ** -(torch.arange(0, 4, 2) / 4), persistent=False)
        self.query, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] < x.shape[1]:
            angles = torch.outer(torch.arange(x.shape[1]).float(), self.inverse)
            self.table = torch.cat([angles, angles], -1)
        q, angles = self.query(x), self.table[: x.shape[1]]
        q = q * angles.cos() + torch.cat([-q[..., 2:], q[..., :2]], -1) * angles.sin()
        return self.head((F.softmax(q @ q.transpose(1, 2), -1) @ x).mean(1))


class Windows(nn.Module):
    """Attention within windows with a relative position bias, in the style of Swin."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.head = nn.Parameter(torch.zeros(7)), nn.Linear(4, 3)
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.roll(-2, 1).view(-1, 4, 4)
        scores = windows @ windows.transpose(1, 2) + self.bias[self.index]
        return self.head((F.softmax(scores, -1) @ windows).view(x.shape).mean(1))


@pytest.mark.parametrize("kind", [Rotary, Windows])
def test_tables_of_positions(kind: type[nn.Module]) -> None:
    report = dpcheck.check(kind(), cross_entropy, (torch.randn(6, 8, 4), Y))
    assert report.ok, report.diagnostics
    assert {b.kind for b in report.buffers} == {"constant"}
