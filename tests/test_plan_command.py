"""``dpcheck plan``: a row for each site with its line, parameters and method; findings and fallbacks are said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.estimates import estimates
from torch import nn

from dpcheck.cli import CLEAN, ERROR, FINDINGS, main
from dpcheck.testing import output_losses

HEAD = """\
import torch
from torch import nn

def loss_fn(model, batch):
    return model(batch).flatten(1).square().sum(1)

def sample_batch():
    return torch.arange(24).view(4, 6) % 7

"""
GOOD = """\
class Good(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, ids):
        return self.head(self.table(ids))  # the forward

def make_model(): return Good()
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, body: str, *options: str) -> tuple[int, str, str]:
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "m.py").write_text(HEAD + body, encoding="utf-8")
    code = main(["plan", str(tmp_path / "m.py"), *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_row_for_each_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out, _ = run(tmp_path, monkeypatch, capsys, GOOD)
    assert code == CLEAN
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert rows.keys() == {"table.weight", "head.weight", "head.bias"}
    line = 1 + (HEAD + GOOD).splitlines().index("        return self.head(self.table(ids))  # the forward")
    assert all(f"m.py:{line}" in row for row in rows.values())
    assert "aten.embedding_dense_backward" in rows["table.weight"]
    assert "direct" in rows["table.weight"]
    assert "aten.mm" in rows["head.weight"]
    assert "3 sites at a batch of 4" in out
    assert "MiB at once for 4 samples" in " ".join(out.split())
    held = re.search(r"holds (\d+) samples like these", " ".join(out.split()))
    assert held is not None
    assert int(held.group(1)) > 1000


def test_json_says_what_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    _, text, _ = run(tmp_path, monkeypatch, capsys, GOOD)
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    code, out, _ = run(tmp_path, monkeypatch, capsys, GOOD, "--format", "json")
    document = json.loads(out)
    assert code == CLEAN
    assert "ok" not in document  # A plan is no verdict.
    plan = document["plan"]
    assert plan["batch_size"] == 4
    assert plan["gradient_bytes"] == 4 * (7 * 5 + 3 * 5 + 3)
    assert plan["peak_bytes"] > plan["gradient_bytes"]
    assert plan["seconds"] == pytest.approx(sum(site["seconds"] for site in plan["sites"]))
    assert {", ".join(site["parameters"]) for site in plan["sites"]} == rows.keys()
    for site in plan["sites"]:
        said = f"m.py:{site['location']['line']}", site["op"], site["method"], f"{site['flops'] / 1e6:.4g}"
        assert all(word in rows[", ".join(site["parameters"])] for word in said)
    assert f"{plan['gradient_bytes'] / 2**20:.3g} MiB of them the gradient" in " ".join(text.split())


def test_a_batch_of_one_is_planned_as_two_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    one = GOOD + "def sample_batch(): return torch.arange(6).view(1, 6)\n"
    _, out, _ = run(tmp_path, monkeypatch, capsys, one)
    assert "3 sites at a batch of 2" in out


def test_a_model_that_mixes_has_findings_and_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mixing = GOOD.replace(
        "self.head(self.table(ids))", "self.head(self.table(ids)) + self.head(self.table(ids)).mean(0)"
    )
    code, out, _ = run(tmp_path, monkeypatch, capsys, mixing)
    assert code == FINDINGS
    assert "mixing" in out
    assert "method" not in out


def test_a_fallback_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    branching = GOOD.replace(
        "return self.head", "ids = ids if ids.sum().item() > 0 else -ids\n        return self.head"
    )
    code, out, _ = run(tmp_path, monkeypatch, capsys, branching)
    assert code == CLEAN
    assert "no plan: the graph could not be captured" in out


def test_bad_requests_and_help_without_torch(capsys: Any) -> None:
    assert main(["plan", "missing.py"]) == ERROR
    assert "missing.py" in capsys.readouterr().err
    code = "import sys, dpcheck.cli as c\ntry: c.main(['plan', '--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("False")
    assert "dpcheck plan" in done.stdout


def estimated(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    plan = Clipper(model, output_losses, max_grad_norm=1.0).plan((x,))
    assert plan is not None
    return {e.parameters[0]: e for e in estimates(plan, 1e9)}


def test_estimates_say_what_the_plan_does() -> None:
    few = estimated(nn.Linear(64, 64), torch.randn(4, 2, 64))["weight"]
    assert (few.method, few.op) == ("ghost", "aten.mm")
    many = estimated(nn.Linear(16, 16), torch.randn(4, 400, 16))["weight"]
    assert many.method == "instantiate"
    assert many.held == 4 * 4 * 16 * 16
    assert many.flops >= 2 * 4 * 400 * 16 * 16
    assert many.seconds > many.flops / 1e9
    shared = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    shared[2].weight = shared[0].weight
    assert estimated(shared, torch.randn(4, 3, 8))["0.weight"].kind == "joint"


def test_two_backwards_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    again = GOOD.replace("self.head(self.table(ids))", "checkpoint(self.layers, self.table(ids), use_reentrant=False)")
    layers = "nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(5, 5), nn.Tanh())])"
    again = again.replace("nn.Linear(5, 3)", layers).replace("self.head", "self.layers")
    code, out, _ = run(tmp_path, monkeypatch, capsys, "from torch.utils.checkpoint import checkpoint\n" + again)
    assert code == CLEAN
    assert "two backwards" in out
