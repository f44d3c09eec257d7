"""The examples do what the README says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-W", "error", "-m", "dpcheck", *arguments, "--format", "json"]
    # One thread, as in the other tests: two workers fill two cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_digits_are_reported() -> None:
    code, document = run("examples/digits_cnn.py")
    assert code == 1
    found = [(d["code"], d["module"]) for d in document["check"]["diagnostics"]]
    assert found == [("DP101", "features.1"), ("DP101", "features.4")]


def test_digits_are_fixed_verified_and_trained() -> None:
    code, document = run("examples/digits_cnn.py", "--fix", "--unsafe-fixes", "--train")
    assert code == 0
    assert document["fix"]["check"]["verdict"] == "independent"
    assert all(change["applied"] for change in document["fix"]["changes"])
    assert document["verify"]["ok"]
    assert document["verify"]["method"] == "graph"
    assert max(p["error_single"] for p in document["verify"]["parameters"]) < 1e-9
    train = document["train"]
    assert 7.9 < train["epsilon"] <= 8
    assert train["delta"] == 1e-5
    assert train["private"]["test accuracy"] >= 0.9
    assert train["baseline"]["test accuracy"] >= 0.95


def test_text_is_clean_and_trains() -> None:
    code, document = run("examples/text_embedding.py", "--train")
    assert code == 0
    assert document["check"]["ok"]
    sites = {p["name"]: p["sites"] for p in document["verify"]["parameters"]}
    assert sites["tokens.weight"] == ["embedding"]
    assert document["verify"]["ok"]
    train = document["train"]
    assert train["epsilon"] <= 8
    assert train["private"]["test accuracy"] > train["private"]["share of the larger class"] + 0.05
    assert train["baseline"]["test accuracy"] >= train["private"]["test accuracy"] - 0.02
