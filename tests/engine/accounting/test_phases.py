"""Many phases, samples cut to size, and several queries on one sample."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from dpcheck.engine.accounting import (
    Phase,
    curve,
    cut_probability,
    delta_of,
    epsilon,
    epsilon_of,
    joint_noise,
    merging,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from dpcheck.errors import DpcheckError


@given(n=st.integers(1, 10**6), rate=st.floats(1e-4, 1.0), above=st.floats(0.0, 3.0))
@settings(max_examples=150)
def test_the_chance_of_a_cut_is_bounded_from_above_and_closely(n: int, rate: float, above: float) -> None:
    largest = max(1, math.ceil(n * rate * (1 + above)))
    exact = float(binom.sf(largest, n + 1, rate))
    bound = cut_probability(n, rate, largest)
    assert bound >= exact * (1 - 1e-7)
    if largest > n * rate + 4 * math.sqrt(n * rate) + 4:
        assert bound <= 3 * exact + 1e-299


def test_samples_cut_to_size_cost_what_the_cut_can_show() -> None:
    phase = Phase(1.1, 256 / 60_000, 14_062)
    whole = epsilon_of([phase], 1e-5)
    rare = Phase(1.1, 256 / 60_000, 14_062, cut=cut_probability(60_000, 256 / 60_000, 400))
    bounds = epsilon_of([rare], 1e-5)
    assert bounds.lower <= whole.upper < bounds.upper <= 1.001 * whole.upper
    assert delta_of([rare], bounds.upper).upper <= 1e-5
    often = Phase(1.1, 256 / 60_000, 14_062, cut=cut_probability(60_000, 256 / 60_000, 330))
    assert math.isinf(epsilon_of([often], 1e-5).upper)
    middle = Phase(1.1, 256 / 60_000, 14_062, cut=1e-13)
    assert whole.upper < epsilon_of([middle], 1e-7).upper < 1.02 * epsilon_of([phase], 1e-7).upper


@pytest.mark.parametrize(("rate", "largest", "sigma"), [(0.3, 4, 0.7), (0.5, 3, 1.0)])
def test_a_mechanism_with_cut_samples_is_within_its_bound(rate: float, largest: int, sigma: float) -> None:
    """Six records of 1, and five: the sum of what is drawn, at most ``largest``, is released with noise."""
    x = np.linspace(-12, 16, 28_001)

    def density(n: int) -> np.ndarray:
        drawn = np.minimum(np.arange(n + 1), largest)
        return (binom.pmf(np.arange(n + 1), n, rate)[:, None] * norm.pdf(x, drawn[:, None], sigma)).sum(0)

    six, five = density(6), density(5)
    phase = Phase(sigma, rate, 1, cut=cut_probability(5, rate, largest))
    for at in (0.05, 0.3, 1.0):
        exact = max(np.maximum(p - math.exp(at) * q, 0).sum() * (x[1] - x[0]) for p, q in ((six, five), (five, six)))
        assert exact <= delta_of([phase], at).upper


def test_cuts_belong_to_poisson_samples_and_are_checked() -> None:
    with pytest.raises(DpcheckError, match=r"cut=2\.0 is not in"):
        epsilon_of([Phase(1.0, 0.1, 1, cut=2.0)], 1e-5)
    with pytest.raises(DpcheckError, match="is for Poisson samples"):
        epsilon_of([Phase(1.0, 0.1, 1, "fixed-size", cut=0.1)], 1e-5, adjacency="replace-one")
    with pytest.raises(DpcheckError, match="largest_batch=0"):
        cut_probability(10, 0.1, 0)


def test_merged_phases_enclose_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = [Phase(float(s), 0.02, 5) for s in np.geomspace(0.8, 1.6, 12)]
    phases += [Phase(2.0, float(q), 3) for q in np.geomspace(0.01, 0.03, 6)]
    phases += [Phase(3.0, 1.0, 1), Phase(float(b := 2.0), 0.05, 4, mechanism="laplace"), Phase(b + 0.1, 0.05, 4)]
    exact = epsilon_of(phases, 1e-6)
    monkeypatch.setattr(merging, "_MOST", 8)
    coarse = epsilon_of(phases, 1e-6)
    assert coarse.lower <= exact.lower < exact.upper <= coarse.upper
    assert coarse.upper <= 1.25 * exact.upper
    at = delta_of(phases, 2.0)
    monkeypatch.undo()
    sharp = delta_of(phases, 2.0)
    assert at.lower <= sharp.lower <= sharp.upper <= at.upper


def test_merging_on_its_safe_side_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sides exchanged the bounds contradict themselves, or each other."""
    phases = [Phase(float(s), 0.02, 5) for s in np.geomspace(0.8, 1.6, 12)]
    exact = epsilon_of(phases, 1e-6)
    right = merging.merged
    monkeypatch.setattr(merging, "_MOST", 4)
    monkeypatch.setattr("dpcheck.engine.accounting.accountant.merged", lambda p: right(p)[::-1])
    with pytest.raises(DpcheckError, match="contradicts itself"):
        epsilon_of(phases, 1e-6)
    assert exact.upper > 0


def test_queries_on_one_sample_are_one_query_of_more_sensitivity() -> None:
    assert joint_noise(2.0) == pytest.approx(2.0)
    assert joint_noise(1.0, 1.0) == pytest.approx(0.5**0.5)
    together = epsilon(joint_noise(1.0, 10.0), 0.01, 1000, 1e-6).upper
    apart = epsilon_of([Phase(1.0, 0.01, 1000), Phase(10.0, 0.01, 1000)], 1e-6).upper
    assert epsilon(1.0, 0.01, 1000, 1e-6).upper < together
    assert abs(together - apart) < 0.05 * apart
    whole = epsilon_of([Phase(3.0, 1.0, 1), Phase(4.0, 1.0, 1)], 1e-6).upper
    assert epsilon(joint_noise(3.0, 4.0), 1.0, 1, 1e-6).upper == pytest.approx(whole, rel=1e-9)


def test_a_curve_falls_with_epsilon() -> None:
    deltas = curve([Phase(1.0, 0.02, 300)], [0.0, 0.5, 1.0, 2.0, 4.0])
    assert [b.delta for b in deltas] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert all(a.upper > b.upper for a, b in pairwise(deltas))
