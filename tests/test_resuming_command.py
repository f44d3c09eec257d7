"""``dpcheck train --checkpoint`` and ``--resume``: a run that was stopped or killed goes on, and counts every step."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dpcheck.engine import accounting

from dpcheck import resuming
from dpcheck.cli import CLEAN, ERROR, main

FILE = """\
import os, signal, time
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

class Records(TensorDataset):
    reads = 0
    def __getitem__(self, i):
        Records.reads += 1
        if Records.reads == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), signal.SIGINT)
        if Records.reads == int(os.environ.get("FAIL_AT", 0)):
            raise OSError("the disk is gone")
        time.sleep(float(os.environ.get("SLEEP", 0)))
        return super().__getitem__(i)

def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def make_optimizer(parameters): return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)

def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")

def sample_batch(): return torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])

def train_dataset():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    return Records(x, torch.arange(60) % 3)

training = {"epochs": 6, "batch_size": 15}
"""
STEPS = 24


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Where tests run in the background Ctrl-C may be ignored, by every process that they start, too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(FILE, encoding="utf-8")
    return tmp_path / "m.py"


def train(*options: str) -> int:
    return main(["train", "m.py", "--no-baseline", "-q", *options])


def steps(path: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert len({line["run"] for line in lines}) == 1
    return [{name: value for name, value in line.items() if name != "run"} for line in lines]


def stop(monkeypatch: pytest.MonkeyPatch, what: str, *options: str) -> None:
    """A run that ends in the middle: by Ctrl-C (STOP_AT), or by an error (FAIL_AT)."""
    monkeypatch.setenv(what, "150")
    assert train(*options) == ERROR
    monkeypatch.delenv(what)


@pytest.mark.parametrize("options", [[], ["--checkpoint", "m.checkpoint"]])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    # A seed makes the two runs comparable number by number.
    assert train("--seed", "5", "--save", "whole.pt", "--ledger", "whole.jsonl") == CLEAN
    stop(monkeypatch, "STOP_AT", "--seed", "5", "--save", "w.pt", *options)
    said = capsys.readouterr().err
    taken = len(steps("m.checkpoint.ledger.jsonl"))
    assert 0 < taken < STEPS and f"stopped after {taken} of {STEPS} steps (NOT PRIVATE)" in said
    assert "stopping after this step" in said and not Path("w.pt").exists()
    command = shlex.split(said.partition("next: ")[2])
    assert command[:3] == ["dpcheck", "train", "m.py"] and command[-2:] == ["--resume", "m.checkpoint"]
    assert main(command[1:]) == CLEAN
    assert steps("m.checkpoint.ledger.jsonl") == steps("whole.jsonl")
    resumed, whole = torch.load("w.pt"), torch.load("whole.pt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-5)


def test_a_killed_run_counts_the_steps_after_its_checkpoint(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    monkeypatch.setattr(resuming, "SHARE", 0.0)
    stop(monkeypatch, "FAIL_AT", "--checkpoint", "run.pt")
    saved = resuming.read_checkpoint("run.pt")["engine"]
    taken = len(steps("run.pt.ledger.jsonl"))
    assert sum(entry["count"] for entry in saved["ledger"]["entries"]) == taken - 1  # the step that failed counts
    capsys.readouterr()
    assert main(["train", "m.py", "--no-baseline", "--resume", "run.pt"]) == CLEAN
    out = capsys.readouterr().out
    assert f"the run goes on after {taken} of {STEPS} steps" in out and "checkpoint written to run.pt" in out
    lines = steps("run.pt.ledger.jsonl")
    assert len(lines) == STEPS
    noise = float(str(lines[0]["noise_multiplier"]))
    bound = accounting.epsilon(noise, 15 / 60, STEPS, 1e-5).upper
    assert bound <= 8 and f"Epsilon: at most {bound:.6g}"[:22] in out
    # The checkpoint is of the whole run now: there is nothing left to do, and nothing is counted again.
    assert train("--resume", "run.pt") == CLEAN and len(steps("run.pt.ledger.jsonl")) == STEPS
    assert "Per-sample gradients: none computed since" in capsys.readouterr().out


REFUSED = {
    "another model": ("nn.ReLU()", "nn.Tanh()", [], "1 was ReLU(), and is Tanh()"),
    "other options": ("nn.ReLU()", "nn.ReLU(inplace=True)", [], "1 was ReLU(), and is ReLU(inplace=True)"),
    "another width": ("8", "9", [], "of another model: 0.bias"),
    "more records": ("60", "61", [], "dataset_size=60"),
    "another batch size": ("", "", ["--batch-size=10"], "expected_batch_size=15"),
    "more epochs": ("", "", ["--epochs=7"], "steps=24"),
    "another epsilon": ("", "", ["--epsilon=4"], "target_epsilon=8.0; this one has"),
    "another delta": ("", "", ["--delta=1e-6"], "delta=1e-05"),
    "another clipping norm": ("", "", ["--max-grad-norm=2"], "max_grad_norm=1.0; this one has max_grad_norm=2.0"),
    "another kind": ("", "", ["--clipping=automatic"], "clipping="),
    "a seed": ("", "", ["--seed=1"], "seed=None; this one has seed=1"),
    "secure": ("", "", ["--secure"], "secure=False"),
    "another rate": ("", "", ["--lr=0.1"], "trained with lr=0.5, and now it is 0.1"),
    "another optimizer": ("SGD(parameters, lr=0.5, momentum=0.9)", "Adam(parameters)", [], "was SGD, and is Adam"),
    "no ledger": ("", "", ["--ledger=none.jsonl"], "there is no ledger none.jsonl"),
    "an empty ledger": ("", "", ["--ledger=empty.jsonl"], "has 0 steps of the run"),
    "two files": ("", "", ["--checkpoint=other.pt"], "exclude each other"),
    "no checkpoint": ("", "", ["--resume=m.py"], "no checkpoint"),
    "no file": ("", "", ["--resume=none.pt"], "none.pt cannot be read: No such file"),
}


def test_what_is_of_another_run_is_refused_and_nothing_is_counted(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop(monkeypatch, "STOP_AT", "--checkpoint", "run.pt")
    before = Path("run.pt").read_bytes(), steps("run.pt.ledger.jsonl")
    Path("empty.jsonl").touch()
    for name, (old, new, options, says) in REFUSED.items():
        file.write_text(FILE.replace(old, new) if old else FILE, encoding="utf-8")
        capsys.readouterr()
        assert train("--resume", "run.pt", *options) == ERROR, name
        err = capsys.readouterr().err
        assert says in err and "next:" in err and "internal" not in err, (name, err)
        assert (Path("run.pt").read_bytes(), steps("run.pt.ledger.jsonl")) == before, name
    file.write_text(FILE, encoding="utf-8")
    assert train("--checkpoint", "run.pt") == ERROR and "--resume run.pt" in capsys.readouterr().err
    assert train("--checkpoint", "no/run.pt") == ERROR and "--checkpoint" in capsys.readouterr().err
    damaged = Path("run.pt").read_bytes()[:-100]
    Path("run.pt").write_bytes(damaged)
    assert train("--resume", "run.pt") == ERROR and "cut off or changed" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, ERROR), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_ctrl_c_or_the_end_of_a_job(file: Path, number: int, code: int) -> None:
    command = [sys.executable, "-m", "dpcheck", "m.py", "--train", "--no-baseline", "--epochs=40", "--lr=0.2"]
    with subprocess.Popen(
        command, env={**os.environ, "SLEEP": "0.01"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "noise multiplier" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(1.0)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "stopped after" in err and "epsilon <= " in err and "interrupted" not in err
    assert err.rstrip().endswith("next: dpcheck train m.py --epochs=40.0 --lr=0.2 --no-baseline --resume m.checkpoint")
    assert Path("m.checkpoint").exists() and len(steps("m.checkpoint.ledger.jsonl")) >= 1
