import numpy as np
import pytest
import torch
from dpcheck.engine.noise import GRID, Gaussian, GridGaussian
from dpcheck.engine.streams import KeyedStream, KeyedStreams, SystemStream
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

KEY = bytes(range(32))
SHAPES = {"weight": (300, 200), "bias": (5_000,), "scalar": (), "nothing": (0, 3)}


class Ones:
    def words(self, count):
        raise AssertionError("noise asks for normals")

    def normals(self, count):
        return np.ones(count)

    def fill(self, out):
        out[:] = 1.0

    def part(self, index):
        return self


def zeros(mechanism):
    return mechanism.contribution({name: torch.zeros(shape) for name, shape in SHAPES.items()})


def test_noise_is_sigma_times_c_on_the_sum_then_divided():
    total = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(4.0, dtype=torch.float64)}
    released = Gaussian(3.0, 0.5).release(total, 10, Ones())
    assert released["w"].tolist() == [0.25, torch.tensor(-0.05).item()]
    assert released["b"].item() == pytest.approx(0.55, abs=1e-15)
    assert [t.dtype for t in released.values()] == [torch.float32, torch.float64]


def test_large_and_strided_tensors_keep_their_layout_and_every_value_its_own_noise():
    total = torch.arange(300 * 400, dtype=torch.float32).view(300, 400).t()
    expected = total / 2
    assert torch.equal(Gaussian(0.0, 1.0).release({"w": total}, 2, KeyedStream(KEY))["w"], expected)
    noise = Gaussian(1.0, 1.0).release({"w": torch.zeros(400, 300, dtype=torch.float64)}, 1, KeyedStream(KEY))["w"]
    assert len(noise.unique()) == noise.numel()


@pytest.mark.parametrize("make", [Gaussian, GridGaussian])
@pytest.mark.parametrize("stream", [KeyedStream(KEY), SystemStream()], ids=["keyed", "system"])
def test_noise_has_the_stated_distribution_in_every_tensor(make, stream):
    mechanism = make(1.3, 2.0)
    released = mechanism.release(zeros(mechanism), 16, stream)
    assert {name: tuple(t.shape) for name, t in released.items()} == SHAPES
    for name in ("weight", "bias"):
        x = released[name].flatten().numpy() * 16 / (1.3 * 2.0)
        assert stats.kstest(x, "norm").pvalue > 1e-7
        low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], len(x)) / len(x)
        assert low < (x**2).mean() < high


@pytest.mark.parametrize("make", [Gaussian, GridGaussian])
def test_noise_is_independent_between_tensors_and_steps(make):
    mechanism, streams = make(1.0, 1.0), KeyedStreams.private()
    steps = []
    for step in range(6):
        total = mechanism.contribution({name: torch.zeros(50, 100) for name in "abc"})
        steps.append(mechanism.release(total, 1, streams.stream("noise", step)))
    flat = np.stack([t.flatten().numpy() for released in steps for t in released.values()])
    correlation = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
    assert abs(correlation).max() < 6.5 / 5000**0.5


@pytest.mark.parametrize("shapes", [[(700, 1000), (7,)], [(3,)] * 200_000, [(1,), (2**19,)], [(5,)], [()], [(0,)]])
def test_noise_does_not_depend_on_threads_and_no_value_of_it_is_used_twice(shapes):
    threads, noise = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            total = {str(i): torch.zeros(shape, dtype=torch.float64) for i, shape in enumerate(shapes)}
            released = Gaussian(1.0, 1.0).release(total, 1, KeyedStream(KEY))
            noise.append(torch.cat([t.flatten() for t in released.values()]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*noise)
    assert len(noise[0].unique()) == len(noise[0])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    mechanism = Gaussian(1.0, 1.0)
    a, b = (mechanism.release(zeros(mechanism), 1, KeyedStreams.private().stream("noise", 0)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(a["bias"], b["bias"])


def test_half_precision_parts_are_added_in_float32():
    assert Gaussian(1.0, 1.0).contribution({"w": torch.ones(2, dtype=torch.bfloat16)})["w"].dtype == torch.float32


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40),
    st.floats(1e-3, 1e3),
    st.sampled_from([1e-6, 0.5, 1 - 1e-12, 1.0, 1 + 1e-6, 3.0]),
)
def test_the_integer_norm_never_exceeds_the_bound(values, bound, length):
    g = torch.tensor(values, dtype=torch.float64)
    if g.norm() > 0:
        g = g / g.norm() * bound * length
    parts = {"a": g[: len(g) // 2], "b": g[len(g) // 2 :]}
    grid = GridGaussian(1.0, bound).contribution(parts)
    whole = [int(x) for part in grid.values() for x in part.tolist()]
    assert sum(x * x for x in whole) <= GRID * GRID
    if length <= 0.5:
        error = torch.tensor(whole, dtype=torch.float64) * (bound / GRID) - g
        assert float(error.abs().max()) <= bound / GRID * (1 + 1e-6)


def test_a_single_coordinate_at_the_bound_keeps_its_length():
    grid = GridGaussian(1.0, 0.7).contribution({"w": torch.tensor([0.0, -0.7])})
    assert grid["w"].dtype == torch.int64
    assert GRID - 2 <= -grid["w"][1].item() <= GRID


def test_secure_sums_are_exact_and_released_on_the_grid():
    mechanism = GridGaussian(1.0, 1.0)
    generator = torch.Generator().manual_seed(1)
    records = [mechanism.contribution({"w": torch.randn(7, generator=generator) / 9}) for _ in range(50)]
    forward = sum((r["w"] for r in records), torch.zeros(7, dtype=torch.int64))
    backward = sum((r["w"] for r in reversed(records)), torch.zeros(7, dtype=torch.int64))
    assert torch.equal(forward, backward)
    released = mechanism.release({"w": forward}, 8, KeyedStream(KEY))["w"] * 8 * GRID
    assert torch.equal(released, released.round())
    silent = GridGaussian(0.0, 1.0).release({"w": forward}, 8, KeyedStream(KEY))["w"]
    assert torch.equal(silent, forward.double() / GRID / 8)
