"""Data sets of users, and the engine with units of its own: what is drawn, what is released, and what is said of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from white_box import Linear, loss_fn

import dpcheck
from dpcheck import DpcheckError, Unit, by_user

OWNERS = [2, 0, 2, 2, 1, 0, 2, 3, 2]


def records(n: int = 9) -> Tensor:
    """Records that are their own gradients in ``white_box.Linear``, of very different sizes."""
    return torch.randn(n, 5) * torch.logspace(-2, 3, n).unsqueeze(1)


def users(x: Tensor, owners: Any = None, max_rows: int = 3, **options: Any) -> Any:
    return by_user(TensorDataset(x), OWNERS if owners is None else owners, max_rows=max_rows, **options)


def engine_of(data: Any, **options: Any) -> dpcheck.PrivacyEngine:
    model = Linear()
    given = {"expected_batch_size": len(data), "max_grad_norm": 1.0, "delta": 1e-3, "noise_multiplier": 0.0, "steps": 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return dpcheck.PrivacyEngine(model, options.pop("loss_fn", loss_fn), optimizer, data, **(given | options))


def first_step(engine: dpcheck.PrivacyEngine) -> Tensor:
    """The released gradient of the first step, times the divisor."""
    engine.step(next(iter(engine)))
    released = nn.utils.parameters_to_vector([p.grad for p in engine.model.parameters()])
    return -released * engine.settings.expected_batch_size


def clipped(rows: Tensor, bound: float = 1.0) -> Tensor:
    return rows * (bound / rows.norm(dim=1, keepdim=True)).clamp(max=1)


# -- the engine


@pytest.mark.parametrize("options", [{}, {"physical_batch_size": 1}, {"physical_batch_size": 3}, {"secure": True}])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_the_clipped_gradient_is_the_user_s(options: dict[str, Any], reduce: Any) -> None:
    x = records()
    engine = engine_of(users(x, unit=Unit(reduce=reduce)), **options)
    own = [[0, 2, 3], [1, 5], [4], [7]]
    expected = clipped(torch.stack([getattr(x[rows], reduce)(0) for rows in own])).sum(0)
    torch.testing.assert_close(first_step(engine), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("secure", [False, True])
def test_a_user_more_moves_the_sum_by_at_most_the_bound(secure: bool) -> None:
    x, owners = torch.cat([records(5), torch.full((4, 5), 50.0)]), [0, 1, 2, 0, 1, 9, 9, 9, 9]
    with_user, without = (first_step(engine_of(users(x[:n], owners[:n], 4), secure=secure)) for n in (9, 5))
    assert (with_user - without).norm().item() == pytest.approx(1.0, abs=1e-4)
    # The same records one by one, with the same bound, move it by four times as much.
    with_rows, without = (first_step(engine_of(TensorDataset(x[:n]), secure=secure)) for n in (9, 5))
    assert (with_rows - without).norm().item() == pytest.approx(4.0, abs=1e-3)


def test_users_are_drawn_and_the_statement_and_the_ledger_are_about_users(tmp_path: Path) -> None:
    x, owners = torch.randn(120, 5), [i % 40 for i in range(120)]
    path = tmp_path / "ledger.jsonl"
    options = {"expected_batch_size": 2, "noise_multiplier": 1.0, "steps": 30, "ledger": path}
    engine = engine_of(users(x, owners, 2), **options)
    drawn = [(len(batch), engine.step(batch).loss) for batch in engine]
    assert 0 in [n for n, _ in drawn] and 1 in [n for n, _ in drawn] and max(n for n, _ in drawn) <= 40
    assert all((loss is None) == (n == 0) for n, loss in drawn)
    report = engine.report()
    what = "one user of the data set is added or removed with all of their records, at most 2 of which are used"
    assert f"Unit and adjacency: {what}; a record is one index of axis 0 of the batch." in report
    assert "each of 40 users with probability 2/40" in report and "the number of users" in report
    assert "Each user's gradient" in report
    assert {json.loads(line)["dataset_size"] for line in path.read_text().splitlines()} == {40}
    alike = dpcheck.engine.accounting.epsilon(1.0, 2 / 40, 30, 1e-3)
    assert engine.epsilon().upper == pytest.approx(alike.upper)
    with pytest.raises(DpcheckError, match="data set with 40 records; this one has 120"):
        engine_of(TensorDataset(x), **options)


def test_the_state_is_plain_and_a_run_of_users_goes_on() -> None:
    data = users(records())
    first = engine_of(data, steps=3, noise_multiplier=1.0)
    first_step(first)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["settings"]["unit"] == {"axes": 0, "rows": 1, "max_rows": 3, "reduce": "sum"}
    second = engine_of(data, steps=3, noise_multiplier=1.0)
    second.load_state_dict(state)
    assert len(second) == 2


def test_what_is_wrong_is_said_of_users(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DpcheckError, match="expected_batch_size=5 is more than the 4 users"):
        engine_of(users(records()), expected_batch_size=5)
    with caplog.at_level(logging.WARNING, "dpcheck"):
        engine_of(users(records()), delta=0.3)
    assert "above 1/4: it would allow publishing a random user" in caplog.text


def test_the_physical_batch_counts_records() -> None:
    data = users(torch.zeros(600, 5), list(range(600)), max_rows=64)
    assert engine_of(data, check=False).settings.physical_batch_size == 4
    assert engine_of(data, check=False, physical_batch_size=7).settings.physical_batch_size == 7


@pytest.mark.parametrize("unit", [Unit(), Unit(max_rows=2), "user"])
def test_another_unit_than_that_of_the_data_set_is_refused(unit: Any) -> None:
    with pytest.raises(DpcheckError, match="unit"):
        engine_of(users(records()), unit=unit)
    assert engine_of(users(records()), unit=Unit(max_rows=3)).settings.unit == Unit(max_rows=3)


def test_time_first_records_and_packed_rows_are_trained_as_declared() -> None:
    x = records()

    def time_first(rows: list[tuple[Tensor]]) -> list[Tensor]:
        return [torch.stack([row for (row,) in rows], dim=1)]

    engine = engine_of(
        TensorDataset(x),
        collate_fn=time_first,
        loss_fn=lambda model, batch: -model(batch[0].T),
        unit=Unit(axes=1),
        physical_batch_size=4,
    )
    torch.testing.assert_close(first_step(engine), clipped(x).sum(0), rtol=1e-4, atol=1e-5)
    assert "added or removed; a record is one index of axis 1 of the batch." in engine.report()
    packed = engine_of(
        TensorDataset(x.view(3, 3, 5)),
        collate_fn=lambda items: [torch.cat([rows for (rows,) in items])],
        unit=Unit(rows=3),
    )
    torch.testing.assert_close(first_step(packed), clipped(x.view(3, 3, 5).sum(1)).sum(0), rtol=1e-4, atol=1e-5)


def test_records_that_are_no_units_are_refused() -> None:
    with pytest.raises(DpcheckError, match="2 samples for 8 records"):
        engine_of(TensorDataset(records(9)), unit=Unit(rows=4))
    with pytest.raises(DpcheckError, match="5 samples for 8 records"):
        engine_of(TensorDataset(records(9)), unit=Unit(axes=1))


# -- constants


def scaled_loss(model: nn.Module, batch: Any) -> Tensor:
    x, scale = batch
    return -model(x * scale)


def test_a_constant_is_named_as_public() -> None:
    def collate(rows: list[tuple[Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([row for (row,) in rows]), torch.tensor(2.0)

    x = records()
    engine = engine_of(TensorDataset(x), collate_fn=collate, loss_fn=scaled_loss, unit=Unit(axes=(0, None)))
    torch.testing.assert_close(first_step(engine), clipped(2 * x).sum(0), rtol=1e-4, atol=1e-5)
    assert "the tensors of a batch that are declared to have no record axis" in engine.report()


@pytest.mark.parametrize("check", [True, False])
def test_a_constant_that_is_made_from_the_batch_is_refused(check: bool) -> None:
    def collate(rows: list[tuple[Tensor]]) -> tuple[Tensor, Tensor]:
        x = torch.stack([row for (row,) in rows])
        return x, 1 / x.abs().max()

    def run() -> None:
        unit = Unit(axes=(0, None))
        first_step(engine_of(TensorDataset(records()), collate_fn=collate, loss_fn=scaled_loss, unit=unit, check=check))

    # All records are in every batch, so that the constant would be the same in every one.
    with pytest.raises(DpcheckError, match="is not the same in every batch, so it is not public"):
        run()


# -- models


class Pooled(nn.Module):
    """Convolution, embedding of the user's own rows, normalisation in the row."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.conv, self.out = nn.Conv1d(4, 3, 2), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.conv(self.norm(self.words(ids)).transpose(1, 2)).relu().mean(2)
        out: Tensor = self.out(h)
        return out


class Texts(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.arange(index, index + 3) % 6, index % 2


def test_every_sampler_sums_over_the_rows_of_a_user() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    data = by_user(Texts(), [i // 3 for i in range(14)], max_rows=3)
    model = Pooled()
    proof = dpcheck.verify(model, loss, data.batch(range(5)), unit=data.unit)
    assert proof.ok and proof.method == "graph" and not proof.notes
    engine = dpcheck.PrivacyEngine(
        model, loss, torch.optim.Adam(model.parameters()), data,
        expected_batch_size=3, max_grad_norm=1.0, delta=1e-2, target_epsilon=8.0, epochs=1,
    )  # fmt: skip
    assert engine.fit(progress=False).upper <= 8.0
    assert "Per-sample gradients: graph" in engine.report()
