"""The tests of an audit have the level that they claim, and the power to see what they look for."""

import numpy as np
import pytest
from dpcheck.engine.auditing import exact
from scipy import special, stats


def uniform(p, rng):
    """Whether p-values are those of a true null hypothesis: not too often small."""
    p = np.asarray(p)
    for level in (0.5, 0.1, 0.01):
        excess = int((p <= level).sum())
        assert stats.binom.sf(excess - 1, len(p), level) > 1e-6, (level, excess / len(p))


@pytest.mark.parametrize("length", [2, 3, 8, 50, 1000])
def test_cosines_of_independent_vectors(length):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 4000, length))
    r = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    p = exact.correlation(r, length)
    uniform(p, rng)
    reference = 2 * stats.t.sf(abs(r) * np.sqrt((length - 1) / (1 - r**2)), length - 1)
    np.testing.assert_allclose(p, reference, rtol=1e-6, atol=1e-12)


def test_equal_vectors_are_impossible():
    assert exact.correlation(1.0, 100) < 1e-100
    assert exact.correlation(-1.0, 8) < 1e-30


@pytest.mark.parametrize(("trials", "rate"), [(2000, 0.5), (2000, 0.01), (50, 0.02), (400, 0.99), (10, 0.1)])
def test_the_variance_of_binomial_counts(trials, rate):
    rng = np.random.default_rng(2)
    p = [exact.dispersion(rng.binomial(trials, rate, 300), trials, rate) for _ in range(2000)]
    # An approximation: a little too often below 0.1 % is allowed, not more than a small multiple.
    p = np.array(p)
    for level in (0.5, 0.1, 0.01, 0.001):
        assert (p <= level).mean() < 1.6 * level + 4 * np.sqrt(level / len(p))


def test_fixed_sizes_and_repeated_participation_are_seen():
    assert exact.dispersion(np.full(100, 50), 100, 0.5) < 1e-12
    assert exact.dispersion(np.tile([0, 100], 50), 100, 0.5) < 1e-12


def test_binomial_tails_are_scipys():
    for successes, trials, rate in [(0, 10, 0.3), (10, 10, 0.3), (4, 10, 0.3), (520, 1000, 0.5)]:
        lower, upper = stats.binom.cdf(successes, trials, rate), stats.binom.sf(successes - 1, trials, rate)
        assert exact.binomial(successes, trials, rate) == pytest.approx(min(1, 2 * min(lower, upper)))


def test_kolmogorov_bounds_scipys_exact_p_value():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.05, 0.3):
        values = np.sort(rng.normal(size=500) + shift)
        p = exact.kolmogorov(values, special.ndtr(values))
        reference = stats.kstest(values, "norm").pvalue
        assert reference * (1 - 1e-9) <= p
        assert p <= 2.1 * reference + 1e-12


def test_a_value_that_is_not_a_number_fails():
    assert not exact.judged("noise", "x", float("nan"), "").ok
    assert exact.judged("noise", "x", 0.2, "").ok
