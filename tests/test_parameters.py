"""The facts of parameters and their table: uses, sites, ties, and what becomes of those that are no plain weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import dpcheck
from dpcheck.cli import main
from dpcheck.diagnostic import ParameterFact
from dpcheck.report import tables

IDS, LABELS = torch.randint(0, 7, (6, 3)), torch.randint(0, 7, (6,))


class Adapted(nn.Module):
    """Tied and frozen weights, bare parameters, a merged low-rank update, and some that come to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
        self.frozen, self.unused = nn.Linear(4, 4).requires_grad_(False), nn.Linear(2, 2)
        self.scale, self.detached = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.base = nn.Parameter(torch.randn(4, 4), requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))
        self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.frozen(self.table(ids) * self.scale)  # SCALE
        h = F.linear(h, self.base + self.up @ self.down) + self.detached.detach()  # MERGED
        with torch.no_grad():
            self.steps.add_(1)
        return self.head(h.mean(1))


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def line_of(mark: str) -> int:
    text = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(text, 1) if line.endswith(f"# {mark}"))


def facts(model: nn.Module, batch: Any, loss: Any = loss_fn) -> dict[str, ParameterFact]:
    return {p.name: p for p in dpcheck.check(model, loss, batch).parameters}


def test_every_kind_of_parameter() -> None:
    found = facts(Adapted(), (IDS, LABELS))
    assert {name: p.status for name, p in found.items()} == {
        "scale": "covered", "detached": "no-gradient", "base": "frozen", "down": "covered", "up": "covered",
        "steps": "frozen", "table.weight": "covered", "unused.weight": "no-gradient", "unused.bias": "no-gradient",
        "frozen.weight": "frozen", "frozen.bias": "frozen",
    }  # fmt: skip
    assert found["table.weight"].tied == ("head.weight",)
    assert found["table.weight"].sites == ("aten.mm.default", "aten.embedding_dense_backward.default")
    assert found["scale"].sites == ("aten.sum.dim_IntList",)
    assert [p.name for p in found.values() if p.written] == ["steps"]
    assert (found["scale"].owner, found["unused.bias"].owner) == ("Adapted", "Linear")


def test_a_merged_update_is_summed_at_the_merged_weight() -> None:
    found = facts(Adapted(), (IDS, LABELS))
    assert found["up"].sites == found["down"].sites == ("aten.mm.default",)
    assert [use.line for use in found["up"].uses or ()] == [line_of("MERGED")]


def test_uses_are_the_lines_that_read_a_parameter() -> None:
    found = facts(Adapted(), (IDS, LABELS))
    lines = {name: {use.line for use in p.uses or ()} for name, p in found.items()}
    assert lines["scale"] == lines["frozen.weight"] == {line_of("SCALE")}
    assert len(found["table.weight"].uses or ()) == 2
    assert lines["detached"] == {line_of("MERGED")}
    assert lines["unused.weight"] == lines["steps"] == set()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_layer_that_runs_twice_has_two_sites() -> None:
    found = facts(Twice(), (torch.randn(6, 4), torch.randint(0, 4, (6,))))
    assert found["layer.weight"].sites == ("aten.mm.default",) * 2
    assert len(found["layer.weight"].uses or ()) == 2


def test_samples_that_mix_leave_no_gradient_covered() -> None:
    def centred(model: nn.Module, batch: Any) -> Tensor:
        losses = loss_fn(model, batch)
        return losses - losses.mean()

    found = facts(nn.Linear(4, 3), (torch.randn(6, 4), torch.randint(0, 3, (6,))), centred)
    assert {p.status for p in found.values()} == {"mixed"}


def test_without_a_graph_the_fallback_computes_every_gradient() -> None:
    def branching(model: nn.Module, batch: Any) -> Tensor:
        losses = loss_fn(model, batch)
        return losses if bool(torch.isfinite(losses).all()) else torch.nan_to_num(losses)

    found = facts(nn.Linear(4, 3), (torch.randn(6, 4), torch.randint(0, 3, (6,))), branching)
    assert {(p.status, p.uses) for p in found.values()} == {("fallback", None)}


class Prototypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.rows)


def test_what_the_samplers_do_not_cover_is_said() -> None:
    report = dpcheck.check(Prototypes(), loss_fn, (torch.randn(6, 4), torch.randint(0, 3, (6,))))
    assert report.verdict == "independent"
    assert (report.method, report.parameters[0].status) == ("vmap", "fallback")
    assert any("_cdist_backward" in note and "rows" in note for note in report.notes)


def test_the_table() -> None:
    console = Console(file=io.StringIO(), width=240)
    tables.show_parameters(console, dpcheck.check(Adapted(), loss_fn, (IDS, LABELS)))
    rows = {line.split("│")[1].strip(): line for line in console.file.getvalue().splitlines() if "│" in line}  # type: ignore[attr-defined]
    assert "unused" in rows["unused.weight"] and "nothing" in rows["unused.weight"]
    assert "no-gradient" in rows["detached"]
    assert "head.weight" in rows["table.weight"] and "and 1 more" in rows["table.weight"]
    assert "written by the forward" in rows["steps"]
    assert f"test_parameters.py:{line_of('MERGED')}" in rows["up"] and "mm" in rows["up"]


def test_the_command_shows_it(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\nfrom torch import nn\nmodel = nn.Linear(4, 1)\n"
        "def loss_fn(model, batch): return model(batch)[:, 0]\ndef sample_batch(): return torch.randn(4, 4)\n"
    )
    assert main([str(path), "--show", "parameters"]) == 0
    shown = capsys.readouterr().out
    assert "weight" in shown and "model.py:4" in shown and "covered" in shown
