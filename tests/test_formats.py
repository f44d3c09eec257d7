"""Formats for other tools: read back with their own readers, and by their own rules."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpcheck.cli import main
from dpcheck.diagnostic import Diagnostic, Location, Report
from dpcheck.report import concise, github, gitlab, junit, markdown, sarif

SOURCE = 'x = 1\nname = "ä"; y = mean(x,\n    0)\n'
FORMATS = {"concise": concise, "github": github, "gitlab": gitlab, "junit": junit, "markdown": markdown, "sarif": sarif}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A finding in one line behind a letter of two bytes, one over two lines, one twice, and one without a line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub dir").mkdir()
    file = tmp_path / "sub dir" / "model.py"
    file.write_text(SOURCE, encoding="utf-8")
    one = Diagnostic(
        "DP103",
        "batch-statistics",
        "50% of\nit: <mixed>, | all\x07",
        Location(str(file), 2, 2, 13, 14),
        help="Use a, b",
    )
    two = Diagnostic("DP101", "batch-norm", "it mixes", Location(str(file), 2, 3, 17, 6), module="bn", fix="unsafe")
    far = Diagnostic("DP902", "unproven-op", "unknown", None, related=(Location("/elsewhere/library.py", 7),))
    return Report("mixing", (one, two, two, far), (), (), "none", ("a note",), 1.25)


def test_concise_has_a_line_for_each(report: Report) -> None:
    lines = concise.render(report, "sub dir/model.py").splitlines()
    assert lines[0] == "sub dir/model.py:2:13: DP103 50% of it: <mixed>, | all"
    assert len(lines) == 5
    assert lines[-1] == "mixing, 4 findings"


def test_github_escapes_and_keeps_columns_to_one_line(report: Report) -> None:
    first, second, *_, last = github.render(report, "sub dir/model.py").splitlines()
    assert first == (
        "::error title=DP103 batch-statistics,file=sub dir/model.py,line=2,endLine=2,col=13,endColumn=14"
        "::50%25 of%0Ait: <mixed>, | all\x07. Use a, b"
    )
    assert "endLine=3" in second and "col=" not in second
    assert last.startswith("::notice") and last.endswith("mixing")


def test_gitlab_has_different_fingerprints_that_outlive_a_moved_line(report: Report, tmp_path: Path) -> None:
    found = json.loads(gitlab.render(report, "sub dir/model.py"))
    assert [entry["check_name"] for entry in found] == ["DP103", "DP101", "DP101", "DP902"]
    assert found[0]["location"] == {"path": "sub dir/model.py", "lines": {"begin": 2, "end": 2}}
    prints = [entry["fingerprint"] for entry in found]
    assert len(set(prints)) == 4
    moved = Report("mixing", tuple(_moved(d) for d in report.diagnostics), (), (), "none")
    assert [entry["fingerprint"] for entry in json.loads(gitlab.render(moved, "sub dir/model.py"))] == prints


def _moved(d: Diagnostic) -> Diagnostic:
    at = d.location
    return d if at is None else Diagnostic(**{**vars(d), "location": Location(at.file, 1, 1)})


def test_junit_can_be_read(report: Report) -> None:
    root = ElementTree.fromstring(junit.render(report, "sub dir/model.py"))
    assert (root.get("tests"), root.get("failures")) == ("4", "4")
    assert [f.get("type") for f in root.iter("failure")] == ["DP103", "DP101", "DP101", "DP902"]
    clean = ElementTree.fromstring(junit.render(Report("independent", (), (), (), "graph"), "m.py"))
    assert (clean.get("tests"), clean.get("failures"), len(list(clean.iter("testcase")))) == ("1", "0", 1)


def test_markdown_keeps_its_table(report: Report) -> None:
    rows = [line for line in markdown.render(report, "sub dir/model.py").splitlines() if line.startswith("| DP")]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_sarif_has_what_code_scanning_needs(report: Report, tmp_path: Path) -> None:
    document = json.loads(sarif.render(report, "sub dir/model.py"))
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert document["version"] == "2.1.0" and document["$schema"].endswith("2.1.0.json")
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert all(rule[key]["text"] for rule in rules for key in ("shortDescription", "fullDescription", "help"))
    for result, d in zip(run["results"], report.diagnostics, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == d.code
        assert result["message"]["text"] and result["partialFingerprints"]
        region = result["locations"][0]["physicalLocation"]["region"]
        assert 1 <= region["startLine"] <= region["endLine"]
    first, second = (r["locations"][0]["physicalLocation"] for r in run["results"][:2])
    assert first["artifactLocation"] == {"uri": "sub%20dir/model.py", "uriBaseId": "ROOT"}
    # "y" is the 13th character, behind a letter of two bytes; its span ends behind it.
    assert first["region"] == {"startLine": 2, "startColumn": 13, "endLine": 2, "endColumn": 14}
    assert second["region"] == {"startLine": 2, "startColumn": 17, "endLine": 3, "endColumn": 7}
    assert run["originalUriBaseIds"]["ROOT"]["uri"] == tmp_path.as_uri() + "/"
    (related,) = run["results"][3]["relatedLocations"]
    assert related["physicalLocation"]["artifactLocation"] == {"uri": "file:///elsewhere/library.py"}


MODEL = """\
import torch
from torch import nn

print("said by the file")
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def loss_fn(model, batch):
    return model(batch).square().sum(1)


def sample_batch():
    return torch.randn(6, 4)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_prints_nothing_else(format: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.py", "--format", format]) == 1
    printed = capsys.readouterr().out
    assert "DP101" in printed and "said by" not in printed
    if format in ("gitlab", "sarif"):
        json.loads(printed)
    assert main(["model.py", "--format", format, "--output-file", "out"]) == 1
    assert re.sub(r'"?\d+\.\d{3}"?', "", (model / "out").read_text()) == re.sub(r'"?\d+\.\d{3}"?', "", printed)
    assert capsys.readouterr().out == ""


def test_a_file_is_written_whole_with_its_mode_or_not_at_all(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model / "out.json"
    out.write_text("old")
    out.chmod(0o640)
    assert main(["model.py", "--format", "json", "--output-file", "out.json"]) == 1
    assert json.loads(out.read_text())["ok"] is False
    assert out.stat().st_mode & 0o777 == 0o640
    before = out.read_text()
    (model / "model.py").write_text("raise ValueError('no model')")
    assert main(["model.py", "--format", "json", "--output-file", "out.json"]) == 2
    assert out.read_text() == before and sorted(os.listdir(model)) == ["model.py", "out.json"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "sarif", "--fix"], "findings alone"),
        (["--output-file", "x"], "format other than full"),
        (["--format", "json", "--output-file", "no/such/folder"], "no file can be written"),
        (["--format", "json", "--output-file", "."], "no file can be written"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], says: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model.py", *options]) == 2
    assert says in capsys.readouterr().err
