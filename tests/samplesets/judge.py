"""The verdict of the analysis on a program, beside what the referee and the oracle say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from programs import Program, batch_of, build, loss_of
from referee import objections

from dpcheck import oracle
from dpcheck.capture import Capture, capture
from dpcheck.facts import Event, OracleResult
from dpcheck.samplesets import analyse
from dpcheck.samplesets.batch_size import size_events
from dpcheck.samplesets.placement import place_events


@dataclass(frozen=True)
class Judgement:
    """What is claimed about a program and what speaks against it."""

    verdict: str
    events: tuple[Event, ...]
    objections: tuple[str, ...]
    oracle: OracleResult

    @property
    def false_pass(self) -> bool:
        return self.verdict == "independent" and self.oracle.mixing

    @property
    def unconfirmed(self) -> bool:
        return self.verdict == "mixing" and not self.oracle.mixing


@dataclass
class Tally:
    """Verdicts of many programs."""

    verdicts: dict[str, int] = field(default_factory=dict)
    unconfirmed: list[str] = field(default_factory=list)

    def add(self, program: Program, judgement: Judgement) -> None:
        key = f"{judgement.verdict}, oracle {'mixing' if judgement.oracle.mixing else 'clean'}"
        self.verdicts[key] = self.verdicts.get(key, 0) + 1
        if judgement.unconfirmed:
            self.unconfirmed.append(f"{program}: {[(e.kind, e.op) for e in judgement.events][:2]}")


def captured(model: Any, batch: Any) -> Capture:
    result = capture(model, loss_of, batch)
    assert isinstance(result, Capture), result
    return result


def judge(program: Program) -> Judgement:
    model = build(program)
    captures = [captured(model, batch_of(5, 1)), captured(model, batch_of(7, 1))]
    small, large = (analyse(c) for c in captures)
    events = [*small.events, *large.events, *size_events(*captures)]
    if not events:
        events = place_events(model, small, large)
    kinds = {e.kind for e in events}
    verdict = "independent" if not events else "unproven" if kinds == {"unproven"} else "mixing"
    said = objections(small, model, batch_of(5, 9))
    return Judgement(verdict, tuple(events), tuple(said), oracle.isolate(model, loss_of, batch_of(5, 1)))
