"""Batch norm to group norm and to its frozen affine map, against formulas written out here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpcheck.errors import DpcheckError
from dpcheck.fixer import freeze_batch_norm
from dpcheck.fixes import batch_norm

KINDS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Fused(nn.BatchNorm2d):
    """What image libraries do: the activation lives in the norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act, self.drop = nn.SiLU(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(y))


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The formula of Wu and He 2018, group by group."""
    parts = []
    for part in x.chunk(groups, dim=1):
        axes = list(range(1, x.dim()))
        centred = part - part.mean(axes, keepdim=True)
        parts.append(centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt())
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = torch.cat(parts, 1)
    return y if weight is None or bias is None else y * weight.view(shape) + bias.view(shape)


def randomised(module: Any) -> Any:
    """Weights and statistics as after some training."""
    with torch.no_grad():
        for t in (*module.parameters(), module.running_mean, module.running_var):
            if t is not None:
                t.copy_(torch.rand_like(t) + 0.5)
    return module


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, Tensor]:
    dims, channels = draw(st.integers(0, 3)), draw(st.integers(1, 40))
    module = KINDS[max(dims, 1)](
        channels,
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.5])),
        momentum=draw(st.sampled_from([None, 0.1, 1.0])),
        affine=draw(st.booleans()),
        track_running_stats=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float64, torch.float32])),
    )
    module.train(draw(st.booleans()) or not module.track_running_stats)
    for p in module.parameters():
        p.requires_grad_(draw(st.booleans()))
    sides = draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
    x = torch.randn(3, channels, *sides, dtype=torch.float64).to(
        module.weight.dtype if module.affine else torch.float64
    )
    return randomised(module), x


@given(layers(), st.sampled_from(["group", "layer", "instance"]))
@settings(max_examples=150)
def test_group_norm_computes_the_formula_and_keeps_the_layer(case: tuple[Any, Tensor], to: str) -> None:
    module, x = case
    channels, positions = x.shape[1], math.prod(x.shape[2:])
    groups = batch_norm.groups_for(channels, positions, to)
    weight, bias, training = module.weight, module.bias, module.training
    if groups is None:
        size = 1 if to == "instance" else channels
        assert size * positions < 3
        return
    assert channels % groups == 0 and channels // groups * positions >= 3
    new: Any = batch_norm.to_group_norm(module, groups)
    expected = group_norm(x, groups, weight, bias, module.eps)
    torch.testing.assert_close(new(x), expected, rtol=2e-4, atol=2e-5)
    assert torch.equal(new.eval()(x), new.train()(x))
    new.train(training)
    assert (new.weight is weight, new.bias is bias, new.training, new.eps) == (True, True, module.training, module.eps)
    assert sorted(new.state_dict()) == (["bias", "weight"] if module.affine else [])
    assert new.num_features == channels and bool(new.affine) == module.affine


@given(layers())
@settings(max_examples=100)
def test_frozen_is_the_function_of_eval_mode_in_both_modes(case: tuple[Any, Tensor]) -> None:
    module, x = case
    if not module.track_running_stats:
        with pytest.raises(DpcheckError, match="no running statistics"):
            freeze_batch_norm(module)
        return
    module.eval()
    if not module.affine:
        module.running_mean, module.running_var = module.running_mean.double(), module.running_var.double()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    shape = (1, -1, *[1] * (x.dim() - 2))
    expected = (x - module.running_mean.view(shape)) / (module.running_var.view(shape) + module.eps).sqrt()
    if module.affine:
        expected = expected * module.weight.view(shape) + module.bias.view(shape)
    new = freeze_batch_norm(module)
    for mode in (True, False):
        torch.testing.assert_close(new.train(mode)(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(new(x), module(x), rtol=0, atol=0)
    for state in (module.state_dict(), new.state_dict()):
        assert state.keys() == before.keys() and all(torch.equal(state[k], before[k]) for k in before)
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in module.parameters()]
    assert not {id(p) for p in new.parameters()} & {id(p) for p in module.parameters()}


def test_groups_are_sensible_for_the_channels() -> None:
    found = {c: batch_norm.groups_for(c, 64) for c in (1, 2, 3, 6, 16, 32, 64, 128, 512, 30, 97)}
    assert found == {1: 1, 2: 1, 3: 1, 6: 1, 16: 4, 32: 8, 64: 16, 128: 32, 512: 32, 30: 6, 97: 1}
    flat = {c: batch_norm.groups_for(c, 1) for c in (1, 2, 3, 8, 16, 32, 64, 512, 1000)}
    assert flat == {1: None, 2: None, 3: 1, 8: 1, 16: 1, 32: 2, 64: 4, 512: 32, 1000: 25}
    assert batch_norm.groups_for(64, 4) == 16 and batch_norm.groups_for(64, 2) == 8
    assert batch_norm.groups_for(8, 1, "instance") is None and batch_norm.groups_for(8, 9, "instance") == 8


def test_a_fused_variant_keeps_what_it_adds() -> None:
    fused, x = randomised(Fused(8)).double(), torch.randn(3, 8, 4, 4, dtype=torch.float64)
    weight, bias = fused.weight, fused.bias
    new: Any = batch_norm.to_group_norm(fused, 2)
    assert isinstance(new, Fused) and sorted(new.state_dict()) == ["bias", "weight"]
    expected = F.silu(group_norm(x, 2, weight, bias, 1e-5))
    torch.testing.assert_close(new.eval()(x), expected)
    torch.manual_seed(5)
    dropped = new.train()(x)
    assert 0.3 < float((dropped == 0).double().mean()) < 0.7
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], F.silu(2 * group_norm(x, 2, weight, bias, 1e-5))[kept])


def test_a_frozen_fused_variant_keeps_its_dropout_switchable() -> None:
    fused, x = randomised(Fused(8)), torch.randn(3, 8, 4, 4)
    expected = fused.eval()(x)
    new: Any = freeze_batch_norm(fused)
    assert new.train() is new and not new.training and new.drop.training
    torch.testing.assert_close(new.eval()(x), expected)
    before = new.running_mean.clone()
    new.train()(x)
    assert torch.equal(new.running_mean, before) and isinstance(new, Fused)


def test_a_frozen_batch_norm_inside_a_fused_one_stays_frozen() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(16)
            self.first = batch_norm.to_frozen(randomised(nn.BatchNorm1d(16)).eval())

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.first(x))

    outer, x = Outer(), torch.randn(4, 16)
    expected = group_norm(outer.first(x), 1, outer.weight, outer.bias, 1e-5)
    torch.testing.assert_close(batch_norm.to_group_norm(outer, 1)(x), expected, rtol=1e-4, atol=1e-5)


def test_attributes_hooks_and_parametrizations_stay() -> None:
    module: Any = nn.BatchNorm2d(8)
    module.tag = "first"
    seen: list[str] = []
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    new: Any = batch_norm.to_group_norm(module, 2)
    new(torch.randn(2, 8, 3, 3, requires_grad=True)).sum().backward()
    assert new.tag == "first" and seen == ["forward", "backward"]

    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    parametrized: Any = nn.BatchNorm2d(8)
    nn.utils.parametrize.register_parametrization(parametrized, "weight", Doubled())
    x, weight = torch.randn(2, 8, 3, 3), parametrized.weight.detach()
    new = batch_norm.to_group_norm(parametrized, 2)
    torch.testing.assert_close(new(x), group_norm(x, 2, weight, new.bias, 1e-5), rtol=1e-4, atol=1e-5)
    assert nn.utils.parametrize.is_parametrized(new, "weight")


@pytest.mark.parametrize("call", [F.batch_norm, torch.batch_norm], ids=["functional", "torch"])
def test_both_spellings_of_the_call_are_turned(call: Any) -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            if call is F.batch_norm:
                return call(x, self.running_mean, self.running_var, weight=self.weight, bias=self.bias, training=True)
            return call(x, self.weight, self.bias, self.running_mean, self.running_var, True, 0.1, 1e-5, False)

    x = torch.randn(4, 16)
    torch.testing.assert_close(batch_norm.to_group_norm(Own(16), 1)(x), F.group_norm(x, 1))
