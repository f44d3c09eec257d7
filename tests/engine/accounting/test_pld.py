"""The certified accountant against exact values, against certified intervals of others, and with bugs planted in it."""

from __future__ import annotations

import math

import mpmath
import pytest
from dpcheck.engine.accounting import Phase, delta_of, epsilon, epsilon_of, rdp_epsilon
from dpcheck.engine.accounting.estimate import Composition, Step
from dpcheck.engine.accounting.inversion import compose
from dpcheck.engine.accounting.pairs import Direction, Loss, Mixture, Pair
from dpcheck.engine.accounting.pld import Attempt, curve, delta_between, epsilon_between
from dpcheck.engine.accounting.quadrature import Grid, panels_of, transform_of
from exact import Exact, delta_of_steps
from hypothesis import given, settings
from hypothesis import strategies as st

# Certified by another implementation: (q, sigma, steps, delta) and the interval of epsilon.
CERTIFIED = {
    (256 / 60000, 1.1, 14062, 1e-5): (2.38145, 2.38170),
    (0.01, 1.0, 10_000, 1e-5): (6.1865, 6.1880),
    (0.01, 1.0, 1_000, 1e-12): (3.91417, 3.91436),
    (1e-5, 1.0, 1_000_000, 1e-8): (0.05899, 0.05911),
    (1.0, 0.3, 1, 1e-5): (19.1308, 19.1308),
    (0.1, 0.5, 1_000, 1e-6): (134.92, 135.07),
    (1e-3, 4.0, 1_000_000, 1e-12): (1.6980, 1.6987),
    (0.01, 0.6, 100, 1e-5): (3.8141, 3.8156),
}


@pytest.mark.parametrize("setting", CERTIFIED)
def test_agrees_with_certified_intervals(setting: tuple[float, float, int, float]) -> None:
    rate, sigma, steps, delta = setting
    low, high = CERTIFIED[setting]
    bounds = epsilon(sigma, rate, steps, delta)
    assert bounds.lower <= high * (1 + 1e-5)
    assert low * (1 - 1e-5) <= bounds.upper <= high * 1.0005
    assert bounds.upper - bounds.lower <= 0.01 * bounds.upper


def test_a_million_steps_that_rarely_draw_a_record_and_a_small_delta() -> None:
    """M of one step is 1 and a ten-thousandth: computed as such, rounding would widen the interval to 0.09."""
    bounds = epsilon(0.8, 1e-5, 10**6, 1e-12)
    assert bounds.upper - bounds.lower < 0.005
    assert bounds.lower > 0.105
    assert bounds.upper < 0.190


def _composition(sigma: float, rate: float, direction: Direction, steps: int, records: int = 1) -> Composition:
    return Composition((Step(Loss((Pair(Mixture.binomial(sigma, rate, records), direction),)), steps),), 0.0)


ONE_STEP: list[tuple[float, float, int, Direction, float]] = [
    (1.0, 0.01, 1, "remove", 0.2),
    (1.0, 0.01, 1, "add", 0.005),
    (0.5, 0.1, 1, "replace", 2.0),
    (1.0, 0.1, 4, "remove", 2.0),
    (1.0, 0.1, 4, "add", 0.3),
    (2.0, 0.3, 3, "replace", 2.0),
    (0.3, 1e-4, 1, "remove", 8.0),
    (5.0, 0.5, 1, "remove", 0.2),
    (0.3, 0.9, 1, "remove", 20.0),
    (50.0, 0.9999, 1, "add", 0.03),
]


@pytest.mark.parametrize(("sigma", "rate", "records", "direction", "at"), ONE_STEP)
def test_one_step_against_high_precision(
    sigma: float, rate: float, records: int, direction: Direction, at: float
) -> None:
    with mpmath.workdps(40):
        exact = float(Exact(sigma, rate, direction, records).delta(mpmath.mpf(at)))
    composition = _composition(sigma, rate, direction, 1, records)
    lower, upper = delta_between(composition, at)
    assert 0.9 * exact <= lower <= exact <= upper <= 1.02 * exact
    low, high = epsilon_between(composition, exact)
    assert low <= at <= high <= low + max(0.01 * high, 0.01)


FEW_STEPS: list[tuple[float, float, Direction, int, float]] = [
    (1.0, 0.01, "remove", 2, 0.25),
    (1.0, 0.01, "add", 2, 0.015),
    (0.5, 0.1, "remove", 3, 3.0),
    (0.5, 0.1, "add", 3, 0.3),
    (3.0, 0.3, "remove", 3, 0.4),
    (3.0, 0.3, "add", 3, 0.4),
]


