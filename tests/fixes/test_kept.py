"""What the fixer keeps of a model besides its tensors: its type, its methods, its modes, and how it is saved."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck

IMAGES, Y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Pretrained(nn.Module):
    """As in a library of language models: a configuration, generation, saving and loading."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.config = {"width": width}
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.5))
        self.frozen = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)).requires_grad_(False).eval()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.body(x)).mean((2, 3)))

    def train(self, mode: bool = True) -> Pretrained:
        super().train(mode)
        self.frozen.eval()
        return self

    @torch.no_grad()
    def generate(self, x: Tensor) -> Tensor:
        return self.eval()(x).argmax(1)

    def save_pretrained(self) -> bytes:
        file = io.BytesIO()
        torch.save({"config": self.config, "state": self.state_dict()}, file)
        return file.getvalue()


def test_type_methods_modes_and_configuration_stay() -> None:
    model = Pretrained()
    result: Any = dpcheck.fix(model, cross_entropy, (IMAGES, Y), unsafe=True)
    new = result.model
    assert result.ok and type(new) is Pretrained and new.config == model.config and new.config is not model.config
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in new.named_modules()} == modes
    assert {n: p.requires_grad for n, p in new.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert new.train() is new and not new.frozen.training and new.body.training
    saved = torch.load(io.BytesIO(new.save_pretrained()), weights_only=True)
    assert torch.equal(new.generate(IMAGES), new(IMAGES).argmax(1))
    again: Any = dpcheck.fix(Pretrained(**saved["config"]), cross_entropy, (IMAGES, Y), unsafe=True).model
    again.load_state_dict(saved["state"])
    assert torch.equal(again.eval()(IMAGES), new(IMAGES))


def test_weights_of_before_load_into_what_is_fixed_but_for_the_keys_that_are_named() -> None:
    model = Pretrained()
    result: Any = dpcheck.fix(model, cross_entropy, (IMAGES, Y), unsafe=True)
    loaded = result.model.load_state_dict(model.state_dict(), strict=False)
    (change,) = (c for c in result.changes if c.module == "body.1")
    gone = [f"body.1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")]
    assert loaded.missing_keys == [] and loaded.unexpected_keys == gone
    assert all(name.rpartition(".")[2] in change.what for name in gone) and "leave the state_dict" in change.what
    assert result.removed_keys == tuple(gone) and result.added_keys == ()
    old = {key: value for key, value in model.state_dict().items() if key not in result.removed_keys}
    result.model.load_state_dict(old)


def test_keys_that_a_fix_adds_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten())
    model.append(nn.Linear(288, 3))
    statistics = {"1": (torch.zeros(8), torch.ones(8))}
    result = dpcheck.fix(model, cross_entropy, (IMAGES, Y), unsafe=True, statistics=statistics)
    assert result.ok and result.removed_keys == () and result.added_keys == ("1.running_mean", "1.running_var")
