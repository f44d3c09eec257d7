"""Two Gaussian queries of one sample, against the two-dimensional definition."""

import math

import numpy as np
import pytest
from dpcheck.engine.accounting import Phase, delta_of, joint_noise, other_noise
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

from dpcheck.errors import DpcheckError

NOISE = st.floats(1e-3, 1e4)


@given(values=st.lists(NOISE, min_size=1, max_size=5))
def test_joint_noise_is_the_root_rounded_down(values):
    with mp.workdps(40):
        exact = 1 / mp.sqrt(mp.fsum(1 / mpf(z) ** 2 for z in values))
        assert exact * (1 - mpf(2) ** -48) <= joint_noise(*values) <= exact


@given(joint=NOISE, times=st.floats(1.001, 1e6))
def test_other_noise_completes_it_on_the_safe_side(joint, times):
    with mp.workdps(40):
        one = joint * times
        exact = 1 / mp.sqrt(1 / mpf(joint) ** 2 - 1 / mpf(one) ** 2)
        assert exact <= other_noise(joint, one) <= exact * (1 + mpf(10) ** -11)


def two_dimensional(gradient, count, rate, epsilon):
    """delta of one step by a sum over a grid: the record moves both answers, each in units of its noise."""
    grid = np.linspace(-9, 9 + 1 / gradient, 1500)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    plain = stats.norm.pdf(x) * stats.norm.pdf(y)
    shifted = stats.norm.pdf(x - 1 / gradient) * stats.norm.pdf(y - 1 / count)
    mixed, cell = (1 - rate) * plain + rate * shifted, (grid[1] - grid[0]) ** 2
    one, other = (np.clip(p - math.exp(epsilon) * q, 0, None).sum() * cell for p, q in ((mixed, plain), (plain, mixed)))
    return max(one, other)


@pytest.mark.parametrize(
    ("gradient", "count", "rate", "epsilon"), [(1.2, 2.0, 1.0, 1.0), (0.8, 1.0, 0.3, 1.0), (2.0, 0.9, 0.1, 0.1)]
)
def test_a_step_with_two_queries_is_one_step_with_the_joint_noise(gradient, count, rate, epsilon):
    reference = two_dimensional(gradient, count, rate, epsilon)
    bounds = delta_of([Phase(joint_noise(gradient, count), rate, 1)], epsilon)
    assert bounds.upper == pytest.approx(reference, rel=1e-2)
    # Neither query alone accounts for both.
    for alone in (gradient, count):
        assert delta_of([Phase(alone, rate, 1)], epsilon).upper < 0.9 * reference


def test_no_noise_on_one_query_is_no_noise():
    assert joint_noise(0.0, 3.0) == 0.0
    assert other_noise(0.0, 3.0) == 0.0


@pytest.mark.parametrize("values", [(), (-1.0,), (1.0, math.nan), (1.0, "2")])
def test_what_is_no_noise_is_refused(values):
    with pytest.raises(DpcheckError, match="noise"):
        joint_noise(*values)


@pytest.mark.parametrize(("joint", "one"), [(1.0, 1.0), (1.0, 0.5), (-1.0, 2.0)])
def test_a_query_that_spends_all_leaves_nothing(joint, one):
    with pytest.raises(DpcheckError, match="leaves no room"):
        other_noise(joint, one)
