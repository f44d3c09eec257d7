import copy
import os
import pickle
import warnings

import numpy as np
import pytest
from dpcheck.engine.streams import KeyedStream, KeyedStreams, SystemStream, SystemStreams, normals_from_words
from scipy import stats

from dpcheck.errors import DpcheckError

KEY = bytes(range(32))
# Chance of a false alarm of each test on a stream that has no fixed key.
ALPHA = 1e-7


@pytest.mark.parametrize("stream", [KeyedStream(KEY), SystemStream()], ids=["keyed", "system"])
def test_normals_are_standard_normal(stream):
    x = stream.normals(400_000)
    assert x.dtype == np.float64
    assert stats.kstest(x, "norm").pvalue > ALPHA
    assert abs(x.mean()) < 5.5 / len(x) ** 0.5
    assert abs(x.var() - 1) < 5.5 * (2 / len(x)) ** 0.5
    beyond = int((abs(x) > 3.5).sum())
    assert stats.binomtest(beyond, len(x), 2 * stats.norm.sf(3.5)).pvalue > ALPHA


@pytest.mark.parametrize("stream", [KeyedStream(KEY), SystemStream()], ids=["keyed", "system"])
def test_words_are_uniform_and_never_given_twice(stream):
    first, second = stream.words(100_000), stream.words(100_000)
    assert stats.kstest(np.concatenate([first, second]) / 2.0**64, "uniform").pvalue > ALPHA
    assert len(np.intersect1d(first, second)) == 0


def test_tail_of_the_inversion_is_exact_far_beyond_float32_and_float64_generators():
    upper = np.array([2**63 - 1, 2**60, 2**53, 2**40 + 1, 12345, 1, 0], dtype=np.uint64)
    second = np.array([7, 2**63, 2**63, 2**62], dtype=np.uint64)
    values = normals_from_words(upper << np.uint64(1) | np.uint64(1), second)
    fraction = [0.5, 0.5, 0.5, *((int(w) + 0.5) / 2**64 for w in second)]
    expected = [(int(u) + f) / 2**64 for u, f in zip(upper, fraction, strict=True)]
    np.testing.assert_allclose(stats.norm.sf(values), expected, rtol=1e-11)
    assert values[-1] > 9.1
    np.testing.assert_array_equal(normals_from_words(upper << np.uint64(1), second), -values)
    least = normals_from_words(np.array([1], dtype=np.uint64), np.array([0], dtype=np.uint64))
    assert least[0] == pytest.approx(stats.norm.isf(2.0**-129), rel=1e-12)


def test_neighbouring_tail_words_give_different_values():
    second = np.arange(0, 2**63, 2**53, dtype=np.uint64)
    values = normals_from_words(np.full(len(second), 3, dtype=np.uint64), second)
    assert len(np.unique(values)) == len(values)


def test_every_bit_of_the_key_counts():
    flipped = [
        bytes(b ^ (1 << bit) if i == byte else b for i, b in enumerate(KEY)) for byte in range(32) for bit in (0, 7)
    ]
    first = {tuple(KeyedStream(key).words(2)) for key in [KEY, *flipped]}
    assert len(first) == 65


def test_streams_differ_by_purpose_and_step_and_are_uncorrelated():
    streams = KeyedStreams(KEY)
    drawn = np.stack([streams.stream(p, s).normals(20_000) for p in ("noise", "sampling") for s in range(8)])
    correlation = np.corrcoef(drawn)[np.triu_indices(16, 1)]
    assert abs(correlation).max() < 6 / 20_000**0.5


def test_parts_are_independent_of_each_other_and_of_the_whole():
    whole = KeyedStream(KEY)
    drawn = np.stack([s.normals(50_000) for s in (whole, *map(whole.part, range(3)))])
    assert abs(np.corrcoef(drawn)[np.triu_indices(4, 1)]).max() < 6 / 50_000**0.5
    np.testing.assert_array_equal(drawn[1], KeyedStream(KEY).part(0).normals(50_000))
    a, b = map(SystemStream().part, range(2))
    assert not np.array_equal(a.words(4), b.words(4))


def test_private_streams_have_new_keys_and_seeded_ones_repeat():
    a, b = (KeyedStreams.private().stream("noise", 0).words(4) for _ in range(2))
    assert not np.array_equal(a, b)
    c, d = (KeyedStreams.not_private(3).stream("noise", 5).words(4) for _ in range(2))
    np.testing.assert_array_equal(c, d)
    assert not np.array_equal(SystemStreams().stream("noise", 0).words(4), SystemStreams().stream("noise", 0).words(4))


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_key_is_never_copied(copying):
    with pytest.raises(DpcheckError, match="cannot be copied"):
        copying(KeyedStreams.private())


def test_a_forked_copy_is_refused():
    streams = KeyedStreams.private()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            streams.stream("noise", 0)
        except DpcheckError:
            os._exit(42)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
