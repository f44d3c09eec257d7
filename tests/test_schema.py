"""Every document of --format json is one of the schema that the package ships, and the schema is closed."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from dpcheck.engine.auditing.effort import SHORT
from dpcheck.engine.estimates import PlanEstimate, SiteEstimate
from dpcheck.engine.ledger import Ledger, StepRecord
from model_files import CLEAN_MODEL, HEAD, MIXING_MODEL

from dpcheck import several
from dpcheck.cli import CLEAN, ERROR, FINDINGS, main
from dpcheck.options.check import parse
from dpcheck.report.json import SCHEMA

BRANCHING_MODEL = """
class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum().item() < 1e9 else -x)

def make_model(): return Branching(4, 3)
"""
TEXT = resources.files("dpcheck").joinpath("schema", f"output-{SCHEMA}.json").read_text(encoding="utf-8")
VALIDATOR = jsonschema.Draft202012Validator(json.loads(TEXT))


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clean.py").write_text(HEAD + CLEAN_MODEL, encoding="utf-8")
    Path("mixing.py").write_text(HEAD + MIXING_MODEL, encoding="utf-8")
    Path("branching.py").write_text(HEAD + BRANCHING_MODEL, encoding="utf-8")
    Path("guessed.py").write_text(f"from torch import nn\n{CLEAN_MODEL}", encoding="utf-8")
    Path("broken.py").write_text("raise ValueError('no')", encoding="utf-8")


def document_of(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    VALIDATOR.validate(document)
    return document


@pytest.mark.parametrize(
    ("arguments", "code", "has"),
    [
        ("clean.py", CLEAN, {"check"}),
        ("mixing.py", FINDINGS, {"check"}),
        ("guessed.py --input input:Bx4", CLEAN, {"check"}),
        ("mixing.py --ignore DP1", CLEAN, {"check"}),
        ("clean.py --verify", CLEAN, {"check", "verify"}),
        ("clean.py --certificate c.json", CLEAN, {"check", "certificate"}),
        ("mixing.py --fix --unsafe-fixes --verify", CLEAN, {"check", "fix", "verify"}),
        ("mixing.py --fix", FINDINGS, {"check", "fix"}),
        ("mixing.py --fix --unsafe-fixes", CLEAN, {"check", "fix"}),
        ("clean.py --train --seed 1", CLEAN, {"check", "verify", "train"}),
        ("train mixing.py", FINDINGS, {"check"}),
        ("verify clean.py", CLEAN, {"verify"}),
        ("verify mixing.py", FINDINGS, {"check"}),
        ("plan clean.py", CLEAN, {"plan"}),
        ("plan branching.py", CLEAN, {"plan"}),
        ("plan mixing.py", FINDINGS, {"check"}),
        ("explain mixing.py", CLEAN, {"explain"}),
        ("explain clean.py 0.weight", CLEAN, {"explain"}),
        ("audit mixing.py", FINDINGS, {"check"}),
        ("audit clean.py --epochs 3", CLEAN, {"audit"}),
        ("budget --dataset-size 1000 --steps 5 --noise-multiplier 1", CLEAN, {"budget"}),
        ("budget --ledger seeded.jsonl", CLEAN, {"budget"}),
    ],
)
def test_a_command_s_document_is_valid(
    arguments: str, code: int, has: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(SHORT, records=6, canaries=100, coordinates=3000, draws=40_000, tries=4)
    monkeypatch.setattr("dpcheck.engine.auditing.audit.SHORT", few)
    if "ledger" in arguments:
        Ledger("seeded.jsonl").append(StepRecord("run", 1.1, 1.0, 20, 1000, False))
    assert main([*arguments.split(), "--format", "json"]) == code
    document = document_of(capsys.readouterr().out)
    parts = {"check", "fix", "verify", "train", "certificate", "explain", "plan", "audit", "budget"}
    assert document.keys() & parts == has
    if arguments.startswith("plan") and "plan" in has:
        assert (document["plan"] is None) == ("control flow" in document["reason"]) == ("branching" in arguments)
    if arguments.startswith("guessed"):
        assert document["guessed"] is True and any(n.startswith("GUESS") for n in document["check"]["notes"])
    if "--ignore" in arguments:
        assert document["ok"] is False and document["passes"] is True


def test_a_failing_target_is_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["clean.py", "broken.py", "--format", "json"]
    options = parse(arguments)
    options.targets = several.chosen(options)
    assert several.run(options, arguments, lambda given, _: main(given)) == ERROR
    document = document_of(capsys.readouterr().out)
    assert document["ok"] is False and [t["ok"] for t in document["targets"]] == [True, False]


def test_the_schema_is_closed_and_is_itself_valid(capsys: pytest.CaptureFixture[str]) -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert main(["clean.py", "--format", "json"]) == CLEAN
    document = json.loads(capsys.readouterr().out)
    for change in (
        {"schema": SCHEMA + 1},
        {"more": 1},
        {"ok": "yes"},
        {"check": {**document["check"], "verdict": "?"}},
    ):
        assert not VALIDATOR.is_valid({**document, **change})


def test_the_schema_of_a_plan_has_the_fields_of_the_plan() -> None:
    for name, kind in (("plan", PlanEstimate), ("site", SiteEstimate)):
        assert set(VALIDATOR.schema["$defs"][name]["properties"]) == {f.name for f in dataclasses.fields(kind)}
