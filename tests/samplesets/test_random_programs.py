"""Two answers that must agree: the analysis of random programs against numbers.

For every program (a) the referee perturbs one sample at a time and looks at every value of the graph: nothing may
change that the analysis does not name; (b) what the analysis passes, the isolation oracle must not refute; (c) what
it refuses by an exact rule, the oracle confirms, but for structural zeros (``irfft(rfft(x))`` along the batch, a
constant added to all logits), which are few and printed.

The long run, 10,000 programs in shards of 500: ``pytest -m long tests/samplesets/test_random_programs.py -n 2`` (0.4
seconds of one core a program, so about 40 minutes on two idle ones).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from judge import Tally, judge
from programs import Program, program, programs

from dpcheck import DpcheckError, oracle


def _sweep(count: int, start: int) -> Tally:
    tally = Tally()

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(programs)
    def run(drawn: Program) -> None:
        try:
            tally.add(drawn, judge(drawn))
        except DpcheckError as error:
            if "not finite" not in error.what:
                raise
            # dpcheck has refused it, so there is no verdict to compare.
            reject()

    run()
    print(tally.verdicts, *tally.unconfirmed, sep="\n")
    return tally


def _check(tally: Tally) -> None:
    total = sum(tally.verdicts.values())
    assert not tally.falsified
    assert len(tally.unconfirmed) <= 0.08 * total, tally.unconfirmed
    assert tally.count("unproven") <= 0.3 * total
    # Neither answer is given by default.
    assert min(tally.count("independent"), tally.count("mixing")) >= 0.25 * total


def test_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "SCALES", (1.0,))
    _check(_sweep(100, 0))


# Programs that were once judged wrongly, or crashed.
ONCE_WRONG = {
    # The place of a sample was looked at for two samples only.
    "created_upper_triangle[(td)b, 1] -> square": "mixing",
    "tril1[b(td), 0] -> square": "mixing",
    # A table that one sample rescales is read by all.
    "renormed_and_read[btd, 1] -> square": "unproven",
    "renormed_table[btd, 1] -> square": "independent",
    # How many numbers these draw depends on the data.
    "by_poisson[bdt, 1] -> square": "independent",
    "by_dirichlet[bdt, 2] -> square": "independent",
    "rrelu[b(td), 1] -> square": "independent",
    # The sign of a conjugate view was taken for a movement.
    "copied_conjugated[bdt, 1] -> square": "independent",
    # The gradient is zero, but for rounding.
    "triu0[d(bt), 0] | scale[d(bt), 1] | instance_norm[bdt, 1] -> huber": "independent",
    # A layout that only in-place ops leave; one that batch norm leaves; a part of the forward that runs again.
    "less_norm[bdt, 1] | quantised[btd, 1] -> smooth_l1": "independent",
    "batch_norm[bdt, 1] | group_norm[btd, 1] -> ignore_index": "mixing",
    "recomputed[btd, 2] -> square": "independent",
}


@pytest.mark.parametrize("text", ONCE_WRONG)
def test_what_was_once_wrong(text: str) -> None:
    judgement = judge(program(text))
    assert not judgement.falsified
    assert judgement.verdict == ONCE_WRONG[text]


@pytest.mark.long
@pytest.mark.parametrize("shard", range(20))
def test_many_programs(shard: int) -> None:
    _check(_sweep(500, 1 + shard))
