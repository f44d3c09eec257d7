"""Randomness is never used twice, and the ledger can only count too much."""

import json
import logging

import numpy as np
import pytest
import torch
from dpcheck.engine import accounting
from dpcheck.engine.checkpoint import save_checkpoint
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.step_record import StepRecord
from white_box import Linear, Loop, make, records, released

from dpcheck.errors import DpcheckError


def test_runs_differ_unless_a_seed_makes_them_equal(caplog):
    x = records(30)
    with caplog.at_level(logging.WARNING, "dpcheck"):
        private = [released(make(x, expected_batch_size=10), 3) for _ in range(2)]
        assert not caplog.records
        seeded = [make(x, expected_batch_size=10, seed=7) for _ in range(2)]
        assert "NOT PRIVATE" in caplog.text
    assert not torch.equal(private[0], private[1])
    assert torch.equal(released(seeded[0], 3), released(seeded[1], 3))
    assert "NOT PRIVATE" in seeded[0].report()
    assert "No guarantee" in seeded[0].report()


def test_resuming_uses_new_noise():
    x = torch.zeros(4, 2003)
    first = make(x, model=Linear(2000, 3), steps=40)
    a = released(first, 3)
    state = first.state_dict()
    b = released(first, 3)
    second = make(x, model=Linear(2000, 3), steps=40)
    second.load_state_dict(state)
    c = released(second, 3)
    first.load_state_dict(state)
    d = released(first, 3)
    first.load_state_dict(make(x, model=Linear(2000, 3)).state_dict())
    assert first.steps_taken == 0
    e = released(first, 3)
    correlation = np.corrcoef(torch.cat([a, b, c, d, e]).numpy())[np.triu_indices(15, 1)]
    assert abs(correlation).max() < 6 / 2003**0.5


def test_a_seeded_run_resumes_as_if_it_had_not_stopped():
    x = records(30)
    whole = released(make(x, expected_batch_size=10, seed=7, steps=6), 6)
    first = make(x, expected_batch_size=10, seed=7, steps=6)
    released(first, 2)
    second = make(x, expected_batch_size=10, seed=7, steps=6)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(released(second, 4), whole[2:], rtol=0, atol=2e-6)


def test_the_state_holds_plain_values_only():
    engine = make(records())
    released(engine, 2)
    state = engine.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert set(state) == {"run", "max_grad_norm", "settings", "ledger"}
    assert set(state["ledger"]["entries"][0]) == {
        "run", "noise_multiplier", "max_grad_norm", "expected_batch_size", "dataset_size", "private", "sampler",
        "adjacency", "count",
    }  # fmt: skip


class Failing(Loop):
    def __call__(self, batch, weights=None):
        raise RuntimeError("out of memory")


def test_a_step_that_fails_is_counted_and_its_batch_not_given_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    engine = make(records(), _clipper=Failing, ledger=path)
    batch = next(iter(engine))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step(batch)
    assert engine.steps_taken == 1
    assert len(path.read_text().splitlines()) == 1
    assert next(iter(engine)).step == 1
    with pytest.raises(DpcheckError, match="not the one"):
        engine.step(batch)


def test_steps_after_the_checkpoint_stay_counted():
    engine = make(records(), steps=10)
    released(engine, 2)
    state = engine.state_dict()
    released(engine, 3)
    engine.load_state_dict(state)
    assert engine.steps_taken == 5
    assert len(engine) == 5


def test_a_crash_between_checkpoint_and_end_counts_through_the_file(tmp_path):
    path = tmp_path / "ledger.jsonl"
    engine = make(records(), steps=10, ledger=path)
    released(engine, 2)
    state = engine.state_dict()
    released(engine, 3)
    resumed = make(records(), steps=10, ledger=path)
    assert (resumed.steps_taken, resumed.ledger.steps()) == (0, 5)
    resumed.load_state_dict(state)
    assert (resumed.steps_taken, len(resumed)) == (5, 5)


def test_iterating_ends_with_the_steps_and_epsilon_is_that_of_the_accountant():
    engine = make(records(40), expected_batch_size=4, steps=7)
    assert engine.epsilon().upper == 0
    metrics = [engine.step(batch) for batch in engine]
    assert [m.step for m in metrics] == list(range(7))
    assert list(engine) == []
    assert engine.epsilon().upper == pytest.approx(accounting.epsilon(1.0, 0.1, 7, 1e-3).upper)
    assert metrics[2].epsilon.upper == pytest.approx(accounting.epsilon(1.0, 0.1, 3, 1e-3).upper)
    assert metrics[2].epsilon.upper < metrics[6].epsilon.upper == engine.epsilon().upper


