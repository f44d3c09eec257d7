"""``dpcheck train`` and ``--certificate``: every option reaches the engine, and what is refused writes nothing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from model_files import CLEAN_MODEL, HEAD, MIXING_MODEL

from dpcheck import Certificate
from dpcheck.cli import CLEAN, ERROR, FINDINGS, main
from dpcheck.errors import DpcheckError
from dpcheck.options import check, train


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def file(body: str) -> str:
        (tmp_path / "m.py").write_text(HEAD + body, encoding="utf-8")
        return "m.py"

    return file


@pytest.mark.parametrize("kind", ["flat", "per-layer", "automatic", "adaptive"])
def test_a_kind_of_clipping_is_in_the_statement(write, capsys, kind) -> None:
    path = write(CLEAN_MODEL)
    assert main(["train", path, "--clipping", kind, "--no-baseline", "--format", "json"]) == CLEAN
    told = json.loads(capsys.readouterr().out)["train"]["statement"]
    words = {
        "flat": "is clipped to L2 norm 1;",
        "per-layer": "layer by layer, 2 layers",
        "automatic": "(its L2 norm + 0.01)",
        "adaptive": "follows their 0.5 quantile",
    }
    assert words[kind] in told


def test_options_reach_the_run(write, capsys) -> None:
    path = write(CLEAN_MODEL)
    options = ["--epsilon", "5", "--delta", "1e-4", "--epochs", "2", "--batch-size", "10", "--max-grad-norm", "0.5"]
    assert (
        main(["train", path, *options, "--ledger", "run.jsonl", "--save", "w.pt", "--secure", "--no-baseline"]) == CLEAN
    )
    text = capsys.readouterr().out
    assert "12 steps" in text and "clipping norm 0.5" in text and "delta 0.0001" in text
    assert "cryptographic generator" in text
    assert len(Path("run.jsonl").read_text().splitlines()) >= 12
    assert set(torch.load("w.pt")) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_fixes_are_in_memory(write, capsys) -> None:
    path = write(MIXING_MODEL)
    before = Path(path).read_text()
    assert main(["train", path, "--no-baseline"]) == FINDINGS
    assert "not trained" in capsys.readouterr().err
    assert main(["train", path, "--fix", "--unsafe-fixes", "--no-baseline", "-q"]) == CLEAN
    assert Path(path).read_text() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--clipping", "flatt"], "clipping='flatt' is not known"),
        (["--seed", "1", "--secure"], "exclude each other"),
        (["--unsafe-fixes"], "no effect without --fix"),
        (["--epsilon", "many"], "invalid float"),
        (["--certificate", "none.json"], "cannot be read"),
        (["--ledger", "no/such/run.jsonl"], "no ledger can be written"),
        (["--save", "/proc/w.pt"], "no file can be written to /proc/w.pt"),
        (["--checkpoint", "/proc/w.pt"], "no file can be written to /proc/w.pt"),
        (["--report", "/proc/r.html"], "no file can be written to /proc/r.html"),
        (["--ledger", "m.py"], "this is no step of a ledger"),
        (["--certificate", "m.py"], "the certificate cannot be read"),
        (["--output-file", "x.json"], "needs a format"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(write, capsys, options, says) -> None:
    path = write(CLEAN_MODEL)
    assert (
        main(["train", path, *options, "--no-baseline", *([] if "--save" in options else ["--save", "w.pt"])]) == ERROR
    )
    assert says in capsys.readouterr().err
    assert sorted(p.name for p in Path().iterdir()) == ["m.py"]


def test_a_certificate_of_the_file_is_demanded_in_training(write, capsys) -> None:
    path = write(CLEAN_MODEL)
    assert main([path, "--certificate", "cert.json"]) == CLEAN
    assert "certificate written to cert.json: valid" in capsys.readouterr().out
    assert Certificate.load("cert.json").valid
    assert main(["train", path, "--certificate", "cert.json", "--no-baseline", "-q"]) == CLEAN
    write(CLEAN_MODEL.replace("ReLU", "Tanh"))
    assert main(["train", path, "--certificate", "cert.json", "--no-baseline", "-q"]) == ERROR
    err = capsys.readouterr().err
    assert "what is trained is not what was certified: the module '1'" in err


def test_a_certificate_of_a_mixing_model_says_so(write, capsys) -> None:
    path = write(MIXING_MODEL)
    assert main([path, "--certificate", "cert.json"]) == FINDINGS
    assert "certifies nothing" in capsys.readouterr().out
    made = Certificate.load("cert.json")
    assert not made.valid and any("DP101" in reason for reason in made.reasons)
    assert main([path, "--certificate", "cert.json", "--fix"]) == ERROR
    assert main([path, "--certificate", "no/such/cert.json"]) == ERROR


@pytest.mark.parametrize("option", ["--seed", "--epsilon", "--lr"])
def test_zero_is_an_option_that_was_given(option: str) -> None:
    with pytest.raises(DpcheckError, match=f"{option} has no effect without --train"):
        check.parse(["m.py", option, "0"])
    options = check.parse(["m.py", "--train", option, "0"])
    options.target = "m.py"
    said = shlex.split(train.resuming(options, "run.pt"))
    again = train.parser().parse_args(said[2:])
    assert getattr(again, option[2:]) == 0
    assert again.resume == "run.pt"


def test_the_command_that_goes_on_has_the_options_that_were_given() -> None:
    given = ["m.py", "--fix", "--unsafe-fixes", "--input", "x:Bx3", "--input", "y:B", "--format", "html", "--seed", "3"]
    own = ["--clipping", "per-layer", "--batch-size", "20", "--timeout", "9", "--no-baseline", "--ledger", "a b.jsonl"]
    options = train.parser().parse_args([*given, *own, "--checkpoint", "run.pt"])
    for name in ("clipping", "ledger"):
        setattr(options, f"train_{name}", getattr(options, name))
    again = train.parser().parse_args(shlex.split(train.resuming(options, "run.pt"))[2:])
    assert vars(again) == {**vars(train.parser().parse_args([*given, *own])), "resume": "run.pt"}
