import json
import math
from dataclasses import replace

import pytest
from dpcheck.engine import accounting
from dpcheck.engine.ledger import Ledger, new_run
from dpcheck.engine.step_record import StepRecord

from dpcheck.errors import DpcheckError

A = StepRecord("a" * 16, 1.1, 1.0, 10, 1000, True)
NOISIER = replace(A, noise_multiplier=2.0)
COUNTED = replace(A, count_noise=2.0)
B = replace(A, run="b" * 16)


def filled(*records, path=None):
    ledger = Ledger(path)
    for record in records:
        ledger.append(record)
    return ledger


def test_equal_steps_are_counted_together():
    ledger = filled(A, A, NOISIER, A)
    assert ledger.entries == ((A, 2), (NOISIER, 1), (A, 1))
    assert ledger.steps() == 4
    assert [(p.noise_multiplier, p.sample_rate, p.steps) for p in ledger.phases()] == [(1.1, 0.01, 3), (2.0, 0.01, 1)]


def test_epsilon_is_that_of_all_steps_of_all_runs():
    ledger = Ledger()
    assert ledger.epsilon(1e-5).upper == 0
    ledger.append(A, 60)
    ledger.append(B, 40)
    assert (ledger.steps(A.run), ledger.steps(B.run), ledger.steps("nobody")) == (60, 40, 0)
    assert ledger.epsilon(1e-5).upper == pytest.approx(accounting.epsilon(1.1, 0.01, 100, 1e-5).upper)


def test_each_step_is_on_disk_when_append_returns(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = filled(A, path=path)
    assert len(path.read_text().splitlines()) == 1
    ledger.append(NOISIER)
    assert Ledger(path).entries == ledger.entries
    again = Ledger(path)
    again.append(B)
    assert Ledger(path).entries == ((A, 1), (NOISIER, 1), (B, 1))


def test_nothing_is_written_before_the_first_step(tmp_path):
    Ledger(tmp_path / "ledger.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_line_cut_off_by_a_crash_had_not_been_counted_yet(tmp_path):
    path = tmp_path / "ledger.jsonl"
    filled(A, A, path=path)
    path.write_bytes(path.read_bytes()[:-20])
    ledger = Ledger(path)
    assert ledger.steps() == 1
    ledger.append(NOISIER)
    assert Ledger(path).entries == ((A, 1), (NOISIER, 1))


@pytest.mark.parametrize("where", [".", "nowhere/ledger.jsonl"])
def test_a_path_that_cannot_be_a_file_is_refused_before_training(tmp_path, where):
    with pytest.raises(DpcheckError, match="no ledger can be written"):
        Ledger(tmp_path / where)


@pytest.mark.parametrize("line", ["not json", "[]", '{"run": "x"}', json.dumps({"run": 1, "extra": 2})])
def test_a_file_that_is_no_ledger_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    filled(A, path=path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DpcheckError, match="no step of a ledger") as raised:
        Ledger(path)
    assert raised.value.where == f"{path}:2"


@pytest.mark.parametrize(
    "change", [{"noise_multiplier": -1.0}, {"noise_multiplier": "1"}, {"expected_batch_size": 0}, {"dataset_size": 5}]
)
def test_a_step_with_impossible_values_is_refused(change):
    state = filled(A).state_dict()
    state["entries"][0].update(change)
    with pytest.raises(
        DpcheckError, match=next(iter(change)) if "dataset_size" not in change else "expected_batch_size"
    ):
        Ledger().absorb(state)


def test_state_survives_json_and_absorbing_it_again_changes_nothing():
    ledger = filled(A, A, NOISIER, B)
    state = json.loads(json.dumps(ledger.state_dict()))
    other = Ledger()
    for _ in range(2):
        other.absorb(state)
        assert other.entries == ledger.entries


def test_the_longer_of_two_histories_is_kept():
    short, long = filled(A, A), filled(A, A, A, NOISIER)
    short.absorb(long.state_dict())
    long.absorb(filled(A).state_dict())
    assert short.entries == long.entries == ((A, 3), (NOISIER, 1))


def test_steps_of_another_run_are_added_to_file_and_count(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = filled(A, A, path=path)
    ledger.absorb(filled(B, B, B).state_dict())
    assert (ledger.steps(A.run), ledger.steps(B.run)) == (2, 3)
    assert Ledger(path).entries == ledger.entries


def test_histories_that_part_are_refused_and_nothing_changes():
    ledger = filled(A, A, A)
    with pytest.raises(DpcheckError, match=A.run):
        ledger.absorb(filled(A, NOISIER).state_dict())
    assert ledger.entries == ((A, 3),)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "version None"),
        ({"version": 3, "entries": []}, "version 3"),
        ({"version": "2", "entries": []}, "version '2'"),
        ({"version": 1, "entries": [{"count": 0}]}, "counts 0 steps"),
        ({"version": 1, "entries": [{"count": 1}]}, "no step of a ledger"),
    ],
)
def test_a_state_that_is_no_ledger_is_refused(state, says):
    with pytest.raises(DpcheckError, match=says):
        Ledger().absorb(state)


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "shuffled"},
        {"sampler": "fixed-size"},
        {"sampler": "cyclic", "adjacency": "replace-one"},
        {"adjacency": "replace-one"},
        {"adjacency": "swap"},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": -1.0},
        {"expected_batch_size": 2000},
    ],
)
def test_what_the_accountant_cannot_express_enters_no_ledger(tmp_path, change):
    state = filled(A).state_dict()
    state["entries"][0].update(change)
    ledger = filled(A, path=tmp_path / "ledger.jsonl")
    for attempt in (lambda: ledger.absorb(state), lambda: ledger.append(replace(A, **change))):
        with pytest.raises(DpcheckError, match=f"{next(iter(change))}|disagree"):
            attempt()
    assert ledger.entries == Ledger(ledger.path).entries == ((A, 1),)


