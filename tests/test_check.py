"""dpcheck.check: verdicts, what is found out about buffers and parameters, and where nothing is proven."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck
from dpcheck.diagnostic import ParameterFact, Report


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,))


def rows(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.randint(0, 3, (n,))


def by_name(report: Report) -> dict[str, ParameterFact]:
    return {p.name: p for p in report.parameters}


def test_a_clean_model_is_proven() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    report = dpcheck.check(model, cross_entropy, images())
    assert (report.ok, report.verdict, report.method) == (True, "independent", "graph")
    assert {p.status for p in report.parameters} == {"covered"}


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_any_size_of_the_sample_batch_gives_the_same_verdict(size: int) -> None:
    clean = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    assert dpcheck.check(clean, cross_entropy, rows(size)).ok
    mixing = nn.Sequential(nn.Linear(4, 8), nn.Softmax(dim=0), nn.Linear(8, 3))
    assert dpcheck.check(mixing, cross_entropy, rows(size)).verdict == "mixing"


class Buffers(nn.Module):
    """One buffer of each kind."""

    constant: Tensor
    derived: Tensor
    ema: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("constant", torch.arange(3.0))
        self.register_buffer("derived", torch.zeros(()))
        self.register_buffer("ema", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.derived = self.layer.weight.detach().norm()
        self.ema.lerp_(x.detach().mean(0), 0.1)
        return self.layer(x) + self.constant


def test_buffers_are_constant_derived_from_weights_or_written_from_data() -> None:
    report = dpcheck.check(Buffers(), cross_entropy, rows())
    assert {b.name: b.kind for b in report.buffers} == {"constant": "constant", "derived": "derived", "ema": "data"}
    (leak,) = [d for d in report.diagnostics if d.buffer == "ema"]
    assert leak.code == "DP301"
    assert leak.location is not None
    assert leak.location.file == __file__


class Uses(nn.Module):
    """Parameters used in every way that the table tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.frozen(self.embedding(ids)) * self.scale).mean(1)


def test_parameters_and_their_contraction_sites() -> None:
    report = dpcheck.check(Uses(), cross_entropy, (torch.randint(0, 7, (6, 5)), torch.randint(0, 7, (6,))))
    facts = by_name(report)
    tied = facts["embedding.weight"]
    assert tied.tied == ("head.weight",)
    assert sorted(site.split(".")[1] for site in tied.sites) == ["embedding_dense_backward", "mm"]
    assert facts["scale"].sites == ("aten.sum.dim_IntList",)
    assert facts["frozen.weight"].status == "frozen"
    assert facts["unused.bias"].status == "no-gradient"
    assert {d.parameter for d in report.diagnostics if d.code == "DP201"} == {"unused.weight", "unused.bias"}


def routed(x: Tensor) -> Tensor:
    """Each sample takes its own way, by a branch on that sample's data."""
    return torch.stack([row if bool(row.sum() > 0) else row * 2 for row in x])


def test_what_cannot_be_captured_is_unproven_and_never_independent() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(routed(x))

    report = dpcheck.check(Routed(), cross_entropy, rows())
    assert report.verdict in ("unproven", "independent")
    if report.verdict == "unproven":
        assert not report.ok
        assert any("oracle" in note for note in report.notes)
        assert report.method in ("vmap", "single")


def test_chance_is_not_mixing() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            keep = torch.rand(x.shape[0], 1) > 0.5  # stochastic depth
            return self.layer(F.dropout(x, 0.3) + torch.randn_like(x) * keep)

    assert dpcheck.check(Noisy(), cross_entropy, rows()).ok


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    before, batch = {k: v.clone() for k, v in model.state_dict().items()}, rows()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    dpcheck.check(model, cross_entropy, batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(dpcheck.DpcheckError, match="no trainable parameter"):
        dpcheck.check(nn.Linear(4, 3).requires_grad_(False), cross_entropy, rows())


def test_repeated_checks_agree() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    batch = rows()
    assert dpcheck.check(model, cross_entropy, batch) == dpcheck.check(model, cross_entropy, batch)


def test_a_difference_that_nothing_explains_is_unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the graph says: a sample alone must have the loss that it has in the batch."""
    from dpcheck import passes
    from dpcheck.facts import OracleResult

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for worst, verdict in ((1e-9, "independent"), (1e-6, "independent"), (1e-3, "unproven"), (0.5, "mixing")):
        result = OracleResult(worst > 1e-7, worst, "losses", 10)
        monkeypatch.setattr(passes, "isolate", lambda *_, r=result, **__: r)
        assert dpcheck.check(model, cross_entropy, rows()).verdict == verdict
