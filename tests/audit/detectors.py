"""What is run over every planted fault: check, verify, the audit, and invariants that the test suite holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dpcheck.engine import accounting, noise, trainer
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.trainer import PrivacyEngine
from faults.base import Fault
from small import Small, audited, loss_fn, part, records
from torch import Tensor, nn

import dpcheck
from dpcheck.capture import CaptureFailure, capture
from dpcheck.errors import DpcheckError
from dpcheck.samplesets import analyse


class Centred(nn.Module):
    """Mixes samples by their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


class Counting(nn.Module):
    """Divides by how many numbers of the batch are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x / (x != 0).sum())


class Remembering(nn.Module):
    """Keeps a mean of its data in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen.add_(x.mean(0))
        return self.layer(x)


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def _classes(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5), torch.arange(6) % 3


BAD = {"mixing": (Centred, _normed, Counting), "independent": (Remembering,)}


def check_sees(settings: Any) -> str:
    """A fix whose result the check does not accept, or a wrong proof that another pass of the check does not accept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    result = dpcheck.fix(model, _classes, (torch.randn(6, 1, 4, 4), torch.arange(6) % 3), unsafe=True)
    if not result.report.ok:
        return "the fixed model has findings"
    for make in BAD["mixing"]:
        graph = capture(make(), _classes, _batch())
        if not isinstance(graph, CaptureFailure) and analyse(graph).proven:
            report = dpcheck.check(make(), _classes, _batch())
            return report.diagnostics[0].code if report.method == "none" else ""
    return ""


def verify_sees(settings: Any) -> str:
    """Wrong gradients, norms or sums of models that are private, or of those that the check calls private."""
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 20))
    cases = [(Small(), loss_fn, records(8).tensors), (deep, _squares, torch.randn(5, 3, 20))]
    bad = [(make(), _classes, _batch()) for make in BAD["mixing"]]
    try:
        cases += [case for case in bad if dpcheck.check(*case).method != "none"]
        wrong = [type(case[0]).__name__ for case in cases if not dpcheck.verify(*case).ok]
    except DpcheckError as error:
        return error.what
    return ", ".join(wrong)


def _squares(model: Any, batch: Tensor) -> Tensor:
    return model(batch).square().mean((1, 2))


def audit_sees(settings: dict[str, Any]) -> str:
    """The parts of an audit that failed, or that the engine refused to take the audit's steps."""
    torch.manual_seed(0)
    try:
        found = audited(**settings)
    except DpcheckError:
        return "refused"
    return ", ".join(dict.fromkeys(check.part for check in found.checks if not check.ok))


def part_sees(name: str, settings: dict[str, Any]) -> str:
    """The same of one part, where that takes less time."""
    if name not in ("clipping", "noise", "sampling"):
        return audit_sees(settings)
    torch.manual_seed(0)
    try:
        return "" if all(check.ok for check in part(name, **settings)) else name
    except DpcheckError:
        return "refused"


def suite_sees(settings: Any) -> str:
    """Which of the invariants below does not hold."""
    for invariant in INVARIANTS:
        torch.manual_seed(0)
        try:
            invariant()
        except (AssertionError, DpcheckError) as error:
            return f"{invariant.__name__}: {error}"
    return ""


def _engine(model: nn.Module | None = None, **given: Any) -> PrivacyEngine:
    model = model or Small()
    fixed = {"expected_batch_size": 10, "max_grad_norm": 1.0, "delta": 1e-3, "steps": 6, "check": False}
    noise = {} if "target_epsilon" in given else {"noise_multiplier": 1.0}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return PrivacyEngine(model, loss_fn, optimizer, records(40), **{**fixed, **noise, "_clipper": Zero, **given})


class Zero:
    """A clipper that costs nothing."""

    method, reason = "zero", ""

    def __init__(self, model: nn.Module, loss_fn: Any, *, max_grad_norm: float, **others: Any) -> None:
        self.model, self.max_grad_norm = model, max_grad_norm

    def __call__(self, batch: Any, weights: Tensor | None = None) -> Clipped:
        zeros = {n: torch.zeros_like(p) for n, p in self.model.named_parameters() if p.requires_grad}
        return Clipped(zeros, torch.zeros(len(batch[0])), torch.zeros(len(batch[0])))


class Failing(Zero):
    """One that fails once it has seen data."""

    def __call__(self, batch: Any, weights: Tensor | None = None) -> Clipped:
        raise RuntimeError("out of memory")


def a_failing_step_is_counted() -> None:
    engine = _engine(_clipper=Failing)
    while not len(batch := next(iter(engine))):
        engine.step(batch)
    before = engine.ledger.steps()
    try:
        engine.step(batch)
    except RuntimeError:
        assert engine.ledger.steps() == before + 1, "a step that failed is not counted"