@pytest.mark.parametrize(("sigma", "rate", "direction", "steps", "at"), FEW_STEPS)
def test_two_and_three_steps_against_nested_integrals(
    sigma: float, rate: float, direction: Direction, steps: int, at: float
) -> None:
    exact = delta_of_steps(sigma, rate, direction, steps, at)
    lower, upper = delta_between(_composition(sigma, rate, direction, steps), at)
    assert 0.9 * exact <= lower <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-9) <= upper <= 1.01 * exact


@pytest.mark.parametrize(
    ("z", "direction", "sigma", "rate", "records"),
    [
        (3.0, "remove", 1.0, 0.01, 1),
        (3 + 60j, "remove", 0.4, 0.3, 1),
        (3 + 60j, "add", 1.0, 0.01, 1),
        (3 + 20j, "add", 3.0, 0.2, 3),
        (3 + 60j, "replace", 3.0, 0.2, 3),
        (0.5 + 20j, "replace", 0.4, 0.3, 1),
        (56 + 0j, "remove", 0.8, 1e-5, 1),
        (56 + 60j, "add", 0.8, 1e-5, 1),
        (10 + 30j, "replace", 0.8, 1e-5, 2),
    ],
)
def test_transforms_are_within_their_error(
    z: complex, direction: Direction, sigma: float, rate: float, records: int
) -> None:
    """Against the integral in high precision; the allowed error is dominated by rounding, so it is a tight claim."""
    pair = Pair(Mixture.binomial(sigma, rate, records), direction)
    left, right = pair.window(1e-9)
    panels = panels_of(pair, (left, right), z.real, 60.0, math.log(1e-19))
    line = compose([(transform_of(Grid((panels,)), z.real, 60.0, 0.0), 1)], 0.0, z.real, 60.0, 50.0)
    at = round(z.imag / line.spacing)
    z = complex(z.real, at * line.spacing)
    with mpmath.workdps(30):
        step = Exact(sigma, rate, direction, records)
        pieces = mpmath.linspace(mpmath.mpf(left), mpmath.mpf(right), 13)

        def moved(x: mpmath.mpf) -> mpmath.mpc:
            return step.density(x) * mpmath.expm1(mpmath.mpc(z) * step.loss(x))

        # Outcomes outside of the window have no loss where the transform is near 1, and no mass where it is not.
        inside = 1 if line.log_scale <= 1 else mpmath.quad(step.density, pieces, maxdegree=6)
        exact = inside + mpmath.quad(moved, pieces, maxdegree=6)
        off = float(abs(exact / mpmath.exp(line.log_scale) - mpmath.mpc(line.values[at])))
    # Rarely drawn records move the transform little: the error is relative to that, and not to 1.
    assert off <= line.errors[at] <= (1e-9 if rate > 1e-4 else 1e-14)


@given(
    sigma=st.floats(0.4, 20.0),
    rate=st.floats(1e-4, 0.999),
    steps=st.integers(5, 20_000),
    delta=st.floats(1e-11, 1e-3),
    bump=st.sampled_from(["sigma", "rate", "steps", "delta"]),
)
@settings(max_examples=15)
def test_intervals_are_narrow_and_order_with_noise_rate_steps_and_delta(
    sigma: float, rate: float, steps: int, delta: float, bump: str
) -> None:
    here = epsilon(sigma, rate, steps, delta)
    assert here.upper - here.lower <= max(0.01 * here.upper, 0.01)
    assert here.lower <= rdp_epsilon(sigma, rate, steps, delta)
    dearer = {
        "sigma": (sigma / 1.3, rate, steps, delta),
        "rate": (sigma, min(1.0, 1.3 * rate), steps, delta),
        "steps": (sigma, rate, 2 * steps, delta),
        "delta": (sigma, rate, steps, delta / 10),
    }[bump]
    more = epsilon(*dearer)
    assert more.upper >= here.lower
    assert more.upper >= here.upper - 0.002 * here.upper - 1e-3


@given(sigma=st.floats(0.3, 50.0), steps=st.integers(1, 100), delta=st.floats(1e-12, 1e-2))
@settings(max_examples=25)
def test_a_rate_of_almost_one_is_nearly_the_analytic_gaussian(sigma: float, steps: int, delta: float) -> None:
    """The rate is 1 - 1e-9, so that the two methods, which share nothing, must give almost the same."""
    exact = epsilon(sigma, 1.0, steps, delta)
    bounds = epsilon(sigma, 1 - 1e-9, steps, delta)
    assert exact.method == "analytic Gaussian"
    assert exact.upper - exact.lower <= 1e-9 * (1 + exact.upper)
    assert bounds.lower <= exact.upper * (1 + 1e-6) + 1e-6
    assert exact.lower <= bounds.upper * (1 + 1e-6) + 1e-6
    assert bounds.upper <= exact.upper * 1.005 + 2e-3


