"""Several targets in one run: one document, and the worst exit code."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpcheck import several
from dpcheck.cli import main
from dpcheck.errors import DpcheckError
from dpcheck.options.check import parse

CLEAN = """
import torch
model = torch.nn.Linear(3, 2)
def loss_fn(model, batch): return model(batch).sum(1)
def sample_batch(): return torch.randn(5, 3)
"""
MIXING = CLEAN.replace("model(batch).sum(1)", "model(batch - batch.mean(0)).sum(1)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", CLEAN), ("b", MIXING)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(text)
    return tmp_path


def run(*arguments: str) -> int:
    """Each in this process, which is enough where the files import nothing."""
    options = parse(arguments)
    options.targets = several.chosen(options)
    return several.run(options, arguments, lambda given, _: main(given))


def test_one_document_of_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a/model.py", "b/model.py", "c.py", "--format", "json") == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [t["ok"] for t in document["targets"]] == [True, False, False] and document["ok"] is False
    assert "no such file: c.py" in captured.err
    assert run("a/model.py", "b/model.py", "--format", "sarif", "--output-file", "out.sarif") == 1
    runs = json.loads((folder / "out.sarif").read_text())["runs"]
    assert [len(r["results"]) for r in runs] == [1]
    assert run("a/model.py", "b/model.py", "c.py", "--format", "junit") == 2
    root = ElementTree.fromstring(capsys.readouterr().out)
    assert (root.get("tests"), root.get("failures"), root.get("errors"), len(root)) == ("3", "1", "1", 3)
    assert run("a/model.py", "b/model.py") == 1
    assert "2 targets: 1 passed, 1 with findings, 0 with an error" in capsys.readouterr().out


def test_a_baseline_of_all_targets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ("a/model.py", "b/model.py")
    assert run(*both, "--write-baseline", "known.json") == 0
    (entry,) = json.loads((folder / "known.json").read_text())["findings"]
    assert (entry["path"], entry["target"]) == ("b/model.py", "b/model.py:model")
    assert run(*both, "--baseline", "known.json") == 0
    assert "mixing" in capsys.readouterr().out


def test_targets_of_the_project_or_model_py(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyproject.toml").write_text('[tool.dpcheck]\ntargets = ["a/model.py", "b/model.py"]\n')
    assert several.chosen(parse([])) == ["a/model.py", "b/model.py"]
    assert several.chosen(parse(["x.py"])) == ["x.py"]
    monkeypatch.chdir(folder / "a")
    with pytest.raises(DpcheckError, match="targets are relative to"):
        several.chosen(parse([]))
    (folder / "pyproject.toml").write_text("")
    assert several.chosen(parse([])) == ["model.py"]


def test_files_of_one_name_do_not_meet(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each imports a helper of its own folder, and both helpers have one name."""
    for name, shift in (("a", "0 * x"), ("b", "x.mean(0)")):
        (folder / name / "helper.py").write_text(f"def shift(x): return {shift}\n")
        text = CLEAN.replace("model(batch)", "model(batch - shift(batch))")
        (folder / name / "model.py").write_text("from helper import shift\n" + text)
    assert main(["a/model.py", "b/model.py", "--format", "concise"]) == 1
    assert [line.split(",")[0] for line in capfd.readouterr().out.splitlines()][::2] == ["independent", "mixing"]
