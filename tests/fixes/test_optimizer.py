"""An optimizer moves to the fixed model by the names of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dpcheck.errors import DpcheckError
from dpcheck.fixer import repoint
from dpcheck.fixes.copying import duplicate


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups: list[dict[str, Any]] = [{"params": [*model[0].parameters()]}, {"params": [model[1].weight], "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_groups_settings_and_state_move() -> None:
    model, optimizer = trained()
    new: Any = duplicate(model).model
    averages = [optimizer.state[p]["exp_avg"] for p in (*model[0].parameters(), model[1].weight)]
    repoint(optimizer, model, new)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, (*new[0].parameters(), new[1].weight), strict=True))
    assert [optimizer.state[p]["exp_avg"] is a for p, a in zip(held, averages, strict=True)] == [True] * 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5] and len(optimizer.state) == 3
    before, old = new[1].weight.clone(), model[1].weight.clone()
    new(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(new[1].weight, before) and torch.equal(model[1].weight, old)


def test_what_the_new_model_does_not_have_is_refused_and_nothing_moves() -> None:
    model, optimizer = trained()
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    with pytest.raises(DpcheckError, match=r"shape \[2, 4\] that the fixed model") as error:
        repoint(optimizer, model, other)
    assert error.value.where == "1.weight"
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    with pytest.raises(DpcheckError, match="the given model does not have"):
        repoint(optimizer, nn.Linear(1, 1), model)
