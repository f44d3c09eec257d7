"""``dpcheck verify``: a row for each parameter, JSON for machines, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dpcheck.engine.sites.matmul import MatmulSite

from dpcheck.cli import main
from dpcheck.options.base import CLEAN, FINDINGS

HEAD = """\
import torch
from torch import nn

def loss_fn(model, batch):
    return model(batch).flatten(1).square().sum(1)

def sample_batch():
    print("noise on standard output")
    return torch.arange(24).view(4, 6) % 7

"""
MODELS = {
    "good": "model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 3, bias=False))\n",
    "mixing": "model = nn.Sequential(nn.Embedding(7, 5), nn.BatchNorm1d(6), nn.Linear(5, 3, bias=False))\n",
    "branch": """\
class Branch(nn.Embedding):
    def forward(self, ids):
        h = super().forward(ids)
        return h if ids.sum().item() < 0 else 2 * h

model = Branch(7, 5)
""",
}


def run(tmp_path: Path, capsys: Any, name: str, *options: str) -> tuple[int, str, str]:
    (tmp_path / "m.py").write_text(HEAD + MODELS[name], encoding="utf-8")
    code = main(["verify", str(tmp_path / "m.py"), *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_row_for_each_parameter(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run(tmp_path, capsys, "good")
    assert code == CLEAN
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert rows.keys() == {"0.weight", "1.weight"}
    assert "embedding" in rows["0.weight"] and "matmul" in rows["1.weight"]
    assert "the graph's samplers: 4 samples" in out
    assert "float64" in out and "in its own dtype" in out


def test_json_is_one_document_on_standard_output(tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(tmp_path, capsys, "good", "--format", "json")
    document = json.loads(out)
    assert code == CLEAN
    assert document["ok"] is document["verify"]["ok"] is True
    assert (document["verify"]["method"], document["verify"]["cases"]) == ("graph", 4)
    assert document["verify"]["seconds"] > 0
    first = document["verify"]["parameters"][0]
    assert (first["name"], first["sites"], first["method"], first["ok"]) == ("0.weight", ["embedding"], "graph", True)
    assert max(first["error_vmap"], first["error_single"]) < 1e-12 < first["error_own_dtype"] + 1e-9
    assert "noise" in err


def test_a_model_that_vmap_cannot_run_says_so(tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(tmp_path, capsys, "branch", "--format", "json")
    proof = json.loads(out)["verify"]
    assert code == CLEAN
    assert proof["method"] == "single"
    assert proof["parameters"][0]["error_vmap"] is None
    assert "the single-sample reference stands alone" in " ".join(proof["notes"])


@pytest.mark.parametrize("form", ["full", "json"])
def test_findings_where_there_are_no_gradients_to_verify(tmp_path: Path, capsys: Any, form: str) -> None:
    code, out, _ = run(tmp_path, capsys, "mixing", "--format", form)
    assert code == FINDINGS
    assert "DP101" in out
    if form == "json":
        assert json.loads(out)["ok"] is False


def test_a_wrong_gradient_exits_1(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MatmulSite.parts
    monkeypatch.setattr(MatmulSite, "per_sample", lambda self, *v: 2 * original(self, *v)[0] @ original(self, *v)[1])
    code, out, err = run(tmp_path, capsys, "good")
    assert code == FINDINGS
    assert "wrong" in out
    assert "do not train this model" in err
