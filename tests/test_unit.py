"""The privacy unit: layouts, packed rows and users against gradients of one unit at a time, and wrong declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dpcheck
from dpcheck import DpcheckError, Unit, by_user
from dpcheck.fixes import batch_norm
from dpcheck.testing import assert_private, assert_sensitivity_bounded, batches

BOUND = 0.4


class TimeFirst(nn.Module):
    """[T, B, 3] -> [B, 2]; ``view`` needs the layout that it was written for."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.lstm(x.view(x.shape[0], -1, 3))[0][-1])
        return out


def cross_entropy(model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def data(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, dtype=torch.float64), torch.randint(0, 2, (n,))


def reference(model: nn.Module, losses: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The clipped sum and the norms of the gradients of ``losses``, each by its own backward."""
    parameters = list(model.parameters())
    each = [torch.autograd.grad(loss, parameters) for loss in losses]
    norms = torch.stack([torch.cat([g.flatten() for g in grads]).norm() for grads in each])
    factors = (BOUND / norms).clamp(max=1)
    return [sum(f * grads[i] for f, grads in zip(factors, each, strict=True)) for i in range(len(parameters))], norms


def assert_clips(model: nn.Module, loss_fn: Any, batch: Any, unit: Unit, losses: list[Tensor]) -> None:
    grads, norms = dpcheck.engine.clipped_grads(model, loss_fn, batch, BOUND, unit=unit)
    sums, expected = reference(model, losses)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-9, atol=1e-12)
    for got, wanted in zip(grads.values(), sums, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_time_first_tensors() -> None:
    model, unit = TimeFirst().double(), Unit(axes=(1, 0))
    x, y = torch.randn(3, 4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    report = dpcheck.check(model, cross_entropy, (x, y), unit=unit)
    assert report.ok and report.method == "graph"
    assert report.notes[0] == "unit: one record: one index of axes (1, 0) of the batch"
    assert dpcheck.verify(model, cross_entropy, [x, y], unit=unit).ok
    alone = [cross_entropy(model, (x[:, i : i + 1], y[i : i + 1]))[0] for i in range(4)]
    assert_clips(model, cross_entropy, (x, y), unit, alone)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_rows_packed_into_records(reduce: Any) -> None:
    model, unit = mlp().double(), Unit(rows=3, reduce=reduce)
    x, y = data(12)
    assert_private(model, cross_entropy, (x, y), unit=unit)
    own = [cross_entropy(model, (x[i : i + 3], y[i : i + 3])) for i in range(0, 12, 3)]
    assert_clips(model, cross_entropy, (x, y), unit, [getattr(rows, reduce)() for rows in own])


def test_rows_of_another_number_in_each_tensor_and_a_loss_for_each_record() -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        pooled = model(batch["x"][0]).view(-1, 3, 2).mean(1)
        return F.cross_entropy(pooled, batch["y"], reduction="none")

    model, unit = mlp().double(), Unit(axes={"y": 0, "x": 1}, rows={"x": 3, "y": 1})
    x, y = torch.randn(1, 12, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    assert_private(model, loss_fn, {"x": x, "y": y}, unit=unit)
    alone = [loss_fn(model, {"x": x[:, 3 * i : 3 * i + 3], "y": y[i : i + 1]})[0] for i in range(4)]
    assert_clips(model, loss_fn, {"x": x, "y": y}, unit, alone)


@settings(max_examples=12)
@given(
    users=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    max_rows=st.integers(1, 3),
    reduce=st.sampled_from(["sum", "mean"]),
    method=st.sampled_from(["auto", "vmap", "single"]),
)
def test_each_user_is_clipped_once(users: list[int], max_rows: int, reduce: Any, method: Any) -> None:
    model = mlp().double()
    x, y = data(len(users))
    unit = Unit(reduce=reduce)
    grouped = by_user(TensorDataset(x, y), [f"user {u}" for u in users], max_rows=max_rows, unit=unit)
    own = {u: [i for i, v in enumerate(users) if v == u][:max_rows] for u in dict.fromkeys(users)}
    losses = [getattr(cross_entropy(model, (x[rows], y[rows])), reduce)() for rows in own.values()]
    batch = grouped.batch(range(len(grouped)))
    clipper = Clipper(model, grouped.unit.loss(cross_entropy), max_grad_norm=BOUND, method=method)
    clipped = clipper(grouped.unit.canonical(batch))
    sums, norms = reference(model, losses)
    torch.testing.assert_close(clipped.losses, torch.stack(losses).detach())
    torch.testing.assert_close(clipped.norms, norms)
    for got, wanted in zip(clipped.grads.values(), sums, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_user_moves_the_sum_by_the_bound_and_their_records_by_more() -> None:
    model = mlp().double()
    x, y = data(1)
    x, y = (10 * x).expand(6, 3), y.expand(6)
    owners = [0, 0, 0, 0, 1, 2]
    grouped = by_user(TensorDataset(x, y), owners, max_rows=4)

    def moved(batch: Any, without: Any, unit: Unit | None) -> float:
        a, b = (dpcheck.engine.clipped_grads(model, cross_entropy, t, 1e-3, unit=unit)[0] for t in (batch, without))
        return float(torch.cat([(a[n] - b[n]).flatten() for n in a]).norm())

    as_user = moved(grouped.batch([0, 1, 2]), grouped.batch([1, 2]), grouped.unit)
    as_records = moved((x, y), (x[4:], y[4:]), None)
    assert as_user == pytest.approx(1e-3) and as_records == pytest.approx(4e-3)
    assert_sensitivity_bounded(model, cross_entropy, grouped.batch([0, 1, 2]), 1e-3, unit=grouped.unit)


@settings(max_examples=3)
@given(batch=batches(like=(torch.randn(2, 3, 3), torch.tensor([0, 1, 1])), unit=Unit(axes=(1, 0))))
def test_batches_keep_the_layout(batch: Any) -> None:
    x, y = batch
    assert x.shape == (2, len(y), 3)
    assert_sensitivity_bounded(TimeFirst(), cross_entropy, batch, BOUND, unit=Unit(axes=(1, 0)))


class AmongFour(nn.Module):
    """Each row minus the mean of its group of four, whatever the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        padded = F.pad(h, (0, 0, 0, -len(h) % 4)).view(-1, 4, 2)
        return (padded - padded.mean(1, keepdim=True)).flatten(0, 1)[: len(h)]


def test_records_of_a_user_may_mix_and_records_may_not() -> None:
    model = AmongFour().double()
    x, y = data(12)
    grouped = by_user(TensorDataset(x, y), [i // 4 for i in range(12)], max_rows=4)
    batch = grouped.batch(range(3))
    assert_private(model, cross_entropy, batch, unit=grouped.unit)
    alone = [cross_entropy(model, (x[i : i + 4], y[i : i + 4])).sum() for i in range(0, 12, 4)]
    assert_clips(model, cross_entropy, batch, grouped.unit, alone)
    report = dpcheck.check(model, cross_entropy, batch[0])
    assert report.verdict == "mixing"
    assert report.diagnostics[0].location is not None
    assert report.diagnostics[0].location.file == __file__
    # Groups of three rows are not the users: two users share a group.
    other = Unit(max_rows=3)
    wrong = ((x, y), torch.ones(4, 3, dtype=torch.bool))
    assert dpcheck.check(model, cross_entropy, wrong, unit=other).verdict == "mixing"


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.norm(x))
        return out


def test_batch_norm_mixes_users_and_is_fixed_for_them() -> None:
    grouped = by_user(TensorDataset(*data(12)), [i // 4 for i in range(12)], max_rows=4)
    batch = grouped.batch(range(3))
    model = Normalised().double()
    report = dpcheck.check(model, cross_entropy, batch, unit=grouped.unit)
    assert report.verdict == "mixing" and report.diagnostics[0].code == "DP101"
    location = report.diagnostics[0].location
    assert location is not None and location.file == __file__ and location.function == "forward"
    result = dpcheck.fix(model, cross_entropy, batch, unsafe=True, unit=grouped.unit)
    assert result.report.ok and result.report.notes[0].startswith("unit: one user")


def test_a_fix_that_makes_all_rows_alike_is_rolled_back_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "to_group_norm", lambda module, groups: nn.GroupNorm(3, 3))
    grouped = by_user(TensorDataset(*data(12)), [i // 4 for i in range(12)], max_rows=4)
    result = dpcheck.fix(Normalised().double(), cross_entropy, grouped.batch(range(3)), unsafe=True, unit=grouped.unit)
    assert "the same for every sample" in (result.changes[0].reason or "")


# -- tensors without a record axis


def weighted(model: nn.Module, batch: Any) -> Tensor:
    x, scale = batch
    return ((model(x) * scale) ** 2).sum(1)


def test_a_public_constant_is_no_data_whatever_its_value() -> None:
    model, unit = mlp().double(), Unit(axes=(0, None))
    x = data(4)[0]
    for scale in (torch.tensor([1.0, 2.0]), torch.tensor(3.0), torch.tensor([[0.5, 0.0]])):
        batch = x, scale
        assert dpcheck.check(model, weighted, batch, unit=unit).ok
        proof = dpcheck.verify(model, weighted, batch, unit=unit)
        assert proof.ok and proof.method == "graph" and not proof.notes
        assert_clips(model, weighted, batch, unit, [weighted(model, (x[i : i + 1], scale))[0] for i in range(4)])


@pytest.mark.parametrize("method", ["graph", "vmap", "single"])
def test_a_plan_is_not_used_for_another_constant(method: Any) -> None:
    model, unit = mlp().double(), Unit(axes=(0, None))
    clipper = Clipper(model, unit.loss(weighted), max_grad_norm=1e9, method=method)
    x = data(4)[0]
    for scale in (torch.ones(2), torch.full((2,), 3.0)):
        got = clipper(unit.canonical((x, scale))).losses
        torch.testing.assert_close(got, weighted(model, (x, scale)).detach())


# -- the wrong axis


class Sequences(nn.Module):
    """A recurrent layer over axis 0, and a loss of every index of it, or of axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


def per_step(model: nn.Module, x: Tensor) -> Tensor:
    losses: Tensor = model(x).square().mean((1, 2))
    return losses


def per_sequence(model: nn.Module, x: Tensor) -> Tensor:
    losses: Tensor = model(x).square().mean((0, 2))
    return losses


def test_the_wrong_axis_mixes_or_does_not_fit() -> None:
    model, x = Sequences(), torch.randn(6, 6, 3)
    assert dpcheck.check(model, per_sequence, x, unit=Unit(axes=1)).ok
    # Time steps as records: the recurrent layer mixes them.
    assert dpcheck.check(model, per_step, x).verdict == "mixing"
    # As many steps as sequences, so that the batch fits by accident; another number of records does not.
    with pytest.raises(DpcheckError, match=r"shape \[6\], not \[5\]"):
        dpcheck.check(model, per_sequence, x)
    with pytest.raises(DpcheckError, match=r"shape \[6\], not \[5\]"):
        dpcheck.check(model, per_step, x, unit=Unit(axes=1))
