"""Noise, steps and rate for a budget: on the safe side, and not wasted."""

from __future__ import annotations

from typing import Any

import pytest
from dpcheck.engine.accounting import (
    Phase,
    batch_size_within,
    cut_probability,
    epsilon,
    epsilon_of,
    noise_multiplier,
    sample_rate_within,
    steps_within,
)
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


OTHERS = [
    {"adjacency": "replace-one"},
    {"adjacency": "replace-one", "sampling": "fixed-size"},
    {"mechanism": "laplace"},
    {"cut": 1e-14},
    {"records": 2},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_noise_and_steps_for_every_mechanism(other: dict[str, Any]) -> None:
    target, rate, steps = 3.0, 0.1, 12

    def upper(sigma: float, steps: int) -> float:
        unit = {name: other[name] for name in ("adjacency", "records") if name in other}
        phase = {name: value for name, value in other.items() if name not in unit}
        return epsilon_of([Phase(sigma, rate, steps, **phase)], 1e-6, **unit).upper

    sigma = noise_multiplier(target, rate, steps, 1e-6, **other)
    assert upper(sigma, steps) <= target < upper(sigma * 0.995, steps)
    most = steps_within(target, sigma, rate, 1e-6, **other)
    assert steps <= most
    assert upper(sigma, most) <= target < upper(sigma, most + 1)


@pytest.mark.parametrize("other", [{}, *OTHERS[:3], {"largest_batch": 90}, {"records": 2}], ids=str)
def test_the_batch_is_the_largest_within_the_budget(other: dict[str, Any]) -> None:
    def upper(size: int) -> float:
        unit = {name: other[name] for name in ("adjacency", "records") if name in other}
        phase = {name: value for name, value in other.items() if name in ("sampling", "mechanism")}
        if "largest_batch" in other:
            phase["cut"] = cut_probability(500, size / 500, other["largest_batch"])
        return epsilon_of([Phase(1.5, size / 500, 40, **phase)], 1e-6, **unit).upper

    size = batch_size_within(5.0, 1.5, 40, 1e-6, 500, **other)
    assert upper(size) <= 5.0 < upper(size + 1)
    if "largest_batch" in other:
        # The cut decides: without it, larger batches would do.
        assert size < min(90, batch_size_within(5.0, 1.5, 40, 1e-6, 500))


def test_the_batch_is_the_whole_data_set_where_that_keeps_the_budget() -> None:
    assert batch_size_within(5.0, 10.0, 10, 1e-5, 77) == 77
    assert batch_size_within(5.0, 10.0, 0, 1e-5, 77) == 77
    assert batch_size_within(5.0, 10.0, 10, 1e-5, 1) == 1


def test_little_laplace_noise_is_enough_for_a_large_epsilon() -> None:
    assert noise_multiplier(500.0, 1.0, 1, 1e-6, mechanism="laplace") == 0.01


def test_what_no_noise_can_hide_is_said() -> None:
    """If a cut is likely, more noise does not help."""
    with pytest.raises(DpcheckError, match=r"cannot be reached with .* cut=0\.001"):
        noise_multiplier(1.0, 0.1, 10, 1e-6, cut=1e-3)
    with pytest.raises(DpcheckError, match="cannot be reached"):
        batch_size_within(1e-4, 0.5, 500, 1e-6, 10)
    with pytest.raises(DpcheckError, match="cannot be reached"):
        batch_size_within(1.0, 0.0, 10, 1e-6, 10)
    with pytest.raises(DpcheckError, match="dataset_size=0"):
        batch_size_within(1.0, 1.0, 10, 1e-6, 0)
    with pytest.raises(DpcheckError, match="Laplace noise have no bound"):
        noise_multiplier(1.0, 0.1, 10, 1e-6, mechanism="laplace", adjacency="replace-one")
