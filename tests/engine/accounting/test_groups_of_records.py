"""Other units of privacy, other samples, and what an attacker can do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpcheck.engine.accounting import Phase, delta_of, epsilon, epsilon_of, trade_off
from exact import delta_of_fixed_size
from scipy.stats import norm

from dpcheck.errors import DpcheckError


def test_users_with_several_records_are_not_a_higher_rate() -> None:
    """Four draws of a user move the sum by up to 4: at least 26.5, not the 20.4 of one record at four times q."""
    user = epsilon_of([Phase(1.0, 0.1, 50)], 1e-5, records=4)
    assert user.lower > 26.5
    assert user.upper <= 1.01 * user.lower
    assert epsilon(1.0, 0.4, 50, 1e-5).upper < 20.5
    assert epsilon_of([Phase(4.0, 1.0, 5)], 1e-5, records=4).upper == pytest.approx(epsilon(1.0, 1.0, 5, 1e-5).upper)


def test_replacing_costs_more_than_removing_and_less_than_removing_and_adding() -> None:
    phases = [Phase(1.1, 0.02, 500)]
    removed = epsilon_of(phases, 1e-6)
    replaced = epsilon_of(phases, 1e-6, adjacency="replace-one")
    assert removed.upper < replaced.lower
    assert replaced.upper <= 1.01 * replaced.lower
    # Two steps of group privacy: delta grows by 1 + exp(epsilon), and epsilon doubles.
    tighter = epsilon_of(phases, 1e-6 / (1 + math.exp(removed.upper)))
    assert replaced.lower < 2 * tighter.upper
    full = epsilon_of([Phase(2.0, 1.0, 1)], 1e-5, adjacency="replace-one")
    assert full.upper == pytest.approx(epsilon(1.0, 1.0, 1, 1e-5).upper)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "at"), [(1.0, 0.01, 1, 0.5), (1.0, 0.1, 2, 1.5), (4.0, 0.3, 2, 0.3), (0.7, 0.5, 2, 6.0)]
)
def test_samples_of_fixed_size_against_their_curve(sigma: float, rate: float, steps: int, at: float) -> None:
    exact = delta_of_fixed_size(sigma, rate, steps, at)
    bounds = delta_of([Phase(sigma, rate, steps, "fixed-size")], at, adjacency="replace-one")
    assert 0.9 * exact <= bounds.lower <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-9) <= bounds.upper <= 1.02 * exact


def test_samples_of_fixed_size_cost_more_than_poisson_and_need_their_adjacency() -> None:
    fixed, poisson = Phase(1.1, 0.01, 1000, "fixed-size"), Phase(1.1, 0.01, 1000)
    bounds = epsilon_of([fixed], 1e-6, adjacency="replace-one")
    assert bounds.upper > epsilon_of([poisson], 1e-6, adjacency="replace-one").upper
    assert bounds.upper - bounds.lower < 0.01 * bounds.upper
    both = epsilon_of([fixed, poisson], 1e-6, adjacency="replace-one")
    assert both.upper > bounds.upper
    with pytest.raises(DpcheckError, match="fixed size have no bound for adjacency='add-remove'"):
        epsilon_of([fixed], 1e-6)


def test_the_trade_off_is_just_below_that_of_the_gaussian() -> None:
    """Without sampling it is known: Phi(Phi^-1(1 - x) - m), with m the difference of the means."""
    rates = [0.0, 1e-4, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0]
    exact = norm.cdf(norm.ppf(1 - np.array(rates)) - 1 / 0.8)
    bound = np.array(trade_off([Phase(0.8, 1.0, 1)], rates))
    assert (bound <= exact + 1e-12).all()
    assert (bound >= exact - 0.02).all()


def test_the_trade_off_of_a_sampled_run_is_one_of_chance_and_symmetric() -> None:
    rates = [0.001, 0.05, 0.2, 0.6]
    missed = trade_off([Phase(1.0, 0.02, 200)], rates)
    assert all(0 < m <= 1 - x for m, x in zip(missed, rates, strict=True))
    assert sorted(missed, reverse=True) == missed
    back = trade_off([Phase(1.0, 0.02, 200)], missed)
    assert all(b <= x + 1e-9 for b, x in zip(back, rates, strict=True))
    with pytest.raises(DpcheckError, match=r"false_positive_rate=1\.5"):
        trade_off([Phase(1.0, 0.02, 200)], [1.5])
