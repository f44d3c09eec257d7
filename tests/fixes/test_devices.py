"""Fixes stay on the device of the layer: shown with the meta device, which needs no hardware.

A layer on another device than the default must not get tensors on the default one, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcheck.fixes import batch_norm, standardised
from dpcheck.fixes.buffers import keep_buffers
from dpcheck.fixes.calibration import calibrate
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.layers import Remedy, remedy


class Fused(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def as_found(code: str, module: Any) -> nn.Module:
    """What the remedy for a finding of the rule makes of a module."""
    found = remedy(code, module, None, "group")
    assert isinstance(found, Remedy)
    return found.apply(module)


STATISTICS = torch.zeros(8, device="cpu"), torch.ones(8, device="cpu")
CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], nn.Module]]] = {
    "group norm": (lambda: nn.BatchNorm2d(8), lambda m: batch_norm.to_group_norm(m, 2)),
    "without weights": (lambda: nn.BatchNorm2d(8, affine=False), lambda m: batch_norm.to_group_norm(m, 2)),
    "fused": (lambda: Fused(8), lambda m: batch_norm.to_group_norm(m, 2)),
    "frozen": (lambda: nn.BatchNorm2d(8), batch_norm.to_frozen),
    "frozen, copied": (lambda: nn.BatchNorm2d(8), batch_norm.freeze_batch_norm),
    "statistics": (lambda: nn.BatchNorm2d(8), lambda m: batch_norm.to_frozen(m, STATISTICS)),
    "first statistics": (
        lambda: nn.BatchNorm2d(8, track_running_stats=False),
        lambda m: batch_norm.to_frozen(m, STATISTICS),
    ),
    "standardised": (lambda: nn.Conv2d(3, 8, 3), standardised.standardise),
    "kept buffers": (lambda: nn.BatchNorm2d(8), lambda m: keep_buffers(m, ("running_mean",))),
    "bounded rows": (lambda: nn.Embedding(9, 4, max_norm=0.5), lambda m: as_found("DP302", m)),
    "instance norm": (
        lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        lambda m: as_found("DP301", m),
    ),
    "copy": (lambda: nn.LSTM(3, 4), lambda m: duplicate(m).model),
}


def devices(module: nn.Module) -> set[str]:
    return {t.device.type for t in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("own", "default"), [("meta", "cpu"), ("cpu", "meta")])
def test_what_takes_a_layers_place_is_where_it_was(name: str, own: str, default: str) -> None:
    make, change = CASES[name]
    with torch.device(own):
        module = make()
    held = devices(module)
    with torch.device(default):
        new = change(module)
    assert devices(new) <= {own} and (devices(new) == held or name == "without weights")


def test_calibration_stays_on_the_device_of_the_model() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch).flatten(1).sum(1)

    x, old = torch.randn(6, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    new: Any = duplicate(old).model
    new[1] = batch_norm.to_group_norm(new[1], 2)
    before = new[1].bias.clone()
    with torch.device("meta"):
        assert calibrate(old, new, loss, x, ["1"]) == ("1",)
    assert devices(new) == {"cpu"} and not torch.equal(new[1].bias, before)
