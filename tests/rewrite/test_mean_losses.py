"""Losses that are a mean over the batch: which ones get edits, and that the mean of the new ones is the old one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import dpcheck
from dpcheck.capture import run_losses
from dpcheck.cli import main
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.rewrite.losses import per_sample
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.text import SourceFile
from dpcheck.target import load

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn

criterion = nn.CrossEntropyLoss()
model = nn.Linear(4, 3)


def sample_batch():
    return torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


"""
SEQUENCES = HEAD.replace("(6, 4)", "(6, 5, 4)").replace("torch.tensor([0, 1, 2, 0, 1, 2])", "torch.randint(3, (6, 5))")

# What loss_fn returns, and what it must return in the written file.
MENDED = {
    "F.cross_entropy(model(x), y)": 'F.cross_entropy(model(x), y, reduction="none")',
    'F.cross_entropy(model(x), y, reduction="mean")': 'F.cross_entropy(model(x), y, reduction="none")',
    "nn.CrossEntropyLoss()(model(x), y)": 'nn.CrossEntropyLoss(reduction="none")(model(x), y)',
    "criterion(model(x), y)": "criterion(model(x), y)",
    "(model(x)[:, 0] - y).square().mean()": "(model(x)[:, 0] - y).square()",
    "torch.mean((model(x)[:, 0] - y) ** 2)": "((model(x)[:, 0] - y) ** 2)",
    "F.mse_loss(model(x), x[:, :3])": 'F.mse_loss(model(x), x[:, :3], reduction="none").flatten(1).mean(1)',
    'F.cross_entropy(model(x), y, reduction="sum") / len(x)': 'F.cross_entropy(model(x), y, reduction="none")',
    "(F.cross_entropy(model(x), y, reduction='sum')) / x.shape[0]": '(F.cross_entropy(model(x), y, reduction="none"))',
    "F.cross_entropy(model(x), y) + 0.1 * model(x).abs().mean()": (
        'F.cross_entropy(model(x), y, reduction="none") + 0.1 * model(x).abs().flatten(1).mean(1)'
    ),
}
OF_SEQUENCES = {
    "F.cross_entropy(model(x).view(-1, 3), y.view(-1))": (
        'F.cross_entropy(model(x).view(-1, 3), y.view(-1), reduction="none").reshape(len(y), -1).mean(1)'
    ),
    "F.cross_entropy(model(x).transpose(1, 2), y)": (
        'F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").flatten(1).mean(1)'
    ),
}
REFUSED = {
    "F.mse_loss(model(x)[:, 0], y.float()).sqrt()": "no loss per sample was found",
    "F.cross_entropy(model(x), y, weight=torch.tensor([1.0, 2.0, 3.0]))": "no loss per sample was found",
    "F.cross_entropy(model(x), y, ignore_index=1)": "no loss per sample was found",
    'F.cross_entropy(model(x), y, reduction="sum")': "no loss per sample was found",
    "model(x).max()": "no mean that can be left out",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(returned: str, head: str = HEAD) -> Path:
    path = Path("m.py")
    path.write_text(
        f"{head}def loss_fn(model, batch):\n    x, y = batch\n    return {returned}  # mean\n", encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("returned", [*MENDED, *OF_SEQUENCES])
def test_the_mean_of_the_new_losses_is_the_old_loss(returned: str) -> None:
    path = write(returned, SEQUENCES if returned in OF_SEQUENCES else HEAD)
    target = load(str(path))
    fix = per_sample(target, unsafe=False)
    assert fix is not None
    text = SourceFile(path.resolve()).edited(fix.edits).decode()
    assert f"    return {(MENDED | OF_SEQUENCES)[returned]}  # mean\n" in text
    assert ('criterion = nn.CrossEntropyLoss(reduction="none")' in text) == returned.startswith("criterion")
    path.write_text(text, encoding="utf-8")
    written = load(str(path))
    torch.testing.assert_close(
        run_losses(target.model, written.loss_fn, target.batch).mean(),
        target.loss_fn(target.model, target.batch).detach(),
    )
    assert per_sample(written, unsafe=True) is None


@pytest.mark.parametrize("returned", REFUSED)
def test_where_the_algebra_does_not_allow_it_nothing_is_written(returned: str) -> None:
    with pytest.raises(CannotWrite, match=REFUSED[returned]):
        per_sample(load(str(write(returned))), unsafe=True)


def test_losses_divided_by_the_batch_size_are_not_any_more() -> None:
    target = load(str(write('F.cross_entropy(model(x), y, reduction="none") / x.shape[0]')))
    assert per_sample(target, unsafe=False) is None
    fix = per_sample(target, unsafe=True)
    assert fix is not None and fix.change.applicability == "unsafe"
    before, after = target.loss_fn(target.model, target.batch), fix.target.loss_fn(target.model, target.batch)
    torch.testing.assert_close(after, before * 6)
    assert not dpcheck.check(target.model, target.loss_fn, target.batch).ok
    assert dpcheck.check(target.model, fix.target.loss_fn, target.batch).ok
    public = load(str(write('F.cross_entropy(model(x), y, reduction="none") / x.shape[1]')))
    assert per_sample(public, unsafe=True) is None


def test_the_command_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = write("criterion(model(x), y)")
    assert main(["m.py", "--diff"]) == FINDINGS
    assert '+criterion = nn.CrossEntropyLoss(reduction="none")' in capsys.readouterr().out
    assert main(["m.py", "--fix"]) == CLEAN
    assert "one loss per sample" in capsys.readouterr().out
    assert 'nn.CrossEntropyLoss(reduction="none")' in path.read_text(encoding="utf-8") and os.listdir() == ["m.py"]
