"""Fitted weights against the normal equations, and the accuracy that they save."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dpcheck
from dpcheck.cli import CLEAN, ERROR, main
from dpcheck.target import load

Y = torch.tensor([0, 1, 2, 0, 1, 2])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def test_every_layer_is_fitted_on_what_the_ones_before_it_now_give() -> None:
    layers = [nn.Conv2d(3, 8, 3), NormAct(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)]
    model: Any = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3)).double()
    for _ in range(20):
        model(2 * torch.randn(16, 3, 8, 8, dtype=torch.float64) + 1)
    with torch.no_grad():
        model[1].weight.mul_(-2)
    images, public = (torch.randn(n, 3, 8, 8, dtype=torch.float64) + 1 for n in (6, 20))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batch = public, torch.zeros(20, dtype=torch.long)
    result: Any = dpcheck.fix(model, cross_entropy, (images, Y), unsafe=True, calibration=batch)
    assert result.ok and result.calibrated == ("1", "3") and result.model.training
    new, kept = result.model.state_dict(), model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state.items())
    assert {n for n in new if not torch.equal(new[n], kept[n])} == {
        f"{i}.{k}" for i in "13" for k in ("weight", "bias")
    }
    model.eval()
    wanted = F.batch_norm(model[0](public), model[1].running_mean, model[1].running_var, model[1].weight, model[1].bias)
    check(result.model[1], F.group_norm(model[0](public), result.model[1].dpcheck_groups), wanted)
    inside = result.model[2](result.model[:2](public))
    check(result.model[3], F.group_norm(inside, result.model[3].num_groups), model[:4](public))


def check(norm: Any, x: Tensor, y: Tensor) -> None:
    """Least squares of y on x and a constant, for every channel."""
    for channel in range(x.shape[1]):
        a, b = x[:, channel].flatten(), y[:, channel].flatten()
        solved = torch.linalg.lstsq(torch.stack([a, torch.ones_like(a)], 1), b[:, None]).solution
        torch.testing.assert_close(norm.weight[channel], solved[0, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.bias[channel], solved[1, 0], rtol=1e-3, atol=1e-4)


FILE = """
import torch
import torch.nn.functional as F
from torch import nn

def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    x, y = calibration_batch()
    for _ in range(60):
        F.cross_entropy(model(x), y).backward()
        optimizer.step(), optimizer.zero_grad()
    return model

def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

def calibration_batch():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    return 3 * x + 2, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

def sample_batch():
    return torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
"""


def test_the_command_fits_on_the_public_batch_of_the_file_and_shows_the_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(FILE, encoding="utf-8")
    assert main(["m.py", "--fix", "--unsafe-fixes", "--verify", "--format", "json"]) == CLEAN
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(resources.files("dpcheck").joinpath("schema/output-1.json").read_text()))
    fix = document["fix"]
    given, plain, fitted = fix["calibration_losses"]
    assert fix["calibrated"] == ["1"] and given < fitted < plain - 0.1
    target = load("m.py")
    assert float(target.loss_fn(target.model.eval(), target.calibration).mean().detach()) == pytest.approx(
        given, rel=1e-4
    )
    main(["m.py", "--fix", "--unsafe-fixes", "--verify", "--quiet"])
    assert "must hold public or synthetic data: what the weights take from it gets no noise" in capsys.readouterr().out
    broken = FILE.replace("calibration_batch()\n    for", "sample_batch()\n    for").replace("(60, 4", "(60, 4, None")
    Path("m.py").write_text(broken, encoding="utf-8")
    assert main(["m.py"]) == ERROR and "calibration_batch() raised" in capsys.readouterr().err


def test_a_trained_network_keeps_more_of_what_it_knows() -> None:
    torch.manual_seed(1)
    images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
    images, order = images.float().view(-1, 1, 8, 8) / 16, torch.randperm(len(labels))
    images, labels = images[order], labels[order]
    layers: list[nn.Module] = []
    for inside, out in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(inside, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(5):
        for rows in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    right = []
    for calibration in (None, (images[:100], labels[:100])):
        result = dpcheck.fix(model, cross_entropy, (images[:6], labels[:6]), unsafe=True, calibration=calibration)
        guessed = result.model.eval()(images[1200:]).argmax(1)
        right.append(float((guessed == labels[1200:]).float().mean()))
    assert right[1] > right[0] + 0.05 and right[1] > 0.85, right
