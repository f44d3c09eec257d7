"""The RDP accountant against quadrature, closed forms and certified values, and its behaviour on bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dpcheck.engine.accounting import Phase, delta_of, epsilon, epsilon_of, rdp_epsilon
from dpcheck.engine.accounting.rdp import _by_quadrature, _by_sum, rdp_upper
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from dpcheck.errors import DpcheckError

# Certified lower bounds of the true epsilon of (q, sigma, steps, delta), and the RDP value of other accountants.
CERTIFIED = {
    (256 / 60000, 1.1, 14062, 1e-5): (2.38145, 2.597),
    (0.01, 1.0, 10_000, 1e-5): (6.1865, 6.713),
    (0.01, 1.0, 1_000, 1e-12): (3.91417, 4.354),
    (1.0, 0.3, 1, 1e-5): (19.1308, 20.39),
    (0.1, 0.5, 1_000, 1e-6): (134.92, 143.7),
    (1e-3, 4.0, 1_000_000, 1e-12): (1.6980, 1.768),
    (0.01, 0.6, 100, 1e-5): (3.8141, 4.83),
}


@pytest.mark.parametrize("setting", CERTIFIED)
def test_never_below_the_truth_and_no_looser_than_other_rdp_accountants(
    setting: tuple[float, float, int, float],
) -> None:
    rate, sigma, steps, delta = setting
    truth, peer = CERTIFIED[setting]
    upper = rdp_epsilon(sigma, rate, steps, delta)
    assert truth <= upper <= 1.005 * peer


def _integral(rate: float, sigma: float, order: float) -> float:
    """``log E_Q[(P/Q)^order]`` by numerical integration."""

    def integrand(x: float) -> float:
        q = norm.logpdf(x, 0, sigma)
        p = np.logaddexp(math.log1p(-rate) + q, math.log(rate) + norm.logpdf(x, 1, sigma))
        return float(np.exp(order * p - (order - 1) * q))

    wide = 12 * sigma + order + 2
    value, _ = quad(integrand, -wide, wide, limit=500, points=[0.0, 1.0, order / 2, order])
    return math.log(value)


@given(
    rate=st.floats(1e-3, 0.9),
    sigma=st.floats(0.8, 8.0),
    order=st.one_of(st.integers(2, 24).map(float), st.floats(1.1, 20.0)),
)
@settings(max_examples=60)
def test_cumulants_are_those_of_the_integral(rate: float, sigma: float, order: float) -> None:
    exact = _integral(rate, sigma, order)
    ours = _by_sum(sigma, rate, int(order)) if order == int(order) else _by_quadrature(sigma, rate, order)
    assert ours == pytest.approx(exact, rel=1e-6, abs=1e-8)


@given(rate=st.floats(1e-6, 1.0, exclude_max=True), sigma=st.floats(0.2, 50.0), order=st.integers(2, 41))
@settings(max_examples=200)
def test_quadrature_and_sum_agree_at_integer_orders(rate: float, sigma: float, order: int) -> None:
    """Two derivations of the same number, over the whole range of rates and noise."""
    assert _by_quadrature(sigma, rate, order) == pytest.approx(_by_sum(sigma, rate, order), rel=1e-9, abs=1e-11)


def _gaussian_delta(sigma: float, eps: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    a, b = 1 / (2 * sigma), eps * sigma
    return float(norm.cdf(a - b) - math.exp(eps) * norm.cdf(-a - b))


@given(sigma=st.floats(0.3, 30.0), steps=st.integers(1, 50), delta=st.sampled_from([1e-3, 1e-5, 1e-8, 1e-12]))
@settings(max_examples=60)
def test_full_batches_against_the_analytic_gaussian(sigma: float, steps: int, delta: float) -> None:
    """Without sampling a composition is one Gaussian with sigma / sqrt(steps)."""
    upper = rdp_epsilon(sigma, 1.0, steps, delta)
    assert _gaussian_delta(sigma / math.sqrt(steps), upper) <= delta


@given(sigma=st.floats(0.5, 10.0), rate=st.floats(1e-4, 1.0), steps=st.integers(1, 5_000), delta=st.floats(1e-10, 1e-3))
@settings(max_examples=20)
def test_more_noise_costs_less_and_more_steps_or_data_cost_more(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    here = rdp_epsilon(sigma, rate, steps, delta)
    assert rdp_epsilon(1.5 * sigma, rate, steps, delta) <= here
    assert rdp_epsilon(sigma, rate, 2 * steps, delta) >= here
    assert rdp_epsilon(sigma, rate, steps, delta / 10) >= here
    assert rdp_epsilon(sigma, rate / 2, steps, delta) <= here * (1 + 1e-9)


def test_phases_compose() -> None:
    whole = rdp_epsilon(1.2, 0.02, 300, 1e-6)
    assert rdp_upper([Phase(1.2, 0.02, 100), Phase(1.2, 0.02, 200)], 1e-6) == pytest.approx(whole, rel=1e-12)
    more = rdp_upper([Phase(1.2, 0.02, 300), Phase(3.0, 0.05, 10)], 1e-6)
    assert whole < more < whole + rdp_epsilon(3.0, 0.05, 10, 1e-6) + 1


def test_nothing_taken_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon_of([], 1e-5).upper == 0
    assert epsilon(1.0, 0.1, 0, 1e-5).upper == 0
    assert epsilon(0.0, 0.1, 1, 1e-5).lower == math.inf
    assert epsilon(0.0, 1e-7, 1, 1e-5).lower == 0
    assert epsilon(0.0, 1e-7, 1, 1e-5).upper == math.inf
    assert delta_of([Phase(0.0, 0.1, 2)], 3.0).lower == pytest.approx(0.19)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((-1.0, 0.1, 1, 1e-5), "noise_multiplier=-1.0 is negative"),
        ((float("nan"), 0.1, 1, 1e-5), "noise_multiplier=nan"),
        ((1.0, 0.0, 1, 1e-5), "sample_rate=0.0"),
        ((1.0, 1.5, 1, 1e-5), "sample_rate=1.5"),
        ((1.0, 0.1, 1.5, 1e-5), "steps=1.5"),
        ((1.0, 0.1, True, 1e-5), "steps=True"),
        ((1.0, 0.1, 1, 0.0), "delta=0.0"),
        ((1.0, 0.1, 1, 1.0), "delta=1.0"),
        (("1", 0.1, 1, 1e-5), "noise_multiplier='1'"),
    ],
)
def test_bad_values_are_named(values: tuple[float, float, int, float], says: str) -> None:
    with pytest.raises(DpcheckError) as caught:
        epsilon(*values)
    assert says in caught.value.what
