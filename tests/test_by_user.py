"""Data sets of users, and the command with a file that declares them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dpcheck import DpcheckError, Unit, by_user
from dpcheck.cli import main
from dpcheck.options.base import CLEAN, ERROR

OWNERS = [2, 0, 2, 2, 1, 0, 2, 3, 2]


def users(x: Tensor, owners: Any = None, max_rows: int = 3) -> Any:
    return by_user(TensorDataset(x), OWNERS if owners is None else owners, max_rows=max_rows)


def test_users_are_numbered_as_they_appear_and_their_first_records_are_used() -> None:
    x = torch.arange(9.0).view(9, 1)
    data = users(x)
    assert [[record.item() for (record,) in data[u]] for u in range(len(data))] == [[0, 2, 3], [1, 5], [4], [7]]
    (rows,), mask = data.batch([1, 0, 3])
    assert rows.flatten().tolist() == [1, 5, 1, 0, 2, 3, 7, 7, 7]
    assert mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]


@pytest.mark.parametrize("owners", [np.array(OWNERS), torch.tensor(OWNERS), [str(u) for u in OWNERS], tuple(OWNERS)])
def test_labels_of_several_kinds(owners: Any) -> None:
    assert users(torch.zeros(9, 1), owners).rows == users(torch.zeros(9, 1)).rows


def test_which_records_of_a_user_are_used_depends_on_no_other_user() -> None:
    x = torch.randn(9, 5)
    data = users(x)
    for left_out in range(len(data)):
        label = list(dict.fromkeys(OWNERS))[left_out]
        kept = [i for i, owner in enumerate(OWNERS) if owner != label]
        others = users(x[kept], [OWNERS[i] for i in kept])
        expected = [data[u] for u in range(len(data)) if u != left_out]
        for got, wanted in zip((others[u] for u in range(len(others))), expected, strict=True):
            assert all(torch.equal(a, b) for (a,), (b,) in zip(got, wanted, strict=True))


def test_a_batch_is_put_together_by_the_collate_function() -> None:
    def time_first(rows: list[tuple[Tensor]]) -> Tensor:
        return torch.stack([row for (row,) in rows], dim=1)

    data = by_user(TensorDataset(torch.randn(9, 5)), OWNERS, max_rows=2, unit=Unit(axes=1))
    batch = data.batch([0, 1], time_first)
    assert batch[0].shape == (5, 4)
    assert data.unit == Unit(axes=1, max_rows=2)
    canonical, _ = data.unit.canonical(batch)
    assert torch.equal(canonical[1, 1], data[1][1][0])


class Named:
    pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"users": [1, 2]}, "2 labels for 9 records"),
        ({"users": [*OWNERS[:8], None]}, "record 8 has no user"),
        ({"users": [*map(float, OWNERS[:8]), float("nan")]}, "record 8 has no user"),
        ({"users": [*OWNERS[:8], "2"]}, "record 8 is of type str, that of record 0 of type int"),
        ({"users": [Named() for _ in OWNERS]}, "of type Named"),
        ({"users": [torch.tensor(u) for u in OWNERS]}, "of type Tensor"),
        ({"users": torch.zeros(9, 1)}, "of type list"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"max_rows": True}, "max_rows=True"),
        ({"max_rows": None}, "max_rows=None"),
        ({"unit": Unit(max_rows=3)}, "users already"),
        ({"dataset": by_user(TensorDataset(torch.zeros(9, 1)), OWNERS, max_rows=2)}, "users already"),
        ({"dataset": DataLoader(TensorDataset(torch.zeros(9, 1)))}, "DataLoader"),
    ],
)
def test_wrong_users_are_refused(change: dict[str, Any], says: str) -> None:
    given = {"dataset": TensorDataset(torch.zeros(9, 1)), "users": OWNERS, "max_rows": 2} | change
    with pytest.raises(DpcheckError, match=says):
        by_user(given["dataset"], given["users"], max_rows=given["max_rows"], unit=given.get("unit"))


# -- the command

FILE = """\
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
import dpcheck

x = torch.randn(60, 4)
data = dpcheck.by_user(TensorDataset(x, (x.sum(1) > 0).long()), [i // 3 for i in range(60)], max_rows=2)
unit = data.unit
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
training = {"epochs": 2, "batch_size": 10}

def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

def sample_batch():
    return data.batch(range(6))

def train_dataset():
    return data

test_dataset = train_dataset
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(text: str, *options: str) -> tuple[int, str, str]:
        (tmp_path / "m.py").write_text(text)
        code = main(["m.py", *options])
        return code, *capsys.readouterr()

    return run


def test_the_command_takes_the_unit_of_the_file(command: Any) -> None:
    code, out, _ = command(FILE, "--verify", "--train")
    assert code == CLEAN
    assert "note: unit: one user: all of their records, at most 2 of which are used" in out
    assert "one user of the data set is added or removed" in out and "each of 20 users" in out
    assert "test loss" in out


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("unit = data.unit", "unit = 'user'", "unit is a str, not a dpcheck.Unit"),
        ("unit = data.unit", "unit = dpcheck.Unit(max_rows=3)", "but that of the data set is one user"),
        ("return data.batch(range(6))", "return x[:6], torch.ones(6).long()", "(records, mask)"),
    ],
)
def test_the_command_refuses_a_wrong_unit(command: Any, old: str, new: str, says: str) -> None:
    code, _, err = command(FILE.replace(old, new), "--train")
    assert code == ERROR and says in err and "next:" in err
