"""The command: exit codes, what is printed where, and clear errors for bad input, with nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import CLEAN_MODEL, HEAD, MIXING_MODEL

from dpcheck.cli import main
from dpcheck.options.base import CLEAN, ERROR, FINDINGS

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def file(body: str, head: str = HEAD) -> str:
        (tmp_path / "m.py").write_text(head + body, encoding="utf-8")
        return "m.py"

    return file


class Ran:
    """One run of the command in this process."""

    def __init__(self, arguments: list[str], capsys: Any) -> None:
        self.code = main(arguments)
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    return lambda *arguments: Ran(list(arguments), capsys)


def test_a_clean_model_exits_0(write: Write, run: Callable[..., Ran]) -> None:
    ran = run(write(CLEAN_MODEL))
    assert ran.code == CLEAN
    assert "independent" in ran.out
    assert "no findings" in ran.out


def test_a_finding_exits_1_and_shows_its_line(write: Write, run: Callable[..., Ran]) -> None:
    ran = run(write(MIXING_MODEL))
    assert ran.code == FINDINGS
    assert "DP101 batch-norm" in ran.out
    assert "m.py:8:" in ran.out
    assert "^" in ran.out
    assert "--fix --unsafe-fixes" in ran.out


def test_findings_can_exit_0(write: Write, run: Callable[..., Ran]) -> None:
    assert run(write(MIXING_MODEL), "--exit-zero").code == CLEAN


def test_a_safe_fix_alone_does_not_change_the_function(write: Write, run: Callable[..., Ran]) -> None:
    ran = run(write(MIXING_MODEL), "--fix")
    assert ran.code == FINDINGS
    assert "not fixed" in ran.out
    assert "--unsafe-fixes" in ran.out


def test_fix_verify_train_and_save(write: Write, run: Callable[..., Ran], tmp_path: Path) -> None:
    path = write(MIXING_MODEL + "def evaluate(model): return {'answer': 42.0}\n")
    ran = run(path, "--fix", "--unsafe-fixes", "--train", "--save", "weights.pt", "--report", "statement.json")
    assert ran.code == CLEAN, ran.err
    document = json.loads((tmp_path / "statement.json").read_text())
    assert document["guaranteed"] and document["epsilon"]["upper"] <= 8 and document["claim"] in ran.out
    assert "GroupNorm" in ran.out
    assert "error vs vmap(grad)" in ran.out
    assert "(8, 1e-05)-differential privacy." in ran.out
    assert "answer 42" in ran.out
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert weights["3.weight"].shape == (3, 8)
    assert "1.running_mean" not in weights


def test_training_never_changes_the_file(write: Write, run: Callable[..., Ran], tmp_path: Path) -> None:
    path = write(MIXING_MODEL)
    before = (tmp_path / path).read_bytes()
    ran = run(path, "--fix", "--unsafe-fixes", "--train", "--no-baseline")
    assert ran.code == CLEAN and "copy in memory" in ran.out
    assert (tmp_path / path).read_bytes() == before


def test_json_is_one_document_on_standard_output(write: Write, run: Callable[..., Ran]) -> None:
    noisy = "print('a line of the model file')\n"
    ran = run(write(noisy + MIXING_MODEL), "--fix", "--unsafe-fixes", "--train", "--format", "json")
    assert ran.code == CLEAN, ran.err
    document = json.loads(ran.out)
    assert document["check"]["verdict"] == "mixing"
    assert document["fix"]["check"]["verdict"] == "independent"
    assert document["verify"]["ok"] is True
    assert document["train"]["epsilon"] <= 8
    assert "a line of the model file" in ran.err


def test_a_model_that_mixes_is_not_trained(write: Write, run: Callable[..., Ran]) -> None:
    ran = run(write(MIXING_MODEL), "--train")
    assert ran.code == FINDINGS
    assert "not trained" in ran.err
    assert "differential privacy." not in ran.out
    ran = run(write(MIXING_MODEL), "--verify", "--exit-zero")
    assert ran.code == FINDINGS
    assert "not verified" in ran.err and "not trained" not in ran.err


def test_a_seed_is_repeatable_and_said_not_to_be_private(write: Write, run: Callable[..., Ran]) -> None:
    path = write(CLEAN_MODEL + "def evaluate(model): return {'sum': model[0].weight.double().sum().item()}\n")
    first, second = (run(path, "--train", "--seed", "3", "--no-baseline") for _ in range(2))
    assert "NOT PRIVATE" in first.out
    assert "No guarantee" in first.out
    assert [line for line in first.out.splitlines() if "sum" in line and "private" in line] == [
        line for line in second.out.splitlines() if "sum" in line and "private" in line
    ]


def test_rules_are_listed_and_explained(run: Callable[..., Ran]) -> None:
    everything = run("rule", "--all")
    assert everything.code == CLEAN
    one = run("rule", "batch-norm")
    assert one.code == CLEAN
    for title in ("What it finds", "Why it breaks privacy", "Example", "Use instead", "Fix safety", "References"):
        assert title in one.out
    assert "DP101 batch-norm" in everything.out


BAD_FILES = {
    "raises on import": ("weights = {}['encoder']\n", HEAD, "raised while it was imported: KeyError: 'encoder'"),
    "no model": ("x = 1\n", HEAD, "defines no model"),
    "several models": ("a = nn.Linear(4, 3)\nb = nn.Linear(4, 3)\n", HEAD, "several models: a, b"),
    "no loss": ("model = nn.Linear(4, 3)\ndel loss_fn\n", HEAD, "no loss_fn(model, batch)"),
    "a batch that does not fit": ("model = nn.Linear(5, 3)\n", HEAD, "the model or its loss raised on this batch"),
    "a batch without samples": (
        CLEAN_MODEL + "def sample_batch(): return torch.zeros(()), torch.tensor([1])\n",
        HEAD,
        "has no sample axis",
    ),
    "tensors that disagree": (
        CLEAN_MODEL + "def sample_batch(): return torch.randn(6, 4), torch.tensor([1, 2])\n",
        HEAD,
        "disagree about the number of samples",
    ),
    "a loss for each class": (
        CLEAN_MODEL + "def loss_fn(model, batch): return model(batch[0])\n",
        HEAD,
        "loss of shape [6, 3], not [6]",
    ),
    "a loss that is no tensor": (CLEAN_MODEL + "def loss_fn(model, batch): return 1.0\n", HEAD, "returned float"),
    "NaN losses": (
        CLEAN_MODEL + "def loss_fn(model, batch): return model(batch[0]).sum(1) * float('nan')\n",
        HEAD,
        "the loss of 6 of 6 samples is not finite",
    ),
    "nothing to train": ("model = nn.Linear(4, 3).requires_grad_(False)\n", HEAD, "no trainable parameter"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_with_a_next_step(case: str, write: Write, run: Callable[..., Ran], tmp_path: Path) -> None:
    body, head, what = BAD_FILES[case]
    path = write(body, head)
    ran = run(path, "--fix", "--unsafe-fixes", "--train", "--save", "w.pt")
    assert ran.code == ERROR
    assert what in ran.err
    assert "next:" in ran.err
    assert "Traceback" not in ran.err + ran.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.py"]


MEAN_LOSS = CLEAN_MODEL + "def loss_fn(model, batch): return F.cross_entropy(model(batch[0]), batch[1])\n"


def test_a_mean_loss_is_an_error_without_fix(write: Write, run: Callable[..., Ran]) -> None:
    ran = run(write(MEAN_LOSS), "--train")
    assert ran.code == ERROR
    assert "loss of shape [], not [6]" in ran.err
    assert "next:" in ran.err


def test_a_mean_loss_is_mended_in_memory_for_training(write: Write, run: Callable[..., Ran], tmp_path: Path) -> None:
    """The file defines its loss twice: the last one counts."""
    path = write(MEAN_LOSS)
    before = (tmp_path / path).read_text()
    ran = run(path, "--fix", "--train", "--no-baseline", "--save", "w.pt")
    assert ran.code == CLEAN, ran.err
    assert (tmp_path / "w.pt").exists()
    assert (tmp_path / path).read_text() == before
    assert run(path, "--fix").code == CLEAN
    assert 'reduction="none"' in (tmp_path / path).read_text().splitlines()[-1]


BAD_OPTIONS = {
    "no such file": (["nowhere.py"], "no such file: nowhere.py"),
    "an epsilon out of reach": (["m.py", "--train", "--epsilon", "1e-6", "--delta", "1e-12"], "cannot be reached"),
    "a negative epsilon": (["m.py", "--train", "--epsilon", "-1"], "not a positive"),
    "a batch larger than the data": (["m.py", "--train", "--batch-size", "61"], "more than the 60 records"),
    "delta of one": (["m.py", "--train", "--delta", "1"], "not between 0 and 1"),
    "no folder for the report": (["m.py", "--train", "--report", "no/where.html"], "there is no such folder"),
    "a report of no known kind": (["m.py", "--train", "--report", "r.pdf"], "ends in none of"),
    "a report without training": (["m.py", "--report", "r.html"], "no effect without --train"),
    "no folder to save in": (["m.py", "--train", "--save", "no/where.pt"], "there is no such folder"),
    "an option without effect": (["m.py", "--epsilon", "3"], "no effect without --train"),
    "unsafe fixes of nothing": (["m.py", "--unsafe-fixes"], "no effect without --fix"),
    "an unknown option": (["m.py", "--bogus"], "unrecognized arguments: --bogus"),
    "an unknown rule": (["rule", "DP1O1"], "there is no rule 'DP1O1'"),
    "nothing at all": ([], "no target was named"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_named_with_a_next_step(
    case: str, write: Write, run: Callable[..., Ran], tmp_path: Path
) -> None:
    arguments, what = BAD_OPTIONS[case]
    write(CLEAN_MODEL)
    ran = run(*arguments)
    assert ran.code == ERROR
    assert what in ran.err
    assert "next:" in ran.err
    assert "Traceback" not in ran.err + ran.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.py"]


def test_the_traceback_is_shown_when_asked_for(write: Write, run: Callable[..., Ran]) -> None:
    ran = run(write("model = nn.Linear(5, 3)\n"), "--traceback")
    assert ran.code == ERROR
    assert "Traceback (most recent call last)" in ran.err
    assert "mat1 and mat2" in ran.err


def test_an_internal_error_is_said_to_be_one(
    write: Write, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpcheck.commands

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(dpcheck.commands, "check", broken)
    ran = run(write(CLEAN_MODEL))
    assert ran.code == ERROR
    assert "internal error: ZeroDivisionError: planted" in ran.err
    assert "--traceback" in ran.err


def test_a_reader_that_goes_away_is_no_error(write: Write, tmp_path: Path) -> None:
    command = f"{sys.executable} -m dpcheck {write(MIXING_MODEL)} | head -c 1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
