"""Lower bounds of epsilon hold for mechanisms whose epsilon is known, and are not far below it."""

import math

import numpy as np
import pytest
from dpcheck.engine import accounting
from dpcheck.engine.auditing import second_account
from dpcheck.engine.auditing.lower_bound import (
    Guesses,
    epsilon_lower,
    gaussian,
    gaussian_epsilon,
    gaussian_lower,
    guess,
    p_value,
    refuted,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats


def by_the_formula(g, epsilon, delta):
    """Theorem 5.2, term by term."""
    rate = 1 / (1 + math.exp(-epsilon))
    harms = [
        sum(stats.binom.pmf(g.right - j, g.made, rate) for j in range(1, i + 1)) / i for i in range(1, g.right + 1)
    ]
    tail = stats.binom.sf(g.right - 1, g.made, rate)
    return min(1.0, tail + 2 * g.canaries * delta * max(harms, default=0.0))


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 40), st.floats(0, 6), st.sampled_from([0.0, 1e-6, 1e-3]))
def test_the_p_value_is_that_of_the_theorem(made, right, epsilon, delta):
    g = Guesses(50, made, min(made, right))
    assert p_value(g, epsilon, delta) == pytest.approx(by_the_formula(g, epsilon, delta), rel=1e-6, abs=1e-12)


def randomised_response(epsilon, m, rng):
    present = rng.random(m) < 0.5
    told = present ^ (rng.random(m) > 1 / (1 + math.exp(-epsilon)))
    return told + rng.random(m) * 0.1, present


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
def test_randomised_response_is_seldom_exceeded_and_nearly_reached(epsilon):
    rng = np.random.default_rng(4)
    lower = np.array([epsilon_lower(guess(*randomised_response(epsilon, 2000, rng)), 0.0, 0.95) for _ in range(60)])
    assert stats.binom.sf((lower > epsilon).sum() - 1, 60, 0.05) > 1e-4
    assert np.median(lower) > 0.6 * epsilon


def gaussian_run(mu, m, rng):
    present = rng.random(m) < 0.5
    return present * mu + rng.normal(size=m), present


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_gaussian_mechanism_is_seldom_exceeded_and_the_curve_is_tighter(mu):
    rng, delta = np.random.default_rng(5), 1e-5
    truth = gaussian_epsilon(mu, delta)
    assert truth == pytest.approx(accounting.epsilon(1 / mu, 1.0, 1, delta).upper, rel=1e-6)
    runs = [guess(*gaussian_run(mu, 800, rng)) for _ in range(16)]
    any_mechanism = np.array([epsilon_lower(g, delta, 0.95) for g in runs])
    like_gaussian = np.array([gaussian_lower(g, delta, 0.95) for g in runs])
    for lower in (any_mechanism, like_gaussian):
        assert stats.binom.sf((lower > truth).sum() - 1, 16, 0.05) > 1e-4
    assert np.median(any_mechanism) < np.median(like_gaussian)
    assert np.median(like_gaussian) > 0.35 * truth


def test_no_guess_refutes_nothing():
    assert not refuted(Guesses(10, 10, 5), gaussian(0.0), 0.5)
    assert epsilon_lower((Guesses(100, 100, 50),), 1e-5, 0.95) == 0


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(1.0, 1.0, 1, 1e-5), (4.0, 1.0, 100, 1e-6), (1.1, 0.01, 1000, 1e-5), (0.7, 0.1, 50, 1e-3),
     (0.75, 0.034, 352, 1e-5), (3.3, 0.7, 57, 1e-5), (5.0, 0.5, 1, 1e-2)],
)  # fmt: skip
def test_the_second_account_is_the_accountants(noise, rate, steps, delta):
    bounds = accounting.epsilon(noise, rate, steps, delta)
    second = second_account.epsilon(noise, rate, steps, delta)
    assert bounds.lower * 0.99 - 1e-6 <= second <= bounds.upper * 1.01
