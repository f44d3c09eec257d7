"""The ziggurat: its strips, and what it draws, by strips, in the wedges and in the tail."""

import numpy as np
import pytest
from dpcheck.engine import ziggurat
from dpcheck.engine.ziggurat import STRIPS, Ziggurat, edges
from scipy import stats


def drawn(count, seed=1):
    values = np.empty(count)
    Ziggurat(np.random.SFC64(seed)).fill(values)
    return values


@pytest.mark.parametrize(("strips", "r"), [(128, 3.442619855899), (256, 3.6541528853610088)])
def test_the_tail_begins_where_it_does_in_the_paper(strips, r):
    assert edges(strips)[1] == pytest.approx(r, abs=1e-11)  # Marsaglia and Tsang 2000


def test_the_strips_have_equal_areas_and_end_at_the_top():
    x = edges()
    density = np.exp(-(x**2) / 2)
    areas = x[1:-1] * np.diff(density)[1:]
    tail = x[1] * density[1] + stats.norm.sf(x[1]) * np.sqrt(2 * np.pi)
    np.testing.assert_allclose([*areas, x[0] * density[1]], tail, rtol=1e-11)


def test_what_is_drawn_is_standard_normal_in_4096_equal_cells():
    x = drawn(3_000_000)
    assert stats.chisquare(np.histogram(stats.norm.cdf(x), bins=4096, range=(0, 1))[0]).pvalue > 1e-6
    assert stats.kstest(x[:500_000], "norm").pvalue > 1e-6
    assert abs(x.mean()) < 5 / len(x) ** 0.5
    assert abs((x**2).mean() - 1) < 5 * (2 / len(x)) ** 0.5


def test_the_tail_is_drawn_with_its_distribution():
    x = drawn(6_000_000, seed=2)
    r = edges()[1]
    for side in (x, -x):
        beyond = side[side > r]
        assert stats.binomtest(len(beyond), len(x), stats.norm.sf(r)).pvalue > 1e-6
        assert stats.kstest(stats.norm.sf(beyond) / stats.norm.sf(r), "uniform").pvalue > 1e-6


def test_the_wedges_alone_follow_the_density():
    """Only what is not decided by the first comparison: each place in a wedge is kept in proportion to the density."""
    source, x = Ziggurat(np.random.SFC64(3)), edges()
    strip = 100
    values = np.random.default_rng(0).uniform(x[strip + 1], x[strip], 400_000)
    kept = source._decide(values.copy(), np.full(len(values), strip)) == values
    share = (np.exp(-(values**2) / 2) - np.exp(-(x[strip] ** 2) / 2)) / np.diff(
        np.exp(-(x[strip : strip + 2] ** 2) / 2)
    )
    for low, high in ((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)):
        cell = (share >= low) & (share < high)
        expected = share[cell].sum()
        assert abs(kept[cell].sum() - expected) < 5 * (share[cell] * (1 - share[cell])).sum() ** 0.5


@pytest.mark.parametrize("count", [0, 1, ziggurat.PIECE, ziggurat.PIECE + 1])
def test_every_place_is_filled_once(count):
    values = np.full(count + 1, 7.0)
    Ziggurat(np.random.SFC64(4)).fill(values[:count])
    assert values[count] == 7.0
    assert len(np.unique(values[:count])) == count
    assert len(edges()) - 1 == STRIPS