def test_phases_compose_in_any_order_and_however_they_are_cut() -> None:
    whole = epsilon(1.2, 0.02, 300, 1e-6)
    parts = epsilon_of([Phase(1.2, 0.02, 100), Phase(1.2, 0.02, 200)], 1e-6)
    assert parts == whole
    mixed = epsilon_of([Phase(1.2, 0.02, 300), Phase(3.0, 0.05, 10), Phase(4.0, 1.0, 2)], 1e-6)
    turned = epsilon_of([Phase(4.0, 1.0, 2), Phase(3.0, 0.05, 10), Phase(1.2, 0.02, 300)], 1e-6)
    assert turned.upper == pytest.approx(mixed.upper, rel=1e-6)
    assert whole.upper < mixed.upper
    assert mixed.upper - mixed.lower < 0.01 * mixed.upper


def test_a_composition_with_full_batches_against_nested_integrals() -> None:
    """One sampled step and one without sampling: an integral of Balle and Wang's formula over the first outcome."""
    from scipy.integrate import quad
    from scipy.special import ndtr

    sigma, rate, full, at = 0.8, 0.1, 2.0, 1.0

    def one(e: float) -> float:
        m = 1 / full
        return float(ndtr(m / 2 - e / m) - math.exp(e) * ndtr(-m / 2 - e / m))

    def integrand(x: float) -> float:
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * sigma**2))
        return ratio * math.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) * one(at - math.log(ratio))

    exact = quad(integrand, -9 * sigma, 1 + 9 * sigma, limit=400, epsabs=0, epsrel=1e-10)[0]
    bounds = delta_of([Phase(sigma, rate, 1), Phase(full, 1.0, 1)], at)
    assert bounds.lower <= exact <= bounds.upper <= 1.01 * exact


def test_delta_and_epsilon_answer_each_other() -> None:
    phases = [Phase(1.0, 0.05, 200)]
    for at in (0.0, 0.5, 2.0, 6.0):
        delta = delta_of(phases, at)
        assert 0 < delta.lower <= delta.upper <= 1
        back = epsilon_of(phases, delta.upper)
        assert back.lower <= at <= back.upper + 0.01 * at + 1e-3


def test_an_epsilon_at_and_above_the_largest_loss() -> None:
    """Adding a record cannot lose more than -log(1 - q) a step, so that the curve ends there."""
    composition = _composition(2.0, 0.0045, "add", 1)
    last = -math.log1p(-0.0045)
    for at in (0.99 * last, last, 1.3 * last):
        lower, upper = delta_between(composition, at)
        assert 0 <= lower <= delta_of_steps(2.0, 0.0045, "add", 1, at) <= upper < 1e-9


def test_very_small_deltas_keep_their_relative_accuracy() -> None:
    """Where others fall below the truth, because the error of a discrete Fourier transform is absolute."""
    last = 0.0
    for delta in (1e-9, 1e-13, 1e-18, 1e-30):
        bounds = epsilon(1.0, 0.01, 1000, delta)
        assert last < bounds.lower <= bounds.upper <= 1.01 * bounds.lower
        last = bounds.upper


def test_a_claim_that_cannot_be_proved_is_not_made() -> None:
    """So many steps that rounding is larger than delta: the bounds widen, and RDP is what remains."""
    bounds = epsilon(1000.0, 1e-3, 10**15, 1e-5)
    assert bounds.method == "RDP"
    assert math.isfinite(bounds.upper)
    assert bounds.lower <= bounds.upper


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [
        (0.05, 0.01, 10, 1e-5),
        (1e-3, 0.5, 10, 1e-5),
        (1e5, 0.5, 10, 1e-12),
        (1.0, 1e-9, 10**6, 1e-12),
        (0.3, 0.99, 10**6, 0.9),
    ],
)
def test_extreme_settings_are_answered(sigma: float, rate: float, steps: int, delta: float) -> None:
    """Where the loss is almost one number, or thousands, or nothing."""
    bounds = epsilon(sigma, rate, steps, delta)
    assert 0 <= bounds.lower <= bounds.upper < math.inf
    back = delta_of([Phase(sigma, rate, steps)], 2 * bounds.upper + 1)
    assert back.upper <= delta or (bounds.method == "RDP" and back.upper == 1)


def test_curves_keep_their_bounds_far_from_where_they_were_made() -> None:
    composition = _composition(1.0, 0.02, "remove", 200)
    near = curve(composition, 1e-6, Attempt(0.04, 3e4, 0.0))
    assert near is not None
    for at in (0.3, 1.0, 2.0, 3.0):
        low, high = delta_between(composition, at)
        assert near.delta_lower(at) <= high
        assert near.delta_upper(at) >= low
