"""Known ways to break DP-SGD: each is reported by its rule at the line marked HERE; the clean ones are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import Net, X, Y, cross_entropy, line_of
from torch import Tensor, nn

import dpcheck


def functional_batch_norm(h: Tensor) -> Tensor:
    return F.batch_norm(h, None, None, training=True)  # HERE


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0)  # HERE


def centred_detached(h: Tensor) -> Tensor:
    return h - h.detach().mean(0)  # HERE


def softmax_over_samples(h: Tensor) -> Tensor:
    return h.softmax(0)  # HERE


def rolled(h: Tensor) -> Tensor:
    return h + h.roll(1, 0)  # HERE


def flipped(h: Tensor) -> Tensor:
    return h.flip(0)  # HERE


def sorted_samples(h: Tensor) -> Tensor:
    return h.sort(0).values  # HERE


def summed_up(h: Tensor) -> Tensor:
    return h.cumsum(0)  # HERE


def by_the_norm(h: Tensor) -> Tensor:
    return h / h.norm()  # HERE


def by_the_largest(h: Tensor) -> Tensor:
    return h - h.max()  # HERE


def normalised_over_samples(h: Tensor) -> Tensor:
    return F.normalize(h, dim=0)  # HERE


def attention_across(h: Tensor) -> Tensor:
    scores = h @ h.t()  # HERE
    return scores.softmax(-1) @ h


def mixup(h: Tensor) -> Tensor:
    order = torch.randperm(h.shape[0])
    return 0.7 * h + 0.3 * h[order]  # HERE


def quantised(h: Tensor) -> Tensor:
    scale = h.detach().abs().max() / 127  # HERE
    return torch.fake_quantize_per_tensor_affine(h, scale, torch.zeros((), dtype=torch.int32), -128, 127)


def branch(h: Tensor) -> Tensor:
    if h.mean() > 0:  # HERE
        return h
    return -3 * h


def by_the_batch_size(h: Tensor) -> Tensor:
    return h / h.shape[0]  # HERE


def number_from_data(h: Tensor) -> Tensor:
    return h * h.sum().item()  # HERE


def written_in_place(h: Tensor) -> Tensor:
    out = h.clone()
    out[1:] += h[:-1]  # HERE
    return out


MIXING = {
    functional_batch_norm: "DP102",
    centred: "DP103",
    centred_detached: "DP103",
    softmax_over_samples: "DP103",
    rolled: "DP106",
    flipped: "DP106",
    sorted_samples: "DP103",
    summed_up: "DP103",
    by_the_norm: "DP103",
    by_the_largest: "DP103",
    normalised_over_samples: "DP103",
    attention_across: "DP105",
    mixup: "DP106",
    quantised: "DP103",
    branch: "DP107",
    by_the_batch_size: "DP108",
    number_from_data: "DP103",
}


@pytest.mark.parametrize("middle", MIXING, ids=lambda f: f.__name__)
def test_mixing_in_the_forward_is_reported_at_its_line(middle: Callable[[Tensor], Tensor]) -> None:
    report = dpcheck.check(Net(middle), cross_entropy, (X, Y))
    assert report.verdict == "mixing"
    found = {(d.code, d.location.line if d.location else None) for d in report.diagnostics}
    assert (MIXING[middle], line_of(middle)) in found
    assert all(d.location is not None and d.location.file == __file__ for d in report.diagnostics)


def test_a_write_from_other_rows_is_mixing() -> None:
    report = dpcheck.check(Net(written_in_place), cross_entropy, (X, Y))
    assert report.verdict == "mixing"
    assert line_of(written_in_place) in {d.location.line for d in report.diagnostics if d.location}


def relu(h: Tensor) -> Tensor:
    return F.relu(h, inplace=True)


def dropout(h: Tensor) -> Tensor:
    return F.dropout(h, 0.5)


def masked(h: Tensor) -> Tensor:
    out = h.clone()
    out[h > 0] = 0.0
    return out + h


def own_statistics(h: Tensor) -> Tensor:
    return (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True)


def chosen_by_itself(h: Tensor) -> Tensor:
    return h.gather(1, h.argmax(1, keepdim=True)) + h


def branch_on_the_shape(h: Tensor) -> Tensor:
    return h if h.shape[0] > 0 else -h


def there_and_back(h: Tensor) -> Tensor:
    return h.t().flip(0).t().contiguous()


CLEAN = (relu, dropout, masked, own_statistics, chosen_by_itself, branch_on_the_shape, there_and_back)


@pytest.mark.parametrize("middle", CLEAN, ids=lambda f: f.__name__)
def test_no_finding_for_what_keeps_samples_apart(middle: Callable[[Tensor], Tensor]) -> None:
    report = dpcheck.check(Net(middle), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


class OwnBatchNorm(nn.BatchNorm1d):
    """A subclass with an activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(8),
        nn.BatchNorm1d(8, affine=False),
        nn.BatchNorm1d(8, track_running_stats=False),
        frozen(nn.BatchNorm1d(8)),
        OwnBatchNorm(8),
    ],
    ids=["plain", "no affine", "no statistics", "frozen but training", "subclass"],
)
def test_batch_norm_modules(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3))
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert [(d.code, d.module) for d in report.diagnostics] == [("DP101", "1")]


def test_batch_norm_in_eval_mode_is_clean() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[1].eval()
    assert dpcheck.check(model, cross_entropy, (X, Y)).ok


def test_every_batch_norm_of_a_model_is_reported() -> None:
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)]
    report = dpcheck.check(nn.Sequential(*layers), cross_entropy, (X, Y))
    assert [d.module for d in report.diagnostics if d.code == "DP101"] == ["1", "4"]


def test_records_that_are_unrolled_into_rows_stay_records() -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.a(x.reshape(-1, 4)).relu()
            return self.b(rows).view(x.shape[0], -1, 3).mean(1)

    assert dpcheck.check(Unrolled(), cross_entropy, (torch.randn(6, 5, 4), Y)).ok


def test_instance_norm_statistics_are_a_leak() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(24, 3)
    )
    report = dpcheck.check(model, cross_entropy, (torch.randn(6, 2, 8), Y))
    assert {d.code for d in report.diagnostics} == {"DP301"}
    assert {b.name: b.kind for b in report.buffers}["1.running_mean"] == "data"


def test_buffers_derived_from_weights_are_no_leak() -> None:
    model = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    report = dpcheck.check(model, cross_entropy, (X, Y))
    assert report.ok, report.diagnostics
    assert {b.kind for b in report.buffers} <= {"derived", "constant"}


def test_relative_position_tables_are_constant() -> None:
    class Table(nn.Module):
        index: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(7))
            self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x @ self.bias[self.index])

    report = dpcheck.check(Table(), cross_entropy, (X, Y))
    assert report.ok, report.diagnostics
    assert {b.name: b.kind for b in report.buffers} == {"index": "constant"}