@pytest.mark.parametrize("count", [0, -3, 1.5, True])
def test_a_count_that_is_no_number_of_steps_is_refused(tmp_path, count):
    ledger = filled(A, path=tmp_path / "ledger.jsonl")
    with pytest.raises(DpcheckError, match="count="):
        ledger.append(A, count)
    assert ledger.entries == Ledger(ledger.path).entries == ((A, 1),)


def test_ledgers_of_version_1_are_read_and_have_no_counts(tmp_path):
    first = {
        "run": A.run, "noise_multiplier": 1.1, "max_grad_norm": 1.0, "expected_batch_size": 10, "dataset_size": 1000,
        "private": True, "sampler": "poisson", "adjacency": "add-remove",
    }  # fmt: skip
    ledger = Ledger()
    ledger.absorb({"version": 1, "entries": [{**first, "count": 3}]})
    assert ledger.entries == ((A, 3),)
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(first) + "\n")
    assert Ledger(path).entries == ((A, 1),)
    Ledger(path).append(A)
    assert path.read_text() == (json.dumps(first) + "\n") * 2
    with pytest.raises(DpcheckError, match="no step of a ledger"):
        Ledger().absorb({"version": 1, "entries": [{**first, "count_noise": 2.0, "count": 3}]})
    with pytest.raises(DpcheckError, match="no step of a ledger"):
        Ledger().absorb({"version": 2, "entries": [{**first, "votes": 2.0, "count": 3}]})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", True])
def test_a_count_without_noise_enters_no_ledger(value):
    ledger = Ledger()
    with pytest.raises(DpcheckError, match="count_noise"):
        ledger.append(replace(A, count_noise=value))
    assert not ledger.entries


def test_steps_with_and_without_a_count_are_composed():
    ledger = Ledger()
    for record, count in ((A, 3), (COUNTED, 4), (A, 2)):
        ledger.append(record, count)
    assert ledger.steps() == ledger.steps(A.run) == 9
    assert [(p.noise_multiplier, p.steps) for p in ledger.phases()] == [
        (1.1, 5),
        (pytest.approx((1.1**-2 + 4.0**-2) ** -0.5), 4),
    ]


@pytest.mark.parametrize("sampler", ["poisson", "fixed-size"])
def test_replacing_is_accounted_for_as_replacing(sampler):
    step = replace(A, adjacency="replace-one", sampler=sampler)
    ledger = Ledger()
    ledger.append(step, 100)
    other = Ledger()
    other.absorb(ledger.state_dict())
    phases = [accounting.Phase(1.1, 0.01, 100, sampler)]
    expected = accounting.epsilon_of(phases, 1e-5, adjacency="replace-one")
    assert ledger.epsilon(1e-5) == other.epsilon(1e-5) == expected
    assert expected.lower > accounting.epsilon(1.1, 0.01, 100, 1e-5).upper


def test_steps_of_two_adjacencies_have_no_epsilon(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for step in (A, replace(A, adjacency="replace-one")):
        filled(step, path=tmp_path / step.adjacency)
    path.write_text("".join((tmp_path / name).read_text() for name in ("add-remove", "replace-one")))
    with pytest.raises(DpcheckError, match="differ in adjacency"):
        Ledger(path)


def test_the_clipping_norm_may_change_for_noise_is_relative_to_it():
    ledger = Ledger()
    ledger.append(A, 50)
    ledger.append(replace(A, max_grad_norm=0.1), 50)
    assert ledger.epsilon(1e-5) == accounting.epsilon(1.1, 0.01, 100, 1e-5)


def test_runs_have_different_names():
    assert len({new_run() for _ in range(100)}) == 100
