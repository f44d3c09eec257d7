"""SARIF by the schema of the standard, and by what GitHub's code scanning documents that it takes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest

from dpcheck.cli import main
from dpcheck.diagnostic import Diagnostic, Ignored, Location, Report
from dpcheck.report import sarif

SCHEMA = json.loads((Path(__file__).parent / "data" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
# https://docs.github.com/code-security/reference/code-scanning/sarif-support-for-code-scanning, its tables.
NAME, DESCRIPTION, TAGS, RUNS, GZIPPED = 255, 1024, 10, 20, 10_000_000
GUESS = "GUESS: the loss is a guess"


def document_of(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft4Validator.check_schema(SCHEMA)
    jsonschema.Draft4Validator(SCHEMA).validate(document)
    code_scanning_takes(document, len(text))
    return document


def code_scanning_takes(document: dict[str, Any], size: int) -> None:
    assert size < GZIPPED or len(gzip.compress(json.dumps(document).encode())) < GZIPPED
    assert document["$schema"] == SCHEMA["id"] and document["version"] == "2.1.0"
    # A second run of the same tool and category makes an upload fail.
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] and driver["version"]
    for rule in driver["rules"]:
        assert rule["id"] and len(rule["name"]) <= NAME
        assert 0 < len(rule["shortDescription"]["text"]) <= DESCRIPTION
        assert 0 < len(rule["fullDescription"]["text"]) <= DESCRIPTION
        assert rule["help"]["text"] and rule["help"]["markdown"]
        assert len(rule["properties"]["tags"]) <= TAGS
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
        assert rule["properties"]["precision"] in ("very-high", "high", "medium", "low")
    for result in run["results"]:
        assert result["message"]["text"] and result["locations"] and all(result["partialFingerprints"].values())
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        for place in (*result["locations"], *result["relatedLocations"]):
            artifact = place["physicalLocation"]["artifactLocation"]
            region = place["physicalLocation"]["region"]
            assert artifact["uri"] and not unquote(artifact["uri"]).startswith(("/", ".."))
            assert artifact["uri"].startswith("file:///") or artifact["uriBaseId"] in run["originalUriBaseIds"]
            assert all(region[name] >= 1 for name in ("startLine", "startColumn", "endLine", "endColumn"))
            assert (region["startLine"], region["startColumn"]) < (region["endLine"], region["endColumn"])
    prints = [tuple(result["partialFingerprints"].values()) for result in run["results"]]
    assert len(set(prints)) == len(prints)


def test_the_checks_above_find_what_is_wrong(report: Report) -> None:
    document = json.loads(sarif.render(report, "sub dir/model.py"))
    document["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        document_of(json.dumps(document))
    document = json.loads(sarif.render(report, "sub dir/model.py"))
    document["runs"] *= 2
    with pytest.raises(ValueError):
        document_of(json.dumps(document))


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A span, a line without columns, a finding twice, one without a line, one at an empty line, and one ignored."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub dir").mkdir()
    file = tmp_path / "sub dir" / "model.py"
    file.write_text('x = 1\nname = "ä"; y = mean(x,\n    0)\n\n', encoding="utf-8")
    span = Diagnostic("DP103", "batch-statistics", "50% of it\x07", Location(str(file), 2, 3, 17, 6), help="do so")
    line = Diagnostic("DP101", "batch-norm", "it mixes", Location(str(file), 2), module="bn", fix="unsafe")
    empty = Diagnostic("DP101", "batch-norm", "it mixes", Location(str(file), 4))
    far = Diagnostic("DP902", "unproven-op", "unknown", None, related=(Location("/elsewhere/library.py", 7),))
    known = Diagnostic("DP104", "x", "known", Location(str(file), 1), ignored=Ignored("comment", "model.py:1", "why"))
    return Report("mixing", (span, line, line, empty, far, known), (), (), "none", ("a note", GUESS), 1.25)


@pytest.mark.parametrize("verdict", ["independent", "mixing", "unproven"])
def test_a_report_is_valid(report: Report, verdict: Any) -> None:
    document_of(sarif.render(Report(verdict, (), (), (), "graph"), "model.py"))
    (run,) = document_of(sarif.render(report, "sub dir/model.py"))["runs"]
    span, line, *_, ignored = run["results"]
    # "y" is the 13th character, behind a letter of two bytes; the whole line where no column is known.
    assert span["locations"][0]["physicalLocation"]["region"]["startColumn"] == 17
    whole = {"startLine": 2, "startColumn": 1, "endLine": 2, "endColumn": len('name = "ä"; y = mean(x,') + 1}
    assert line["locations"][0]["physicalLocation"]["region"] == whole
    assert ignored["suppressions"] == [
        {"kind": "inSource", "status": "accepted", "justification": "comment at model.py:1: why"}
    ]


def test_a_guess_is_said_by_the_run_and_by_each_result(report: Report) -> None:
    (run,) = document_of(sarif.render(report, "m.py"))["runs"]
    assert all(GUESS in result["message"]["text"] for result in run["results"])
    clean = Report("independent", (), (), (), "graph", (GUESS,))
    (run,) = document_of(sarif.render(clean, "m.py"))["runs"]
    (said,) = run["invocations"][0]["toolExecutionNotifications"]
    assert said["message"]["text"] == f"m.py: {GUESS}"


def test_several_targets_are_one_run(report: Report) -> None:
    clean = Report("independent", (), (), (), "graph")
    texts = [
        sarif.render(report, "sub dir/model.py"),
        sarif.failed("x.py"),
        *(sarif.render(clean, f"m{i}.py") for i in range(RUNS)),
    ]
    (run,) = document_of(sarif.join(texts))["runs"]
    assert len(run["results"]) == len(report.diagnostics)
    verdicts = [target.get("verdict") for target in run["properties"]["targets"]]
    assert verdicts == ["mixing", None, *["independent"] * RUNS]
    assert [i["executionSuccessful"] for i in run["invocations"]] == [True, False, *[True] * RUNS]


MODEL = """\
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.{norm}(8), nn.Linear(8, 3))


def loss_fn(model, batch):
    return model(batch).square().sum(1)


def sample_batch():
    return torch.randn(6, 4)
"""


def test_the_command_s_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(MODEL.format(norm="BatchNorm1d"), encoding="utf-8")
    Path("good.py").write_text(MODEL.format(norm="LayerNorm"), encoding="utf-8")
    assert main(["bad.py", "--format", "sarif"]) == 1
    assert len(document_of(capsys.readouterr().out)["runs"][0]["results"]) == 1
    assert main(["good.py", "--format", "sarif"]) == 0
    assert document_of(capsys.readouterr().out)["runs"][0]["results"] == []
