"""Noise, steps and rate for a budget: on the safe side, and not wasted."""

from __future__ import annotations

import pytest
from dpcheck.engine.accounting import Phase, epsilon, epsilon_of, noise_multiplier, sample_rate_within, steps_within
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcheck.errors import DpcheckError


@given(target=st.floats(0.2, 20.0), rate=st.floats(1e-3, 1.0), steps=st.integers(1, 2_000), delta=st.floats(1e-9, 1e-4))
@settings(max_examples=10)
def test_calibrated_noise_reaches_its_target_and_is_not_wasted(
    target: float, rate: float, steps: int, delta: float
) -> None:
    sigma = noise_multiplier(target, rate, steps, delta)
    assert epsilon(sigma, rate, steps, delta).upper <= target
    assert epsilon(sigma * 0.995, rate, steps, delta).upper > target


def test_noise_for_users_and_for_replacing_reaches_its_target() -> None:
    phase = 0.05, 100
    plain = noise_multiplier(2.0, *phase, 1e-6)
    users = noise_multiplier(2.0, *phase, 1e-6, records=3)
    replaced = noise_multiplier(2.0, *phase, 1e-6, adjacency="replace-one")
    assert plain < replaced
    assert plain < users
    assert epsilon_of([Phase(users, *phase)], 1e-6, records=3).upper <= 2.0
    assert epsilon_of([Phase(replaced, *phase)], 1e-6, adjacency="replace-one").upper <= 2.0


@pytest.mark.parametrize(("target", "sigma", "rate"), [(3.0, 1.0, 0.01), (0.5, 4.0, 0.1), (30.0, 0.5, 1.0)])
def test_one_step_more_would_exceed_the_budget(target: float, sigma: float, rate: float) -> None:
    steps = steps_within(target, sigma, rate, 1e-5)
    assert epsilon(sigma, rate, steps, 1e-5).upper <= target < epsilon(sigma, rate, steps + 1, 1e-5).upper


@pytest.mark.parametrize(("target", "sigma", "steps"), [(3.0, 1.0, 1000), (0.5, 2.0, 100), (5.0, 0.7, 10)])
def test_the_rate_is_the_largest_within_the_budget(target: float, sigma: float, steps: int) -> None:
    rate = sample_rate_within(target, sigma, steps, 1e-5)
    assert epsilon(sigma, rate, steps, 1e-5).upper <= target < epsilon(sigma, rate * 1.005, steps, 1e-5).upper


def test_a_budget_that_full_batches_keep_allows_them() -> None:
    assert sample_rate_within(5.0, 10.0, 10, 1e-5) == 1.0


def test_no_steps_need_no_noise() -> None:
    assert noise_multiplier(1.0, 0.1, 0, 1e-5) == 0.0


def test_a_target_out_of_reach_is_said() -> None:
    with pytest.raises(DpcheckError, match="cannot be reached"):
        noise_multiplier(1e-9, 0.5, 1000, 1e-12)
    with pytest.raises(DpcheckError, match="cannot be reached"):
        steps_within(1.0, 0.3, 1.0, 1e-5)
    with pytest.raises(DpcheckError, match="cannot be reached"):
        steps_within(1.0, 0.0, 0.1, 1e-5)
    with pytest.raises(DpcheckError, match="cannot be reached"):
        sample_rate_within(1.0, 0.0, 10, 1e-5)
    with pytest.raises(DpcheckError, match="is not positive"):
        noise_multiplier(-1.0, 0.5, 1000, 1e-12)
