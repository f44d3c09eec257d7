"""A clipping norm that follows a quantile: what its count releases, and that the account has both queries."""

import json
import math

import numpy as np
import pytest
import torch
from dpcheck.engine import AdaptiveQuantile, accounting
from dpcheck.engine.accounting import Phase
from dpcheck.engine.adaptive import Count
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.step_record import StepRecord
from dpcheck.engine.streams import KeyedStream
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from white_box import Linear, Loop, make, records, released

from dpcheck.errors import DpcheckError

RATE, QUANTILE = 0.2, 0.5


def steps_of(engine):
    """The metrics of every step that is left."""
    return [engine.step(batch) for batch in engine]


def shares(engine, metrics):
    """What was released of each step's count, read from the norms that came of it."""
    norms = np.array([m.max_grad_norm for m in metrics] + [engine.max_grad_norm])
    return QUANTILE - np.diff(np.log(norms)) / RATE


def joint(gradient, count):
    """Andrew et al., theorem 1, written down again."""
    return (gradient**-2 + (2 * count) ** -2) ** -0.5


@pytest.mark.parametrize("secure", [False, True])
def test_the_count_has_its_noise_and_is_of_the_sample(secure):
    """Half of the records are too long for any norm that is reached: u - n / 2 is what was drawn of each kind."""
    x, width = torch.zeros(8, 5), 4.0
    x[:4, 0] = 1e9
    kind = AdaptiveQuantile(count_noise=width)
    engine = make(x, expected_batch_size=4, steps=400, clipping=kind, secure=secure)
    long = []
    metrics = []
    for batch in engine:
        long.append(int((batch.indices < 4).sum()))
        metrics.append(engine.step(batch))
    drawn = np.array([m.drawn for m in metrics])
    noise = (shares(engine, metrics) - 0.5) * 4 - (drawn / 2 - np.array(long))
    # Whole numbers of records or halves, so that no low bits tell anything.
    np.testing.assert_allclose(2 * noise, np.round(2 * noise), atol=1e-6)
    low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], len(noise)) / len(noise)
    assert low < (noise**2).mean() / (width**2 + 1 / 48) < high
    assert stats.kstest(noise / width, "norm").pvalue > 1e-7
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 6 / 400**0.5


@pytest.mark.parametrize("secure", [False, True])
def test_gradients_have_more_noise_than_the_whole_step(secure):
    z, count = 1.5, 1.0
    engine = make(
        torch.zeros(6, 4003),
        model=Linear(4000, 3),
        noise_multiplier=z,
        secure=secure,
        clipping=AdaptiveQuantile(count_noise=count),
        steps=3,
    )
    norms = []
    for batch in engine:
        before = torch.nn.utils.parameters_to_vector(engine.model.parameters()).detach().clone()
        norms.append(engine.step(batch).max_grad_norm)
        change = torch.nn.utils.parameters_to_vector(engine.model.parameters()).detach() - before
        gradient = (change.double() * 6 / norms[-1]).square().mean().sqrt().item()
        assert joint(gradient, count) == pytest.approx(z, rel=0.03)
        assert gradient > 1.4 * z
    assert len(set(norms)) == 3


def assert_accounted(engine):
    """Epsilon is that of the joint noise of what the mechanism and the count really add."""
    s = engine.settings
    # Bounds on what was released, measured by the tests above.
    phases = [Phase(joint(s.gradient_noise, s.count_noise), s.sample_rate, engine.steps_taken)]
    reference = accounting.epsilon_of(phases, s.delta)
    assert engine.epsilon().upper == pytest.approx(reference.upper, rel=1e-9)
    assert engine.epsilon().upper >= reference.lower


def trained(**kwargs):
    given_kind = AdaptiveQuantile(count_noise=1.0)
    engine = make(records(40), **{"expected_batch_size": 4, "steps": 20, "clipping": given_kind} | kwargs)
    steps_of(engine)
    return engine


def test_epsilon_is_that_of_both_queries():
    engine = trained()
    assert_accounted(engine)
    assert engine.epsilon().upper == pytest.approx(accounting.epsilon(1.0, 0.1, 20, 1e-3).upper, rel=1e-6)