def test_a_target_is_met_and_what_is_spent_leaves_less_room(tmp_path):
    kwargs = {"target_epsilon": 3.0, "expected_batch_size": 4, "epochs": 2}
    engine = make(records(40), **kwargs, ledger=tmp_path / "ledger.jsonl")
    assert engine.settings.steps == 20
    assert 0.5 < engine.fit(progress=False).upper <= 3.0 * (1 + 1e-9)
    with pytest.raises(DpcheckError, match=r"above target_epsilon=3"):
        make(records(40), **kwargs, ledger=tmp_path / "ledger.jsonl")


def test_resuming_with_less_noise_than_the_target_allows_is_refused_and_changes_nothing():
    first = make(records(40), expected_batch_size=4, noise_multiplier=0.6, steps=20)
    released(first, 10)
    second = make(records(40), expected_batch_size=4, target_epsilon=1.0, epochs=2)
    with pytest.raises(DpcheckError, match="target_epsilon=1"):
        second.load_state_dict(first.state_dict())
    assert (second.ledger.steps(), second.steps_taken) == (0, 0)


@pytest.mark.parametrize("state", [{}, None, {"run": "x"}])
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(DpcheckError, match="no state of a PrivacyEngine"):
        make(records()).load_state_dict(state)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"run": 3}, "run=3"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm=-1\.0"),
        ({"ledger": None}, "no ledger: None"),
        ({"ledger": {"version": 2}}, "no ledger"),
        ({"ledger": {"version": 2, "entries": ["x"]}}, "no ledger"),
        ({"ledger": {"version": 99, "entries": []}}, "version 99"),
        ({"ledger": {"version": 2, "entries": [{"count": 1}]}}, "no step of a ledger"),
    ],
)
def test_a_state_that_is_broken_is_refused_by_what_is_wrong_and_changes_nothing(wrong, says):
    first, second = make(records()), make(records())
    released(first, 2)
    before = second.run
    with pytest.raises(DpcheckError, match=says):
        second.load_state_dict(first.state_dict() | wrong)
    assert (second.run, second.ledger.steps()) == (before, 0)


def test_a_checkpoint_and_a_ledger_that_went_different_ways_are_refused(tmp_path):
    first = make(records(), steps=9, ledger=tmp_path / "ledger.jsonl")
    released(first, 2)
    state = first.state_dict()
    other = make(records(), steps=9, noise_multiplier=2.0)
    other.load_state_dict(state)
    released(other, 1)
    released(first, 1)
    with pytest.raises(DpcheckError, match=f"disagree about the steps of run {first.run}"):
        first.load_state_dict(other.state_dict())
    assert first.steps_taken == 3


def test_a_ledger_of_other_data_is_refused():
    engine = make(records(13))
    released(engine)
    with pytest.raises(DpcheckError, match=r"13 records; this one has 12"):
        make(records(12)).load_state_dict(engine.state_dict())


def test_a_ledger_of_another_adjacency_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(StepRecord("a" * 16, 1.0, 1.0, 3, 13, True, adjacency="replace-one"))
    with pytest.raises(DpcheckError, match="differ in adjacency"):
        make(records(13), ledger=path)


def test_a_run_with_a_target_resumes_from_checkpoint_and_ledger(tmp_path):
    kwargs = {"target_epsilon": 3.0, "expected_batch_size": 4, "epochs": 2}
    ledger, path = tmp_path / "ledger.jsonl", tmp_path / "run.pt"
    first = make(records(40), **kwargs, ledger=ledger)
    released(first, 5)
    save_checkpoint(first, path)
    released(first, 3)
    second = make(records(40), **kwargs, ledger=ledger, resume=path)
    assert (second.run, second.steps_taken, len(second)) == (first.run, 8, 12)
    assert second.fit(progress=False).upper <= 3.0 * (1 + 1e-9)
    assert Ledger(ledger).steps() == 20
    with pytest.raises(DpcheckError, match="of a run with expected_batch_size=4"):
        make(records(40), **(kwargs | {"expected_batch_size": 5}), ledger=ledger, resume=path)
    other = make(records(40), **kwargs, ledger=ledger, resume=path, physical_batch_size=3)
    assert other.steps_taken == 20
