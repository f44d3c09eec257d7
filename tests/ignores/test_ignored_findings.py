"""Ignored findings in the command: they do not fail, and they are never forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpcheck.cli import main
from dpcheck.diagnostic import Diagnostic, Ignored, Location, Report
from dpcheck.report import concise, full, github, gitlab, junit, markdown, sarif, terminal

SOURCE = """\
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        h = self.linear(x)
        return h - h.mean(0)COMMENT

def make_model(): return Model()
def loss_fn(model, batch): return model(batch).square().sum(1)
def sample_batch(): return torch.randn(6, 4)
def train_dataset(): return torch.utils.data.TensorDataset(torch.randn(60, 4))
def collate(records): return torch.stack([r[0] for r in records])
training = {"epochs": 1, "batch_size": 20}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def ran(*options: str, comment: str = "", pyproject: str = "") -> tuple[int, str, str]:
        (tmp_path / "m.py").write_text(SOURCE.replace("COMMENT", comment))
        (tmp_path / "pyproject.toml").write_text(pyproject)
        code = main(["m.py", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return ran


@pytest.mark.parametrize(
    ("options", "comment", "pyproject", "by"),
    [
        (["--ignore", "DP1"], "", "", "--ignore"),
        (["--select", "DP2,DP3"], "", "", "not selected"),
        ([], "  # dpcheck: ignore[DP103] known since May", "", "comment at m.py:11: known since May"),
        ([], "", "[tool.dpcheck]\nper-file-ignores = {'m.py' = ['batch-statistics']}\n", "per-file-ignores m.py"),
    ],
)
def test_an_ignored_finding_exits_0_and_the_verdict_counts_it(
    options: list[str], comment: str, pyproject: str, by: str, run: Run
) -> None:
    code, out, err = run(*options, "-q", comment=comment, pyproject=pyproject)
    assert (code, err) == (0, "")
    assert "m.py:make_model: mixing" in out and "no findings, 1 ignored" in out
    assert f"ignored 1 DP103 batch-statistics ({by})" in out
    assert "independent" not in out


@pytest.mark.parametrize("fix", [[], ["--fix"]])
def test_a_model_with_an_ignored_mixing_finding_is_not_trained(fix: list[str], run: Run) -> None:
    code, out, err = run("--ignore", "DP1", "--train", "--exit-zero", *fix)
    assert code == 1
    assert "not trained" in err and "ignored findings count: DP103" in err
    assert "privacy" not in out.replace("privacy:", "")


def test_comments_that_are_wrong_or_unused_are_told(run: Run) -> None:
    code, _, err = run(comment="  # dpcheck: ignore[DP103]")
    assert code == 1 and "m.py:11: this comment ignores nothing: it gives no reason" in err
    code, _, err = run("--ignore", "DP1", comment="  # dpcheck: ignore[DP101] reason")
    assert code == 0 and "m.py:11: unused ignore[DP101]" in err


def test_a_baseline_knows_old_findings_and_fails_for_new_ones(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--write-baseline", "known.json")
    assert code == 0 and "1 finding written to the baseline" in out and "mixing" in out
    (entry,) = json.loads((tmp_path / "known.json").read_text())["findings"]
    assert (entry["code"], entry["path"], entry["target"]) == ("DP103", "m.py", "m.py:make_model")
    code, out, err = run("--baseline", "known.json")
    assert (code, err) == (0, "") and "1 DP103 batch-statistics (baseline known.json)" in out and "mixing" in out
    # One more of the same kind, and lines that have moved.
    code, out, _ = run("--baseline", "known.json", comment=" + h.mean(0)\n\n")
    assert code == 1 and "1 finding, 1 ignored" in out
    # The finding that the baseline knows is gone.
    (tmp_path / "none.json").write_text(json.dumps({"schema": 1, "findings": [{**entry, "id": "0" * 32}]}))
    code, _, err = run("--baseline", "none.json")
    assert code == 1 and "1 finding of m.py:make_model is gone" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "the baseline cannot be read"),
        ("{", "this is no baseline"),
        ("[]", "this is no baseline"),
        ('{"schema": 2, "findings": []}', "another version"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_an_error(text: str | None, says: str, run: Run, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "b.json").write_text(text)
    code, _, err = run("--baseline", "b.json")
    assert code == 2 and says in err and "--write-baseline b.json" in err


def test_statistics_count_by_rule(run: Run) -> None:
    code, out, _ = run("--statistics", "--ignore", "DP103")
    assert code == 0 and "    1  DP103 batch-statistics (1 ignored)" in out and "-->" not in out


def test_every_format_says_what_is_ignored() -> None:
    reason = Ignored("comment", "m.py:3", "a reason")
    ignored = Diagnostic("DP302", "data-written-buffer", "a leak", Location("m.py", 3, 3, 0, 1), ignored=reason)
    report = Report("independent", (ignored,), (), (), "graph")
    assert report.passes and not report.ok
    assert concise.render(report, "m.py") == (
        "independent, no findings, 1 ignored: 1 DP302 data-written-buffer (comment at m.py:3: a reason)"
    )
    assert "ignored: 1 DP302" in github.render(report, "m.py") and "::error" not in github.render(report, "m.py")
    (entry,) = json.loads(gitlab.render(report, "m.py"))
    assert entry["severity"] == "info" and "ignored" in entry["description"]
    (suite,) = ElementTree.fromstring(junit.render(report, "m.py"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("1", "0", "1")
    assert "the guarantee is NOT shown" in markdown.render(report, "m.py")
    (result,) = json.loads(sarif.render(report, "m.py"))["runs"][0]["results"]
    (suppression,) = result["suppressions"]
    assert suppression["kind"] == "inSource" and "a reason" in suppression["justification"]
    console = terminal()
    with console.capture() as captured:
        full.show(console, report, "m.py", brief=True)
    assert "the guarantee is NOT shown" in captured.get()
