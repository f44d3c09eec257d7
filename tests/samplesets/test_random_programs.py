"""Two answers that must agree: the analysis of random programs against numbers.

For every program (a) the referee perturbs one sample at a time and looks at every value of the graph: nothing may
change that the analysis does not name; (b) what the analysis passes, the isolation oracle must not refute; (c) what
it refuses by an exact rule, the oracle confirms, but for structural zeros (``irfft(rfft(x))`` along the batch, a
constant added to all logits), which are few and printed.

The long run, 10,000 programs in shards: ``pytest -m long tests/samplesets -n 2`` (about 40 minutes on 2 cores).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from judge import Tally, judge
from programs import Program, programs

from dpcheck import oracle

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def _sweep(count: int, start: int) -> Tally:
    tally = Tally()

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=_QUIET,
              phases=[Phase.generate, Phase.shrink])  # fmt: skip
    @given(programs())
    def agree(program: Program) -> None:
        judgement = judge(program)
        assert not judgement.objections, f"{program}: {judgement.objections[0]}"
        assert not judgement.oracle.failed, f"{program}: {judgement.oracle.failed}"
        assert not judgement.false_pass, f"{program} passes, the oracle differs by {judgement.oracle.worst:.1e}"
        tally.add(program, judgement)

    agree()
    print(tally.verdicts, *tally.unconfirmed, sep="\n")
    return tally


def _few_unconfirmed(tally: Tally) -> None:
    assert len(tally.unconfirmed) <= 0.06 * sum(tally.verdicts.values()), tally.unconfirmed
    assert {v.split(",")[0] for v in tally.verdicts} == {"independent", "mixing", "unproven"}
    assert sum(n for v, n in tally.verdicts.items() if v.startswith("unproven")) <= 0.2 * sum(tally.verdicts.values())


def test_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "SCALES", (1.0,))
    _few_unconfirmed(_sweep(200, 0))


@pytest.mark.long
@pytest.mark.parametrize("shard", range(20))
def test_many_programs(shard: int) -> None:
    _few_unconfirmed(_sweep(500, 1 + shard))
