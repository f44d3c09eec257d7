"""Random use of the engine's public interface: nothing is under-counted, and only counted steps change parameters."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from dpcheck.engine import accounting
from dpcheck.engine.checkpoint import load_checkpoint, save_checkpoint
from dpcheck.engine.ledger import Ledger
from hypothesis import settings, stateful
from hypothesis import strategies as st
from tiny import Closed, Line, engine
from torch import nn

from dpcheck.errors import DpcheckError


class Moody(Closed):
    """Counts the looks at records, and fails when it is told to."""

    looks: int = 0
    mood: str = ""

    def before(self, batch: Any) -> None:
        Moody.looks += 1
        if Moody.mood == "raises":
            raise RuntimeError("the loss raises")


class Runs(stateful.RuleBasedStateMachine):
    """One model and one ledger file; engines come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model = Line()
        self.attributes = {name: set(vars(m)) for name, m in self.model.named_modules()}
        Moody.looks, Moody.mood = 0, ""
        self.taken: list[tuple[float, int]] = []
        self.saved = False
        self._new(1.0, 8)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _new(self, noise: float, expected: int, clipping: str = "flat", norm: float = 1.0) -> None:
        self.model.zero_grad()
        self.engine = engine(
            model=self.model, clipper=Moody, ledger=self.folder / "ledger", noise_multiplier=noise,
            expected_batch_size=expected, physical_batch_size=40, clipping=clipping, max_grad_norm=norm,
        )  # fmt: skip
        self.setting = noise, expected

    def _weights(self) -> torch.Tensor:
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()

    @stateful.rule(count=st.integers(1, 4))
    def steps(self, count: int) -> None:
        for batch, _ in zip(self.engine, range(count), strict=False):
            before = self._weights()
            self.engine.step(batch)
            self.taken.append(self.setting)
            assert not torch.equal(before, self._weights()), "a step without noise"

    @stateful.rule()
    def a_draw_that_is_not_used(self) -> None:
        first, second = next(iter(self.engine)), next(iter(self.engine))
        assert first is second, "a draw could be chosen"

    @stateful.rule()
    def a_step_that_fails(self) -> None:
        batch, before, looks = next(iter(self.engine)), self._weights(), Moody.looks
        Moody.mood = "raises"
        try:
            self.engine.step(batch)
        except RuntimeError:
            assert torch.equal(before, self._weights())
        else:
            assert Moody.looks == looks, "the error was swallowed"
        Moody.mood = ""
        self.taken.append(self.setting)

    @stateful.rule(
        noise=st.sampled_from([0.5, 1.0, 3.0]),
        expected=st.sampled_from([1, 8, 40]),
        clipping=st.sampled_from(["flat", "normalised"]),
        norm=st.sampled_from([0.1, 1.0, 30.0]),
    )
    def another_engine(self, noise: float, expected: int, clipping: str, norm: float) -> None:
        self._new(noise, expected, clipping, norm)

    @stateful.rule()
    def a_run_that_starts_with_a_part_frozen(self) -> None:
        """The frozen part stays as it is, and the steps count like all others."""
        self.model.b.requires_grad_(False)
        self._new(*self.setting)
        kept = self.model.b.detach().clone()
        self.steps(1)
        assert torch.equal(self.model.b, kept)
        self.model.b.requires_grad_(True)
        self._new(*self.setting)

    @stateful.rule()
    def save(self) -> None:
        save_checkpoint(self.engine, self.folder / "run.pt")
        self.saved = True

    @stateful.precondition(lambda self: self.saved)
    @stateful.rule()
    def load(self) -> None:
        before = self.engine.ledger.steps()
        load_checkpoint(self.engine, self.folder / "run.pt")
        assert self.engine.ledger.steps() >= before

    @stateful.rule()
    def a_batch_of_its_own(self) -> None:
        from dpcheck.engine.sampling import LogicalBatch

        self._refused(lambda: self.engine.step(LogicalBatch(self.engine.steps_taken, torch.arange(3))))

    @stateful.rule()
    def a_foreign_gradient(self) -> None:
        batch, kept = next(iter(self.engine)), self.model.a.grad
        self.model.a.grad = torch.ones(3)
        self._refused(lambda: self.engine.step(batch))
        self.model.a.grad = kept

    @stateful.rule()
    def frozen(self) -> None:
        batch = next(iter(self.engine))
        self.model.b.requires_grad_(False)
        self._refused(lambda: self.engine.step(batch))
        self.model.b.requires_grad_(True)

    @stateful.rule()
    def another_mode(self) -> None:
        batch = next(iter(self.engine))
        self.model.eval()
        self._refused(lambda: self.engine.step(batch))
        self.model.train()

    def _refused(self, action: Any) -> None:
        before, steps, looks = self._weights(), self.engine.ledger.steps(), Moody.looks
        try:
            action()
        except DpcheckError:
            pass
        else:
            raise AssertionError("it was not refused")
        assert torch.equal(before, self._weights())
        assert (self.engine.ledger.steps(), Moody.looks) == (steps, looks)

    @stateful.invariant()
    def every_step_is_counted(self) -> None:
        ledger = self.engine.ledger
        assert ledger.steps() == len(self.taken) >= Moody.looks
        if (self.folder / "ledger").exists():
            assert Ledger.read(self.folder / "ledger").steps() == len(self.taken)
        counted = {(p.noise_multiplier, p.sample_rate): p.steps for p in ledger.phases()}
        assert counted == {(n, b / 40): self.taken.count((n, b)) for n, b in dict.fromkeys(self.taken)}

    @stateful.invariant()
    def nothing_is_left_on_the_model(self) -> None:
        assert {name: set(vars(m)) for name, m in self.model.named_modules()} == self.attributes
        for module in self.model.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
        assert list(self.model.state_dict()) == ["a", "b"]
        assert all(not p._backward_hooks for p in self.model.parameters())


Runs.TestCase.settings = settings(max_examples=15, stateful_step_count=15)
TestRuns = Runs.TestCase


def test_epsilon_of_mixed_runs_is_that_of_all_steps() -> None:
    machine = Runs()
    machine.steps(3)
    machine.another_engine(3.0, 40, "flat", 1.0)
    machine.steps(2)
    phases = [accounting.Phase(1.0, 8 / 40, 3), accounting.Phase(3.0, 1.0, 2)]
    assert machine.engine.epsilon().upper == accounting.epsilon_of(phases, 1e-3).upper
    machine.teardown()