def checkpoints_take_no_step_away() -> None:
    engine = _engine()
    state = engine.state_dict()
    engine.fit(progress=False)
    engine.load_state_dict(state)
    assert engine.ledger.steps() == 6, "steps after the checkpoint are lost"


def a_ledger_file_holds_every_step(folder: Path | None = None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger"
        _engine(ledger=path).fit(progress=False)
        again = _engine(ledger=path)
        assert again.ledger.steps() == len(path.read_text().splitlines()) == 6, "steps of the file are lost"
        spent = accounting.epsilon(1.0, 0.25, 6, 1e-3).upper
        assert again.epsilon().upper >= spent * 0.999, "they are not accounted for"
        assert Ledger.read(path).steps() == 6


def epsilon_is_that_of_the_steps() -> None:
    for sigma, given in ((1.0, {}), (1.0, {"clipping": "adaptive"}), (10.0, {})):
        engine = _engine(noise_multiplier=sigma, **given)
        engine.fit(progress=False)
        expected = accounting.epsilon(sigma, 0.25, 6, 1e-3)
        assert math.isclose(engine.epsilon().upper, expected.upper, rel_tol=1e-6), f"epsilon is wrong {given}"


def steps_without_noise_cost_everything() -> None:
    engine = _engine(noise_multiplier=0.0)
    engine.fit(progress=False)
    assert math.isinf(engine.epsilon().upper), "steps without noise are free"


def the_rate_is_not_rounded_up() -> None:
    class Constant:
        """The first words are at the rate, and draw nothing; later ones, if anybody asks, draw all."""

        def __init__(self) -> None:
            self.word = (1 << 64) // 10**5

        def words(self, count: int) -> Any:
            word, self.word = self.word, 0
            return np.full(count, word, dtype=np.uint64)

    assert not len(trainer.poisson(10**5, 1, Constant())), "a word above the rate draws a record"


def the_grid_stays_in_the_ball() -> None:
    for size in range(2, 12):
        gradient = torch.ones(size, dtype=torch.float64)
        units = noise.GridGaussian(1.0, 1.0).contribution({"a": gradient / gradient.norm()})["a"]
        assert int(units.square().sum()) <= noise.GRID**2, "the integer norm is above C"


def targets_are_kept() -> None:
    engine = _engine(target_epsilon=2.0)
    engine.fit(progress=False)
    other = _engine(target_epsilon=2.0)
    state = engine.state_dict()
    state["run"] = "another"
    _refused(lambda: other.load_state_dict(state), "a second run has no room for the target")


def unfrozen_parameters_are_refused() -> None:
    model = Small()
    model.head.bias.requires_grad_(False)
    engine = _engine(model)
    batch = next(iter(engine))
    model.head.bias.requires_grad_(True)
    _refused(lambda: engine.step(batch), "an unfrozen parameter is not seen")


def foreign_gradients_are_refused() -> None:
    engine = _engine()
    batch = next(iter(engine))
    engine.model.head.bias.grad = torch.ones(3)  # type: ignore[union-attr, operator]
    _refused(lambda: engine.step(batch), "a foreign gradient is not seen")


def verdicts_of_known_models() -> None:
    for verdict, models in BAD.items():
        for make in models:
            report = dpcheck.check(make(), _classes, _batch())
            assert report.verdict == verdict and not report.ok, f"{make.__name__} is {report.verdict}"
    report = dpcheck.check(nn.Linear(5, 3), _classes, _batch())
    assert report.ok, "a linear layer is refused"


def _refused(action: Callable[[], Any], otherwise: str) -> None:
    try:
        action()
    except DpcheckError:
        return
    raise AssertionError(otherwise)


INVARIANTS = (
    a_failing_step_is_counted, checkpoints_take_no_step_away, a_ledger_file_holds_every_step,
    epsilon_is_that_of_the_steps, steps_without_noise_cost_everything, the_rate_is_not_rounded_up,
    the_grid_stays_in_the_ball, targets_are_kept, unfrozen_parameters_are_refused, foreign_gradients_are_refused,
    verdicts_of_known_models,
)  # fmt: skip
DETECTORS: dict[str, Callable[[Any], str]] = {
    "check": check_sees, "verify": verify_sees, "audit": audit_sees, "suite": suite_sees,
}  # fmt: skip


def seen_by(fault: Fault, detector: str) -> str:
    """What the detector says with the fault planted; empty if it is silent."""
    with fault.planted():
        return DETECTORS[detector](fault.settings)
