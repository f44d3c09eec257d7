"""Steps that are not counted, or counted for too little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dpcheck.engine import ledger, settings, step_record, trainer
from dpcheck.engine.accounting import Bounds, Phase

from faults.base import Change, Fault


def _every_second(original: Any) -> Any:
    def append(self: Any, record: Any, count: int = 1) -> None:
        self.skipped = not getattr(self, "skipped", False)
        if self.skipped:
            original(self, record, count)

    return append


def _recorded(**changes: Any) -> Change:
    def change(original: Any) -> Any:
        def record(self: Any, *args: Any) -> Any:
            found = original(self, *args)
            return replace(found, **{name: make(found) for name, make in changes.items()})

        return record

    return change


def _spent(change_one: Any) -> Change:
    """Another account of the phases; ``change_one(original, phases, delta, adjacency)``."""
    return lambda original: lambda phases, delta, adjacency="add-remove": change_one(original, phases, delta, adjacency)


def _smaller(original: Any, phases: Any, delta: float, adjacency: str) -> Any:
    found = original(phases, delta, adjacency)
    return Bounds(found.lower * 0.95, found.upper * 0.95, delta, found.method)


def _zero_if_small(original: Any, phases: Any, delta: float, adjacency: str) -> Any:
    found = original(phases, delta, adjacency)
    return Bounds(0.0, 0.0, delta, found.method) if found.upper < 0.5 else found


def _noisy_only(original: Any, phases: Any, delta: float, adjacency: str) -> Any:
    return original(tuple(p for p in phases if p.noise_multiplier), delta, adjacency)


def _phases(**changes: Any) -> Change:
    def changed(original: Any, phases: Any, delta: float, adjacency: str) -> Any:
        new = tuple(replace(p, **{name: make(p) for name, make in changes.items()}) for p in phases)
        return original(new, delta, adjacency)

    return _spent(changed)


def _ten_deltas(original: Any, phases: Any, delta: float, adjacency: str) -> Any:
    found = original(phases, 10 * delta, adjacency)
    return replace(found, delta=delta)


def _central_limit(original: Any, phases: Any, delta: float, adjacency: str) -> Any:
    """The Gaussian limit of Bu et al. 2020, an approximation that others quote as if it were a bound."""
    import math

    from dpcheck.engine.accounting import epsilon

    total = sum(p.steps * p.sample_rate**2 * math.expm1(p.noise_multiplier**-2) for p in phases if p.noise_multiplier)
    return epsilon(total**-0.5, 1.0, 1, delta) if total else original(phases, delta, adjacency)


def _in_epochs(p: Phase) -> int:
    return max(1, round(p.steps * p.sample_rate))


def _count_forgotten(original: Any) -> Any:
    return property(lambda self: self.noise_multiplier)


def _this_run_only(original: Any) -> Any:
    def epsilon(self: Any) -> Any:
        own = tuple((r, c) for r, c in self.ledger.entries if r.run == self.run)
        return ledger.spent(ledger.phases_of(own), self.settings.delta)

    return epsilon


def _after_the_step(original: Any) -> Any:
    def step(self: Any, batch: Any) -> Any:
        append, held = self.ledger.append, []
        self.ledger.append = lambda record, count=1: held.append((record, count))
        try:
            found = original(self, batch)
        finally:
            self.ledger.append = append
        for entry in held:
            append(*entry)
        return found

    return step


def _checkpoint_wins(original: Any) -> Any:
    def absorb(self: Any, state: Any) -> None:
        self._entries, self._steps, self._phases = [], type(self._steps)(), type(self._phases)()
        original(self, state)

    return absorb


def _half_a_file(original: Any) -> Any:
    def read(path: Any) -> Any:
        entries, complete = original(path)
        return [(record, (count + 1) // 2) for record, count in entries], complete

    return read


E = trainer.PrivacyEngine
FAULTS = [
    Fault("every second step is counted", ledger.Ledger, "append", _every_second),
    Fault("more noise is recorded than is added", settings.Settings, "record",
          _recorded(noise_multiplier=lambda r: 1.1 * r.noise_multiplier)),
    Fault("the rate of the epoch's last batch is recorded", settings.Settings, "record",
          _recorded(expected_batch_size=lambda r: max(1, r.expected_batch_size // 2))),
    Fault("epsilon 5 % too small", ledger, "spent", _spent(_smaller)),
    Fault("a small epsilon is given as zero", ledger, "spent", _spent(_zero_if_small), "tensorflow/privacy #166"),
    Fault("steps without noise are not accounted for", ledger, "spent", _spent(_noisy_only)),
    Fault("steps counted in epochs", ledger, "spent", _phases(steps=_in_epochs), "steps counted in two units"),
    Fault("epsilon at ten times delta", ledger, "spent", _spent(_ten_deltas)),
    Fault("the square of the rate", ledger, "spent", _phases(sample_rate=lambda p: p.sample_rate**2)),
    Fault("the limit of the central limit theorem as a bound", ledger, "spent", _spent(_central_limit),
          settings={"noise_multiplier": 0.6, "expected_batch_size": 10, "steps": 100}),
    Fault("the count of adaptive clipping is not accounted for", step_record.StepRecord, "joint_noise",
          _count_forgotten, "opacus #807"),
    Fault("epsilon of this run only", E, "epsilon", _this_run_only),
    Fault("a step is counted after it was taken", E, "step", _after_the_step),
    Fault("a checkpoint takes steps away", ledger.Ledger, "absorb", _checkpoint_wins),
    Fault("half of a ledger's file is read", ledger, "_read", _half_a_file),
]  # fmt: skip