def test_a_count_that_is_not_accounted_for_is_caught(monkeypatch):
    """The planted faults: the ledger composes the gradients alone; the gradients get the noise of the whole step."""
    monkeypatch.setattr(StepRecord, "joint_noise", property(lambda record: record.noise_multiplier))
    with pytest.raises(AssertionError):
        assert_accounted(trained())
    monkeypatch.undo()
    monkeypatch.setattr("dpcheck.engine.settings.gradient_noise", lambda z, count: z)
    engine = trained()
    # The ledger has what was really added, so epsilon is more than was planned.
    assert_accounted(engine)
    assert engine.epsilon().lower > accounting.epsilon(1.0, 0.1, 20, 1e-3).upper


def test_a_target_is_met_with_the_count_in_it(tmp_path):
    kwargs = {"target_epsilon": 3.0, "expected_batch_size": 4, "epochs": 2}
    flat = make(records(40), **kwargs)
    engine = make(records(40), **kwargs, clipping=AdaptiveQuantile(count_noise=1.0), ledger=tmp_path / "ledger.jsonl")
    assert engine.settings.noise_multiplier == flat.settings.noise_multiplier < engine.settings.gradient_noise
    steps_of(engine)
    assert 2.9 < engine.epsilon().upper <= 3.0 * (1 + 1e-9)
    assert_accounted(engine)
    with pytest.raises(DpcheckError, match=r"above target_epsilon=3"):
        make(records(40), **kwargs, ledger=tmp_path / "ledger.jsonl")


def test_epsilon_comes_again_from_the_file_and_from_the_state(tmp_path):
    path = tmp_path / "ledger.jsonl"
    engine = trained(ledger=path)
    absorbed = Ledger()
    absorbed.absorb(json.loads(json.dumps(engine.ledger.state_dict())))
    for other in (Ledger(path), absorbed):
        assert other.entries == engine.ledger.entries
        assert other.epsilon(1e-3) == engine.epsilon()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["max_grad_norm"] for line in lines}) > 10
    assert {line["count_noise"] for line in lines} == {1.0}


def test_empty_draws_release_a_noisy_count_too():
    engine = make(records(200), expected_batch_size=1, steps=40, clipping="adaptive")
    metrics = steps_of(engine)
    empty = np.array([m.drawn == 0 for m in metrics])
    assert empty.sum() > 5
    counts = shares(engine, metrics)[empty] - 0.5
    # Of nothing the count is its noise, whose standard deviation is here 2 for one expected record.
    assert counts.std() > 0.5
    assert engine.epsilon().upper == pytest.approx(accounting.epsilon(1.0, 1 / 200, 40, 1e-3).upper, rel=1e-6)


def test_a_run_resumes_with_the_adapted_norm_and_with_new_noise():
    kwargs = {"steps": 60, "clipping": AdaptiveQuantile(count_noise=50.0)}
    first = make(records(), **kwargs)
    for batch in first:
        first.step(batch)
        if batch.step == 29:
            break
    state = json.loads(json.dumps(first.state_dict()))
    assert state["max_grad_norm"] == first.max_grad_norm != 1.0
    assert set(state) == {"run", "max_grad_norm", "settings", "ledger"}
    counts = []
    for engine in (make(records(), **kwargs), make(records(), **kwargs), first):
        engine.load_state_dict(state)
        assert engine.max_grad_norm == state["max_grad_norm"]
        metrics = steps_of(engine)
        assert metrics[0].max_grad_norm == state["max_grad_norm"]
        counts.append(shares(engine, metrics))
    correlation = np.corrcoef(counts)[np.triu_indices(3, 1)]
    assert abs(correlation).max() < 6 / 30**0.5
    assert len(set(np.concatenate(counts))) > 60
    flat = make(records(), steps=60)
    flat.load_state_dict(state)
    assert flat.max_grad_norm == 1.0


def test_a_seeded_run_resumes_as_if_it_had_not_stopped():
    kwargs = {"expected_batch_size": 10, "seed": 7, "steps": 6, "clipping": "adaptive"}
    whole = released(make(records(30), **kwargs), 6)
    first, second = make(records(30), **kwargs), make(records(30), **kwargs)
    released(first, 2)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(released(second, 4), whole[2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, "1", None, True])
