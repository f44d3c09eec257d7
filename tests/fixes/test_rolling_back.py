"""Fixes that would do damage are planted, and must be rolled back while the good ones stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck
from dpcheck.fixer import FixResult
from dpcheck.fixes import batch_norm, layers
from dpcheck.fixes.trial import Seen, judge

Y, ROWS = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 4)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Norm(nn.Module):
    """A replacement that shares the weights of the layer it replaces."""

    def __init__(self, old: Any, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.function = old.weight, old.bias, function
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def writing(norm: Any, x: Tensor) -> Tensor:
    norm.seen = norm.seen + x.detach().sum()
    return x * norm.weight + norm.bias


def refusing(norm: Any, x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel")


def in_training_only(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        raise RuntimeError("no running_mean")
    return x * norm.weight + norm.bias


BAD: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "one value a group": (lambda n, x: F.group_norm(x, 32, n.weight, n.bias), "the same for every sample"),
    "not finite": (lambda n, x: x / 0, "not finite"),
    "other shape": (lambda n, x: x[:, :1], "has shape"),
    "still mixes": (lambda n, x: F.batch_norm(x, None, None, n.weight, n.bias, True), "another finding"),
    "writes data": (writing, "another finding, DP301"),
    "raises": (refusing, "no longer runs: "),
    "raises in eval mode": (in_training_only, "no longer runs in eval mode"),
    "cuts the gradient": (lambda n, x: x * n.weight + n.bias.detach(), "no longer reaches 1.bias"),
}


def two_norms() -> nn.Module:
    first = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


def fixed(model: nn.Module) -> FixResult:
    return dpcheck.fix(model, cross_entropy, (ROWS, Y), unsafe=True)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_fix_of_one_layer_is_rolled_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, words = BAD[name]
    good = batch_norm.to_group_norm

    def planted(module: nn.Module, groups: int) -> nn.Module:
        return Norm(module, function) if batch_norm.channels_of(module) == 32 else good(module, groups)

    monkeypatch.setattr(batch_norm, "to_group_norm", planted)
    result: Any = fixed(two_norms())
    bad, fine = result.changes
    assert (bad.module, bad.applied, fine.module, fine.applied) == ("1", False, "4", True)
    assert bad.reason.startswith("rolled back: ") and words in bad.reason and bad.output_change is None
    assert isinstance(result.model[1], nn.BatchNorm1d) and isinstance(result.model[4], nn.GroupNorm)
    assert [d.module for d in result.report.diagnostics] == ["1"]


def test_a_fix_that_leaves_its_finding_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "to_group_norm", lambda module, groups: module)
    result = fixed(two_norms())
    assert all("the finding is still there" in (c.reason or "") for c in result.changes)


def test_a_fix_that_raises_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(module: nn.Module) -> nn.Module:
        raise TypeError("__class__ assignment")

    monkeypatch.setattr(layers, "_dense", planted)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(20, 3))
    (change,) = dpcheck.fix(model, cross_entropy, (torch.randint(0, 9, (6, 5)), Y)).changes
    assert not change.applied and "cannot be changed: TypeError: __class__ assignment" in (change.reason or "")


def test_a_safe_fix_that_changes_the_function_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    good = batch_norm.to_frozen

    def planted(module: nn.Module) -> nn.Module:
        new: Any = good(module)
        new.eps *= 1.01
        return new

    monkeypatch.setattr(batch_norm, "to_frozen", planted)
    model: Any = two_norms()
    model.eval()
    result = fixed(model)
    assert all("in float64" in (c.reason or "") and not c.applied for c in result.changes)
    assert isinstance(result.model.get_submodule("1"), nn.BatchNorm1d) and result.report.ok


def test_a_layer_with_its_own_arithmetic_in_eval_mode_is_left() -> None:
    class Own(nn.Module):
        running_mean: Tensor
        running_var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(32))
            self.register_buffer("running_var", torch.ones(32))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return F.batch_norm(x, self.running_mean, self.running_var, training=True)
            return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()

    (change,) = fixed(nn.Sequential(nn.Linear(4, 32), Own(), nn.Linear(32, 3))).changes
    assert not change.applied and "in eval mode" in (change.reason or "")


def test_a_model_that_does_not_evaluate_is_not_blamed_on_the_fix() -> None:
    class Trains(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise NotImplementedError("no inference yet")
            return super().forward(x)

    result = fixed(Trains(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 3)))
    assert result.report.ok and all(c.applied for c in result.changes)


def test_weights_that_start_at_zero_are_no_collapse() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 3))
    nn.init.zeros_(model[1].weight)
    result = fixed(model)
    assert result.report.ok and result.changes[0].applied


def test_judging_measures_the_relative_change() -> None:
    old, new = nn.Linear(4, 4), nn.Linear(4, 4)
    with torch.no_grad():
        new.weight.copy_(1.5 * old.weight), new.bias.copy_(1.5 * old.bias)
    seen = Seen((ROWS,), {}, None)
    assert judge(old, new, seen, safe=False, size=6).output_change == pytest.approx(0.5)
    assert "5.0e-01" in (judge(old, new, seen, safe=True, size=6).failure or "")
    assert judge(old, old, seen, safe=True, size=6) == type(judge(old, old, seen, safe=True, size=6))(0.0, None)
