"""Formats for other tools: read back with their own readers, and by their own rules."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema

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


GUESS = "GUESS: inputs are a guess\x07"


def _junit(text: str) -> ElementTree.Element:
    """Read, once it is valid by the schema of Jenkins, and its counts and times are sums."""
    xmlschema.XMLSchema(Path(__file__).parent / "data" / "junit-10.xsd").validate(text)
    root = ElementTree.fromstring(text)
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        counts = [int(suite.get(kind, "")) for suite in root]
        assert counts == [len(list(suite.iter(tag))) for suite in root] and sum(counts) == int(root.get(kind, ""))
    assert sum(float(c.get("time", "")) for c in root.iter("testcase")) == pytest.approx(float(root.get("time", "")))
    return root


def test_junit_is_valid_and_counts_right(report: Report) -> None:
    root = _junit(junit.render(report, "sub dir/model.py"))
    assert [f.get("type") for f in root.iter("failure")] == ["DP103", "DP101", "DP101", "DP902"]
    clean = junit.render(Report("independent", (), (), (), "graph", (GUESS,)), "m.py")
    (case,) = _junit(clean).iter("testcase")
    assert "GUESS" in case.get("name", "")
    assert len(_junit(junit.join([clean, junit.failed("x.py"), clean]))) == 3


# https://docs.gitlab.com/ci/testing/code_quality/, "Code Quality report format".
_SEVERITIES = ("info", "minor", "major", "critical", "blocker")


def _gitlab(text: str) -> list[dict[str, Any]]:
    """Read, once every field that GitLab names is as it says; a byte order mark would be refused."""
    assert text.startswith("[")
    found = json.loads(text)
    for entry in found:
        assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["description"] and entry["check_name"] and entry["severity"] in _SEVERITIES
        path, begin = entry["location"]["path"], entry["location"]["lines"]["begin"]
        assert not path.startswith(("./", "/")) and isinstance(begin, int) and begin >= 1
    assert len({entry["fingerprint"] for entry in found}) == len(found)
    return list(found)


def test_gitlab_s_fields_are_as_gitlab_names_them(report: Report) -> None:
    assert len(_gitlab(gitlab.render(report, "sub dir/model.py"))) == 4
    guessed = replace(report, notes=(GUESS,))
    assert [e["severity"] for e in _gitlab(gitlab.render(guessed, "sub dir/model.py"))] == ["info", *["critical"] * 4]


@pytest.mark.parametrize("format", FORMATS.values())
@pytest.mark.parametrize("verdict", ["independent", "unproven"])
def test_a_guess_is_in_every_format(format: Any, verdict: Any) -> None:
    assert "GUESS" in format.render(Report(verdict, (), (), (), "graph", (GUESS,)), "model.py")


@pytest.mark.parametrize("format", FORMATS.values())
def test_a_target_that_failed_is_in_every_format(format: Any) -> None:
    assert "could not be checked" in format.failed("model.py") and "model" in format.failed("model.py")


def test_markdown_keeps_its_table(report: Report) -> None:
    rows = [line for line in markdown.render(report, "sub dir/model.py").splitlines() if line.startswith("| DP")]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_sarif_places_are_in_characters_below_the_root(report: Report, tmp_path: Path) -> None:
    (run,) = json.loads(sarif.render(report, "sub dir/model.py"))["runs"]
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