def test_a_state_with_an_impossible_norm_changes_nothing(norm):
    engine = make(records(), clipping="adaptive")
    released(engine, 2)
    other = make(records(), clipping="adaptive")
    with pytest.raises(DpcheckError, match="max_grad_norm="):
        other.load_state_dict({**engine.state_dict(), "max_grad_norm": norm})
    assert (other.ledger.steps(), other.max_grad_norm) == (0, 1.0)


@pytest.mark.parametrize("quantile", [0.25, 0.8])
def test_the_norm_comes_to_the_quantile_and_gradients_are_clipped_to_it(quantile):
    x = torch.linspace(1.0, 9.0, 33).unsqueeze(1) * torch.nn.functional.normalize(torch.randn(33, 5), dim=1)
    kind = AdaptiveQuantile(quantile, learning_rate=0.3, count_noise=1e-9)
    engine = make(x, noise_multiplier=0, max_grad_norm=0.01, steps=100, clipping=kind, _clipper=Clipper)
    metrics = steps_of(engine)
    assert metrics[-1].max_grad_norm == pytest.approx(1 + 8 * quantile, abs=0.3)
    assert metrics[-1].clipped_fraction == pytest.approx(1 - quantile, abs=0.05)
    norm = engine.max_grad_norm
    again = make(x, noise_multiplier=0, max_grad_norm=norm, steps=1, _clipper=Clipper)
    resumed = make(x, noise_multiplier=0, max_grad_norm=0.01, steps=101, clipping=kind, _clipper=Clipper)
    resumed.load_state_dict(engine.state_dict())
    torch.testing.assert_close(released(resumed), released(again), rtol=1e-5, atol=1e-5)


@given(unclipped=st.integers(0, 100), clipped=st.integers(0, 100), one=st.booleans())
def test_one_record_changes_the_count_by_a_half(unclipped, clipped, one):

    before = Count(unclipped, unclipped + clipped)
    after = Count(unclipped + one, unclipped + clipped + 1)
    values = [c.released(16, 3.0, KeyedStream(bytes(32))) * 16 for c in (before, after)]
    assert values[1] - values[0] == (0.5 if one else -0.5)


class Failing(Loop):
    def __call__(self, batch, weights=None):
        raise RuntimeError("out of memory")


def test_a_step_that_fails_counts_and_adapts_nothing():
    engine = make(records(), _clipper=Failing, clipping="adaptive")
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step(next(iter(engine)))
    assert (engine.steps_taken, engine.max_grad_norm) == (1, 1.0)
    assert engine.ledger.entries[0][0].count_noise == engine.settings.count_noise


def test_the_norm_stays_within_its_limits():
    kind = AdaptiveQuantile(0.5, learning_rate=1e4, count_noise=50.0)
    norms = [m.max_grad_norm for m in steps_of(make(records(), steps=30, clipping=kind))]
    assert min(norms) == 1e-6
    assert max(norms) == 1e6


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quantile": 0.0}, "quantile=0.0"),
        ({"quantile": 1.0}, "quantile=1.0 is not a positive number below 1"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"count_noise": -1.0}, "count_noise=-1.0"),
        ({"count_noise": 0.0}, "count_noise=0.0"),
        ({"count_noise": 0.5}, "count_noise=0.5 is not more than half the noise multiplier 1"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, says):
    with pytest.raises(DpcheckError, match=says) as raised:
        make(records(), clipping=AdaptiveQuantile(**settings))
    assert raised.value.where == "clipping"


def test_the_report_names_both_noises_and_other_runs():
    engine = make(records(), steps=3, clipping=AdaptiveQuantile(count_noise=4.0), max_grad_norm=2.0)
    steps_of(engine)
    report = engine.report()
    assert f"clipped to an L2 norm that follows their 0.5 quantile, first 2 and next {engine.max_grad_norm:g}" in report
    assert "Gaussian noise of standard deviation 1.00791 x that norm" in report
    assert "with noise of standard deviation 4; together they have noise multiplier 1" in report
    assert "Steps with other settings" not in report
    flat = make(records())
    flat.ledger.absorb(engine.ledger.state_dict())
    assert f"Steps with other settings: 3 with noise 1.00791 x an adapted norm and rate 13/13 (run {engine.run})." in (
        flat.report()
    )
