"""The verdict of ``dpcheck.check`` on a program, beside what the referee and the oracle say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from programs import Program, batch_of, build, loss_of
from referee import objections

from dpcheck import oracle
from dpcheck.capture import Capture, capture
from dpcheck.facts import Event, OracleResult
from dpcheck.passes import find_facts
from dpcheck.samplesets import analyse


@dataclass(frozen=True)
class Judgement:
    """What is claimed about a program and what speaks against it.

    Attributes:
        verdict: of the analysis alone, before the oracle refutes what is unproven.
        rounding: the difference that the oracle saw grows with the rounding error, which a leak does not.
    """

    verdict: str
    events: tuple[Event, ...]
    objections: tuple[str, ...]
    oracle: OracleResult
    rounding: bool = False

    @property
    def false_pass(self) -> bool:
        return self.verdict == "independent" and self.oracle.mixing and not self.rounding

    @property
    def unconfirmed(self) -> bool:
        return self.verdict == "mixing" and not self.oracle.mixing

    @property
    def falsified(self) -> str | None:
        """Why the verdict or a claim on the way to it is wrong, if so."""
        if self.objections:
            return self.objections[0]
        if self.oracle.failed and not self.oracle.mixing:
            return f"the oracle failed: {self.oracle.failed}"
        return f"passes, and the oracle differs by {self.oracle.worst:.1e}" if self.false_pass else None


@dataclass
class Tally:
    """Verdicts of many programs."""

    verdicts: dict[str, int] = field(default_factory=dict)
    falsified: list[str] = field(default_factory=list)
    unconfirmed: list[str] = field(default_factory=list)

    def add(self, program: Program, judgement: Judgement) -> None:
        key = f"{judgement.verdict}, oracle {'mixing' if judgement.oracle.mixing else 'clean'}"
        self.verdicts[key] = self.verdicts.get(key, 0) + 1
        if judgement.falsified:
            self.falsified.append(f"{program}: {judgement.falsified}")
        if judgement.unconfirmed:
            self.unconfirmed.append(f"{program}: {[(e.kind, e.op) for e in judgement.events][:2]}")

    def count(self, verdict: str) -> int:
        return sum(n for key, n in self.verdicts.items() if key.startswith(verdict))


def captured(model: Any, batch: Any) -> Capture:
    result = capture(model, loss_of, batch)
    assert isinstance(result, Capture), result
    return result


def judge(program: Program) -> Judgement:
    model, batch = build(program), batch_of(5, 1)
    facts = find_facts(model, loss_of, batch)
    kinds = {e.kind for e in facts.events}
    verdict = "independent" if not kinds else "unproven" if kinds <= {"unproven", "not-captured"} else "mixing"
    said = objections(analyse(facts.capture), model, batch_of(5, 9)) if facts.capture else []
    result = oracle.isolate(model, loss_of, batch, quick=True)
    if not result.mixing:
        result = oracle.isolate(model, loss_of, batch)
    rounding = verdict == "independent" and result.mixing and _is_rounding(model, batch, result)
    return Judgement(verdict, tuple(facts.events), tuple(said), result, rounding)


def _is_rounding(model: Any, batch: Any, found: OracleResult) -> bool:
    """Whether a small difference is a thousand times larger in float32: of a gradient that is zero, say."""
    if found.worst > 1e-5:
        return False
    coarse = oracle.isolate(model, loss_of, batch, dtype=torch.float32)
    return coarse.comparisons > 0 and coarse.worst > 1e3 * found.worst
